"""Blocking calls off the event loop, in threads that do not hold the process back when it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """The result of `work`, run in a daemon thread of its own.

    An executor's threads are joined when the interpreter ends: one that waits for a store that hangs would keep a
    stopped process alive until its time-out. Cancelling leaves the thread to finish by itself.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            _tell(loop, done, lambda error=error: done.set_exception(error))  # type: ignore[misc]
        else:
            _tell(loop, done, lambda: done.set_result(result))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[T], outcome: Callable[[], None]) -> None:
    def settle() -> None:
        if not done.done():
            outcome()

    # The loop may be gone by now, and with it whoever asked.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(settle)
