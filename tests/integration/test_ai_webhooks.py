"""Webhooks reach a real receiver, signed so that another's library verifies it, and nothing but public addresses."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from compose.ai_webhooks import SignedWebhooks, ai_webhooks, signed
from compose.local.process import free_port
from compose.settings import SettingError, Settings
from streams.ai.model_port import WebhookRefused

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = '{"task_id":"t-1","result":"天"}'.encode()


@dataclass
class Receiver:
    """A receiver that answers with these statuses, in turn, and then with 204."""

    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""
    port: int = 0

    async def take(self, request: web.Request) -> web.Response:
        """Keep what came."""
        self.got.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers={"Location": self.url} if status // 100 == 3 else {})


@asynccontextmanager
async def _receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(statuses))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.port = runner.addresses[0][1]
    receiver.url = f"http://127.0.0.1:{receiver.port}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _webhooks(networks: str = "127.0.0.0/8", **options: Any) -> AsyncIterator[SignedWebhooks]:
    made = ai_webhooks(Settings(ai_webhook_secret=SECRET, ai_webhook_networks=networks, **options))
    try:
        yield made
    finally:
        await made.close()


async def test_another_s_library_verifies_what_comes_and_nothing_that_was_changed() -> None:
    async with _receiving() as receiver, _webhooks() as webhooks:
        await webhooks.send(receiver.url, BODY, "t-1")
        (headers, body), *more = receiver.got
    assert (body, more, headers["webhook-id"], headers["Content-Type"]) == (BODY, [], "t-1", "application/json")
    verify = openai.OpenAI(api_key="none").webhooks.verify_signature
    verify(body, headers, secret=SECRET)
    for changed in ({}, {"webhook-id": "t-2"}, {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            verify(body if changed else body + b" ", {**headers, **changed}, secret=SECRET)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of standardwebhooks.com's own libraries."""
    webhooks = ai_webhooks(Settings(ai_webhook_secret=SECRET))
    found = signed(webhooks._secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("status", "final"), [(500, False), (404, False), (429, False), (410, True), (302, True), (307, True)]
)
async def test_which_answers_are_tried_again(status: int, final: bool) -> None:
    async with _receiving(status) as receiver, _webhooks() as webhooks:
        with pytest.raises(WebhookRefused if final else OSError, match=str(status)):
            await webhooks.send(receiver.url, BODY, "t")
        assert len(receiver.got) == 1, "no redirect is followed"
        await webhooks.send(receiver.url, BODY, "t")


async def test_a_receiver_that_is_away_is_tried_again() -> None:
    async with _webhooks() as webhooks:
        with pytest.raises(OSError):
            await webhooks.send(f"http://127.0.0.1:{free_port()}/", BODY, "t")
        with pytest.raises(OSError):
            await webhooks.send("http://no-such-host.invalid/", BODY, "t")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0", "127.9.9.9"],
)
async def test_nothing_is_sent_to_this_machine_however_it_is_written(host: str) -> None:
    async with _receiving() as receiver, _webhooks(networks="") as webhooks:
        with pytest.raises(WebhookRefused, match=r"no address that may be reached|no URL"):
            await webhooks.send(f"http://{host}:{receiver.port}/", BODY, "t")
        assert receiver.got == []


@pytest.mark.parametrize("host", ["10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "[::1]"])
async def test_nothing_is_sent_to_private_networks(host: str) -> None:
    async with _webhooks() as webhooks:
        with pytest.raises(WebhookRefused, match="no address that may be reached"):
            await webhooks.send(f"http://{host}/", BODY, "t")


class _Rebinding(AbstractResolver):
    """A name server that says something public to whoever asks first, and this machine to whoever asks then."""

    def __init__(self) -> None:
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        address = "8.8.8.8" if self.asked == 1 else "127.0.0.1"
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_name_that_changes_its_address_after_it_was_looked_at_leads_nowhere() -> None:
    rebinding = _Rebinding()
    assert (await rebinding.resolve("hook.example"))[0]["host"] == "8.8.8.8"
    async with _receiving() as receiver:
        webhooks = SignedWebhooks(b"secret", (), rebinding)
        with pytest.raises(WebhookRefused, match="no address that may be reached"):
            await webhooks.send(f"http://hook.example:{receiver.port}/", BODY, "t")
        await webhooks.close()
        assert (receiver.got, rebinding.asked) == ([], 2)


async def test_without_a_secret_nothing_is_sent() -> None:
    async with _receiving() as receiver:
        webhooks = ai_webhooks(Settings(ai_webhook_networks="127.0.0.1"))
        with pytest.raises(WebhookRefused, match="SLUICEWAY_AI_WEBHOOK_SECRET is not set"):
            await webhooks.send(receiver.url, BODY, "t")
        assert receiver.got == []


@pytest.mark.parametrize("url", ["http://", "http://[::1/", "http://a b/", "http://" + "a" * 300 + "/"])
async def test_what_is_no_url_is_refused_or_not_found(url: str) -> None:
    async with _webhooks() as webhooks:
        with pytest.raises((WebhookRefused, OSError)):
            await webhooks.send(url, BODY, "t")


@pytest.mark.parametrize("options", [{"ai_webhook_secret": "whsec_?"}, {"ai_webhook_networks": "localhost"}])
def test_settings_that_cannot_be_used(options: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="SLUICEWAY_AI_WEBHOOK"):
        ai_webhooks(Settings(**options))
