"""Request bodies: decompressed while they arrive, over as many frames as they have, and spooled to disk past a size."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import IO, Any, Protocol

SPOOL_BYTES = 8 << 20

CANNOT_DECOMPRESS = 271
UNKNOWN_COMPRESSION_METHOD = 89


class BodyRefused(ValueError):
    """A body that cannot be decoded; `code` is ClickHouse's error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Frame(Protocol):
    """What zlib, lz4.frame and zstd decompressors of one frame have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, /) -> bytes: ...


class Decoder:
    """Decompresses a body that is any number of frames, one after the other."""

    def __init__(self, encoding: str) -> None:
        self._new_frame = _frames(encoding)
        self._frame: _Frame | None = None

    def feed(self, data: bytes) -> bytes:
        """The bytes that `data` completes. Raises BodyRefused for bytes that are not of the encoding."""
        out = []
        while data:
            if self._frame is None:
                self._frame = self._new_frame()
            try:
                out.append(self._frame.decompress(data))
            except Exception as error:
                raise BodyRefused(CANNOT_DECOMPRESS, f"Cannot decompress the body: {error}") from None
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
        return b"".join(out)

    def finish(self) -> None:
        """Raises BodyRefused if the body ended inside a frame: what came before must not count as the whole."""
        if self._frame is not None:
            raise BodyRefused(CANNOT_DECOMPRESS, "Cannot decompress the body: it ends inside a frame")


def _frames(encoding: str) -> Callable[[], _Frame]:
    if encoding == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return lz4.frame.LZ4FrameDecompressor  # type: ignore[no-any-return]
    if encoding == "zstd":
        from backports import zstd

        return zstd.ZstdDecompressor
    if encoding in ("gzip", "deflate"):
        # 32 + 15: zlib or gzip, whichever header it finds.
        return lambda: zlib.decompressobj(47)
    raise BodyRefused(
        UNKNOWN_COMPRESSION_METHOD, f"Unknown Content-Encoding {encoding}; known: lz4, zstd, gzip, deflate"
    )


async def spool(prefix: bytes, chunks: AsyncIterable[bytes], encoding: str, folder: Path) -> IO[bytes]:
    """Write `prefix` and a whole body into a file (in memory up to SPOOL_BYTES), rewound. The caller closes it.

    Nothing of a body reaches the engine before all of it is here, so a broken upload stores nothing.
    """
    decoder = Decoder(encoding) if encoding not in ("", "identity") else None
    body = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES, dir=str(folder))  # noqa: SIM115 - handed to the caller
    try:
        body.write(prefix)
        async for chunk in chunks:
            body.write(decoder.feed(chunk) if decoder else chunk)
        if decoder:
            decoder.finish()
    except BaseException:
        body.close()
        raise
    body.seek(0)
    return body
