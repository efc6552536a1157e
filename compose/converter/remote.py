"""A converter elsewhere, asked over HTTP."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec
from aiohttp import hdrs

from compose.converter.service import ALIVE_S, NDJSON
from compose.converter.words import Done, Going, heard
from streams.files.converting import ConversionFailed, ConvertRequest, ConvertResult, OnProgress

_TIMEOUTS = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
#: A service that tells of its progress, and says nothing for so long, is gone.
_SILENCE_S = 6 * ALIVE_S
_ANSWER_BYTES_MAX = 1 << 20

_results = msgspec.json.Decoder(ConvertResult)


class RemoteConverter:
    """Implements `streams.files.converting.Converter` by a service at `url`: `sluiceway converter`, which tells of its progress,
    or any that answers `{"r2_key", "size", "checksum"}` once it is done, `longest_s` from the start at most."""

    def __init__(self, url: str, key: str = "", longest_s: float = 3_000.0) -> None:
        self._url = url.rstrip("/") + "/convert"
        self._longest_s = longest_s
        self._headers = {hdrs.ACCEPT: NDJSON, hdrs.CONTENT_TYPE: "application/json"}
        if key:
            self._headers[hdrs.AUTHORIZATION] = f"Bearer {key}"

    def close(self) -> None:
        """Nothing is held between conversions."""

    async def convert(self, request: ConvertRequest, on_progress: OnProgress) -> ConvertResult:
        """See `Converter`."""
        try:
            async with (
                asyncio.timeout(self._longest_s) as limit,
                aiohttp.ClientSession(timeout=_TIMEOUTS, read_bufsize=1 << 20) as session,
                session.post(
                    self._url, data=msgspec.json.encode(request), headers=self._headers, allow_redirects=False
                ) as answer,
            ):
                if answer.status != 200:
                    raise ConversionFailed("converter_refused", f"the converter answers {answer.status}", again=True)
                if answer.content_type != NDJSON:
                    return _checked(_results.decode(await _whole(answer)), request)
                now_s = asyncio.get_running_loop().time
                limit.reschedule(now_s() + _SILENCE_S)
                async for text in answer.content:
                    limit.reschedule(now_s() + _SILENCE_S)
                    if not text.strip():
                        continue
                    word = heard(text)
                    if isinstance(word, Going):
                        on_progress(word.stage, word.share)
                    elif isinstance(word, Done):
                        return _checked(word.result, request)
                    else:
                        raise word.error()
        except msgspec.DecodeError as error:
            raise ConversionFailed(
                "converter_refused", f"the converter says what cannot be: {error}", again=True
            ) from None
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ValueError) as error:
            what = f"the converter is away, or went away ({type(error).__name__})"
            raise ConversionFailed("converter_lost", what, again=True) from None
        raise ConversionFailed("converter_lost", "the converter ended without a word", again=True)


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for some in answer.content.iter_any():
        body += some
        if len(body) > _ANSWER_BYTES_MAX:
            raise ConversionFailed("converter_refused", "the converter's answer has no end", again=True)
    return body


def _checked(result: ConvertResult, request: ConvertRequest) -> ConvertResult:
    if result.r2_key != request.upload_key:
        raise ConversionFailed(
            "converter_refused", "the converter uploaded to another key than it was told", again=True
        )
    return result
