"""Sources that lie anywhere: a client's URL, asked for at public addresses only, wherever it redirects to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import aiohttp
from aiohttp import hdrs

from compose.outbound import NotPublic, guarded
from streams.files.converting import ConversionFailed
from streams.runtime.addresses import Network, host_of

REDIRECTS_MAX = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {hdrs.USER_AGENT: "sluiceway", hdrs.ACCEPT_ENCODING: "identity"}


@asynccontextmanager
async def found(
    url: str, allowed: Sequence[Network], timeout: aiohttp.ClientTimeout
) -> AsyncIterator[aiohttp.ClientResponse]:
    """What a URL leads to in the end. Raises ConversionFailed for what may not be asked, and the client's errors."""
    for _ in range(REDIRECTS_MAX + 1):
        place = host_of(url)
        if isinstance(place, str):
            raise ConversionFailed("bad_url", f"the source's URL: {place}")
        session = aiohttp.ClientSession(
            connector=guarded(allowed), timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        try:
            async with session, session.get(url, headers=_HEADERS, allow_redirects=False) as answer:
                if answer.status not in _REDIRECTS or hdrs.LOCATION not in answer.headers:
                    yield answer
                    return
                url = urljoin(str(answer.url), answer.headers[hdrs.LOCATION])
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, NotPublic):
                raise ConversionFailed("address_not_public", f"the source's URL: {error.os_error}") from None
            raise
        except ValueError:
            raise ConversionFailed("bad_url", "the source's URL: it, or where it redirects to, is none") from None
    raise ConversionFailed("too_many_redirects", f"the source redirects more than {REDIRECTS_MAX} times")
