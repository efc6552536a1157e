"""One conversion from its source to its upload, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compose.converter.transcode import transcode
from compose.converter.transfer import fetch, upload
from compose.converter.words import Work
from streams.files import formats
from streams.files.converting import ConversionFailed, ConvertResult, OnProgress
from streams.runtime.addresses import networks
from topics.files import Stage
from topics.malformed import Malformed


async def work(todo: Work, on_progress: OnProgress) -> ConvertResult:
    """Fetch, convert, upload. Raises ConversionFailed; whatever lies in the folder then is the caller's to remove."""
    request, folder, limits = todo.request, Path(todo.folder), todo.limits
    plan = formats.plan(request.format, request.quality, request.options)
    if isinstance(plan, Malformed):
        raise ConversionFailed(plan.reason, plan.error)
    source, result = folder / "source", folder / "result"
    try:
        fetching = _told(on_progress, Stage.FETCHING)
        allowed = networks(todo.networks) if request.foreign else None
        await fetch(request.url, source, limits.source_bytes, limits.fetch_s, fetching, allowed)
        duration_ms = await transcode(plan, source, result, limits, _told(on_progress, Stage.CONVERTING))
        source.unlink()
        size = result.stat().st_size
        checksum, parts = await upload(request, result, limits.upload_s, _told(on_progress, Stage.UPLOADING))
    except OSError as error:
        raise ConversionFailed("disk", f"the converter's disk: {error.strerror or error}", again=True) from None
    return ConvertResult(r2_key=request.upload_key, size=size, checksum=checksum, duration_ms=duration_ms, parts=parts)


def _told(on_progress: OnProgress, stage: Stage) -> Callable[[float], None]:
    return lambda share: on_progress(stage, share)
