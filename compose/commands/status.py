"""`sluiceway status`: who owns what, how far it is, and whether the numbers are complete."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer
from aiohttp import ClientError, ClientSession, ClientTimeout
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table

from compose.kafka import kafka_access
from compose.settings import Settings, load
from compose.worker import clickhouse
from sinks.clickhouse.queries import progress
from sinks.errors import SinkRefused, SinkUnavailable
from streams.runtime.owners import current_owners

ASK_S = 2.0
UNHEALTHY = 1


def status(as_json: Annotated[bool, typer.Option("--json", help="as one JSON object")] = False) -> None:
    """Show workers, partitions and progress. Exits 1 when Kafka, ClickHouse or an owner does not answer."""
    found = asyncio.run(_gather(load()))
    if as_json:
        print(json.dumps(found, default=str))
    else:
        _print(found)
    raise typer.Exit(UNHEALTHY if found["problems"] else 0)


async def _gather(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {"workers": [], "progress": [], "problems": []}
    await asyncio.gather(_workers(settings, found), _progress(settings, found))
    return found


async def _workers(settings: Settings, found: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(10):
            owners = await current_owners(kafka_access(settings).aiokafka())
    except (KafkaError, TimeoutError) as error:
        found["problems"].append(f"Kafka at {settings.kafka_bootstrap} does not answer: {error or 'timed out'}")
        return
    async with ClientSession(timeout=ClientTimeout(total=ASK_S)) as session:
        for url, owned in owners.urls().items():
            try:
                async with session.get(f"{url}/status") as answer:
                    found["workers"].append({"url": url, **await answer.json()})
            except (ClientError, TimeoutError):
                names = ", ".join(f"{owner.stream}/{owner.partition}" for owner in owned)
                found["problems"].append(f"the owner of {names} at {url} does not answer")


async def _progress(settings: Settings, found: dict[str, Any]) -> None:
    sink = clickhouse(settings)
    try:
        for row in await progress(sink):
            found["progress"].append({name: getattr(row, name) for name in row.__dataclass_fields__})
    except (SinkRefused, SinkUnavailable) as error:
        found["problems"].append(str(error))
    finally:
        await sink.close()


def _print(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(
        "stream", "partition", "worker", "state", "committed", "behind", "events", "duplicates", "late", "dead", "ids"
    )
    for worker in found["workers"]:
        for part in worker["partitions"]:
            figures = part["figures"]
            outcomes = [
                f"{int(figures.get(f'outcome_{name}', 0)):,}" for name in ("accepted", "duplicate", "late", "dead")
            ]
            table.add_row(
                worker["stream"],
                str(part["partition"]),
                str(worker["pid"]),
                "ready" if part["ready"] else "restoring",
                f"{part['committed']:,}",
                f"{max(0, part['end'] - part['committed']):,}",
                *outcomes,
                f"{int(figures.get('ids', 0)):,}",
            )
    console.print(table)
    for stream, until in {row["stream"]: row["complete_until"] for row in found["progress"]}.items():
        known = f"up to {until:%Y-%m-%d %H:%M} UTC" if until and until.year > 1970 else "up to no hour yet"
        console.print(f"{stream}: rollups are complete {known}")
    for worker in found["workers"]:
        if not worker["sink_available"]:
            console.print(f"worker {worker['pid']} waits for ClickHouse", style="bold")
    for problem in found["problems"]:
        console.print(f"problem: {problem}", style="bold red", markup=False)
