"""A converter elsewhere, asked over HTTP."""

from __future__ import annotations

import aiohttp
import msgspec
from aiohttp import hdrs

from compose.converter.service import ALIVE_S, NDJSON
from compose.converter.words import Done, Going, heard
from streams.files.converting import ConversionFailed, ConvertRequest, ConvertResult, OnProgress

#: A service that says nothing for so long is gone.
_TIMEOUTS = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=6 * ALIVE_S)


class RemoteConverter:
    """Implements `streams.files.converting.Converter` by `sluiceway converter` at `url`."""

    def __init__(self, url: str, key: str = "") -> None:
        self._url = url.rstrip("/") + "/convert"
        self._headers = {hdrs.ACCEPT: NDJSON, hdrs.CONTENT_TYPE: "application/json"}
        if key:
            self._headers[hdrs.AUTHORIZATION] = f"Bearer {key}"

    def close(self) -> None:
        """Nothing is held between conversions."""

    async def convert(self, request: ConvertRequest, on_progress: OnProgress) -> ConvertResult:
        """See `Converter`."""
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUTS, read_bufsize=1 << 20) as session,
                session.post(
                    self._url, data=msgspec.json.encode(request), headers=self._headers, allow_redirects=False
                ) as answer,
            ):
                if answer.status != 200:
                    raise ConversionFailed("converter_refused", f"the converter answers {answer.status}", again=True)
                async for text in answer.content:
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


def _checked(result: ConvertResult, request: ConvertRequest) -> ConvertResult:
    if result.r2_key != request.upload_key:
        raise ConversionFailed(
            "converter_refused", "the converter uploaded to another key than it was told", again=True
        )
    return result
