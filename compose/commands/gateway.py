"""`sluiceway gateway`: serves HTTP until it is told to stop; needs no partition and stays up while Kafka is down."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry

from compose.clients import bucket, clickhouse, presigner
from compose.gateway_ai import GatewayAi
from compose.gateway_audio import GatewayAudio
from compose.gateway_files import GatewayFiles
from compose.kafka import kafka_access, traffic_publisher
from compose.logs import set_up_logs
from compose.loop import allow_open_files, run_loop
from compose.settings import SettingError, Settings, load
from compose.storage import StorageFigures
from sinks.errors import SinkRefused
from streams.runtime.owners import OwnersTail
from streams.web.context import EventLimits, Readiness
from streams.web.gateway import make_gateway
from streams.web.publisher import EventPublisher

#: How long requests in flight may take to finish at shutdown, above the time Kafka is given to confirm.
SHUTDOWN_S = 15.0
#: Files and sockets of a gateway beside its audio connections.
OTHER_FILES = 1_024
#: How long a worker may take to say whether it is ready.
ASK_S = 1.0

log = structlog.get_logger(__name__)


def gateway() -> None:
    """Serve HTTP: events, audio and AI tasks in, their state out. Any number of them; SIGTERM finishes what is in flight."""
    settings = load()
    set_up_logs(settings)
    run_gateway(settings)


def run_gateway(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight. Raises SettingError for what cannot be served."""
    # What lives for a connection or longer is looked at by the collector as rarely as may be: frames are many small objects
    # that die young and hold no cycles.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    wanted = settings.audio_connections + OTHER_FILES
    if (allowed := allow_open_files(wanted)) < wanted:
        log.warning("few_open_files", allowed=allowed, wanted=wanted, hint="raise the limit, or take fewer connections")
    run_loop(_until_signal(settings))


@asynccontextmanager
async def serve_gateway(settings: Settings) -> AsyncIterator[str]:
    """Serve while the context is open; gives the URL (port 0 takes a free one).

    Raises SettingError off loopback without an API key, or for an address that cannot be listened on.
    """
    require_key_off_loopback(settings)
    registry = _registry()
    publisher = traffic_publisher(settings, "gateway")
    owners = OwnersTail(kafka_access(settings).aiokafka())
    audio = GatewayAudio(settings, owners, registry)
    storage = StorageFigures(clickhouse(settings), settings.storage_price_per_gb_month, registry)
    ai = GatewayAi(settings, owners)
    files = GatewayFiles(settings, owners, registry)
    app = make_gateway(
        publisher=publisher,
        readiness=lambda: _readiness(publisher, owners),
        registry=registry,
        version=version("sluiceway"),
        api_key=settings.api_key,
        event_limits=EventLimits(event_bytes_max=settings.max_record_bytes),
        audio_parts=audio.parts,
        storage=storage,
        tasks=ai.tasks,
        followers=ai.followers,
        file_parts=files.parts,
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    allowing = asyncio.create_task(_allow_origins(settings))
    try:
        await publisher.start()
        await owners.start()
        await audio.start()
        await files.start()
        storage.start()
        await ai.start()
        url = await _listen(runner, settings)
        log.info("gateway_listening", url=url)
        yield url
    finally:
        allowing.cancel()
        await runner.cleanup()
        await storage.close()
        await ai.close()
        await audio.close()
        await files.close()
        await owners.stop()
        await publisher.close()


def require_key_off_loopback(settings: Settings) -> None:
    """Refuse to serve an open gateway to a network."""
    if settings.api_key or is_loopback(settings.gateway_host):
        return
    raise SettingError(
        f"SLUICEWAY_GATEWAY_HOST={settings.gateway_host} is not loopback, and SLUICEWAY_API_KEY is not set: anyone who "
        "reaches this address could write events. Set a key, or listen on 127.0.0.1."
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve_gateway(settings):
        await stop.wait()
        log.info("gateway_stopping")


async def _listen(runner: web.AppRunner, settings: Settings) -> str:
    host, port = settings.gateway_host, settings.gateway_port
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise SettingError(
            f"The gateway cannot listen on {host}:{port} ({error.strerror or error}). Stop what does, or set "
            "SLUICEWAY_GATEWAY_HOST and SLUICEWAY_GATEWAY_PORT."
        ) from None
    return f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"


async def _allow_origins(settings: Settings) -> None:
    """Set the bucket's CORS rules, where the settings name origins; a bucket that cannot be changed is told of, and served."""
    origins = [origin.strip() for origin in settings.s3_cors_origins.split(",") if origin.strip()]
    if not origins:
        return
    objects = bucket(settings)
    try:
        await presigner(settings, objects).allow_origins(origins)
        log.info("bucket_allows", origins=origins)
    except SinkRefused as error:
        log.warning("bucket_rules_not_set", error=str(error))
    finally:
        await objects.close()


async def _readiness(publisher: EventPublisher, owners: OwnersTail) -> Readiness:
    """Ready when Kafka answers and no worker says that it restores. Without workers events still go in, and are kept."""
    up = await publisher.reachable()
    checks = {"kafka": "reachable" if up else "unreachable"}
    restoring = False
    async with ClientSession(timeout=ClientTimeout(total=ASK_S)) as session:
        for url, owned in owners.urls().items():
            answer = await _ask(session, url)
            restoring = restoring or answer == "restoring"
            partitions = ", ".join(str(owner.partition) for owner in sorted(owned, key=lambda o: o.partition))
            checks[f"{owned[0].stream} {partitions}"] = answer
    return Readiness(up and not restoring, checks)


async def _ask(session: ClientSession, worker_url: str) -> str:
    try:
        async with session.get(f"{worker_url}/ready") as answer:
            return "ready" if answer.status == 200 else "restoring"
    except (ClientError, TimeoutError):
        return "does not answer"


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    return registry
