"""A conversion's process may die at any moment: that is an attempt to be made again, on any event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest
import uvloop

from compose.converter.limits import ConverterLimits
from compose.converter.pool import listen
from compose.converter.words import Work
from streams.files.converting import ConversionFailed, ConvertRequest

REQUEST = ConvertRequest(url="u", format="mp3", upload_url="u", upload_key="k", content_type="audio/mpeg")
_PIPE = asyncio.subprocess.PIPE


async def _death(said: str) -> ConversionFailed:
    """What comes of a process that died before it was told what to do, and of what it said."""
    command = [sys.executable, "-c", f"print({said!r}, end='')"]
    process = await asyncio.create_subprocess_exec(*command, stdin=_PIPE, stdout=_PIPE, stderr=_PIPE)
    assert process.stdin is not None
    await process.wait()
    await process.stdin.wait_closed()

    async def complaints() -> str:
        return "none"

    told = asyncio.create_task(complaints())
    with pytest.raises(ConversionFailed) as failed:
        await listen(process, Work(REQUEST, "folder", ConverterLimits()), told, lambda stage, share: None)
    return failed.value


@pytest.mark.parametrize("said", ["", '{"type":"progress","stage":"fetching","share":0.0}\n{"type":"res'])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_process_that_died_is_tried_again(new_loop: Callable[[], asyncio.AbstractEventLoop], said: str) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        failed = runner.run(_death(said))
    assert (failed.code, failed.again) == ("killed", True)
