"""Clients have public addresses reached only, however a private one is written."""

from __future__ import annotations

import ipaddress

import pytest

from streams.runtime.addresses import may_reach, networks, url_problem


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
     "2002:7f00:1::", "::ffff:169.254.169.254", "fec0::1", "::808:808", "64:ff9b:1::808:808",
     "::ffff:0:a00:1", "5f00::1", "4000::1"],
)  # fmt: skip
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not may_reach(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "64:ff9b::808:808"])
def test_what_is_public_is_not(address: str) -> None:
    assert may_reach(ipaddress.ip_address(address), ())


def test_a_setting_allows_networks() -> None:
    allowed = networks("127.0.0.1, 10.1.0.0/16")
    assert may_reach(ipaddress.ip_address("10.1.2.3"), allowed)
    assert may_reach(ipaddress.ip_address("::ffff:127.0.0.1"), allowed)
    assert not may_reach(ipaddress.ip_address("10.2.2.3"), allowed)
    with pytest.raises(ValueError):
        networks("localhost")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/x", "http://2130706433/", "http://0x7f.1/", "http://[::1]:80/", "https://localhost/hook",
     "http://[fe80::1%25eth0]/", "http://user:pw@8.8.8.8/", "http://", "http://:80/", "http://[::1/", "ftp://8.8.8.8/",
     "http://8.8.8.8:99999/", "http://no-such-host.invalid/", "http://" + "a" * 300 + "/", "http://169.254.169.254/latest"],
)  # fmt: skip
async def test_urls_that_are_refused_at_once(url: str) -> None:
    assert await url_problem(url, ())


async def test_urls_that_are_taken() -> None:
    assert await url_problem("https://8.8.8.8/hook?x=1", ()) is None
    assert await url_problem("http://127.0.0.1:9/hook", networks("127.0.0.1")) is None
