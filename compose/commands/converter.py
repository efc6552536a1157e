"""`sluiceway converter`: converts files for workers elsewhere until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from compose.commands.gateway import is_loopback
from compose.converter.service import make_service
from compose.converting import process_converter
from compose.logs import set_up_logs
from compose.settings import SettingError, Settings, load

log = structlog.get_logger(__name__)


def converter() -> None:
    """Convert files by HTTP, for workers that name this address in SLUICEWAY_CONVERTER_URL."""
    settings = load()
    set_up_logs(settings)
    asyncio.run(_until_signal(settings))


@asynccontextmanager
async def serve_converter(settings: Settings) -> AsyncIterator[str]:
    """Serve while the context is open; gives the URL (port 0 takes a free one). What is under way at the end is ended.

    Raises SettingError off loopback without a key, or for an address that cannot be listened on.
    """
    host, port = settings.converter_host, settings.converter_port
    if not settings.converter_key and not is_loopback(host):
        raise SettingError(
            f"SLUICEWAY_CONVERTER_HOST={host} is not loopback, and SLUICEWAY_CONVERTER_KEY is not set: anyone who reaches "
            "this address could have it work. Set a key, the workers' too, or listen on 127.0.0.1."
        )
    pool = process_converter(settings)
    # Whoever hangs up wants no result any more.
    runner = web.AppRunner(
        make_service(pool, settings.converter_key), access_log=None, handler_cancellation=True, shutdown_timeout=0.5
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise SettingError(
                f"The converter cannot listen on {host}:{port} ({error.strerror or error}). Stop what does, or set "
                "SLUICEWAY_CONVERTER_HOST and SLUICEWAY_CONVERTER_PORT."
            ) from None
        url = f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"
        log.info("converter_listening", url=url)
        yield url
    finally:
        await runner.cleanup()
        pool.close()


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve_converter(settings):
        await stop.wait()
        log.info("converter_stopping")
