"""Webhooks of AI tasks: signed as Standard Webhooks has it, and sent to public addresses only.

Redirects are not followed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Sequence

import aiohttp
from aiohttp.abc import AbstractResolver

from compose.outbound import NotPublic, guarded, networks_of
from compose.settings import PREFIX, SettingError, Settings
from streams.ai.model_port import WebhookRefused
from streams.runtime.addresses import Network

#: One attempt, connecting and answering included, seconds.
ATTEMPT_S = 10.0
_SECRET_PREFIX = "whsec_"
_GONE = 410


class SignedWebhooks:
    """Implements `streams.ai.model_port.Webhooks`. Without a secret nothing is sent."""

    def __init__(self, secret: bytes, allowed: Sequence[Network], resolver: AbstractResolver | None = None) -> None:
        self._secret = secret
        self._allowed = allowed
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def send(self, url: str, body: bytes, task_id: str) -> None:
        """See `Webhooks`. Any status of 200 to 299 is a success; a redirect and 410 are a no for good."""
        if not self._secret:
            raise WebhookRefused(f"{PREFIX}AI_WEBHOOK_SECRET is not set: nothing is sent unsigned")
        headers = signed(self._secret, task_id, int(time.time()), body)
        try:
            async with self._opened().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, NotPublic):
                raise WebhookRefused(f"the webhook: {error.os_error}") from None
            raise
        except (aiohttp.InvalidURL, UnicodeError) as error:
            raise WebhookRefused(f"it is no URL: {error}") from None
        except aiohttp.ClientError as error:
            raise OSError(f"the webhook broke off: {error!r}") from None
        if 300 <= status < 400:
            raise WebhookRefused(f"the webhook answered {status}: redirects are not followed")
        if status == _GONE:
            raise WebhookRefused("the webhook answered 410: it is gone")
        if not 200 <= status < 300:
            raise OSError(f"the webhook answered {status}")

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = guarded(self._allowed, self._resolver)
            timeout = aiohttp.ClientTimeout(total=ATTEMPT_S)
            # A cookie of one receiver is no other's.
            jar = aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar)
        return self._session


def signed(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The headers of a message: its HMAC-SHA256 is over id, time and body, joined by dots (standardwebhooks.com, 1.0.0)."""
    content = f"{message_id}.{timestamp_s}.".encode() + body
    digest = base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()
    return {
        "Content-Type": "application/json",
        "User-Agent": "sluiceway",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{digest}",
    }


def ai_webhooks(settings: Settings) -> SignedWebhooks:
    """The webhooks as the settings have them. Raises SettingError for a secret or a network that is none."""
    return SignedWebhooks(_secret(settings.ai_webhook_secret), webhook_networks(settings))


def webhook_networks(settings: Settings) -> tuple[Network, ...]:
    """The networks that webhooks may reach though they are not public. Raises SettingError for what is no network."""
    return networks_of("AI_WEBHOOK_NETWORKS", settings.ai_webhook_networks)


def _secret(text: str) -> bytes:
    if not text.startswith(_SECRET_PREFIX):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise SettingError(f"{PREFIX}AI_WEBHOOK_SECRET begins with {_SECRET_PREFIX}, and no base64 follows") from None
