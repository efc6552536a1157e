"""`sluiceway status`: who owns what, how far it is, and whether the numbers are complete."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from aiohttp import ClientError, ClientSession, ClientTimeout
from aiokafka.errors import KafkaConnectionError, KafkaError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from compose.audio_status import gateway_figures, gateway_line, worker_figures, worker_lines
from compose.clients import clickhouse
from compose.files_figures import gateway_line as files_gateway_line
from compose.files_figures import gateway_section
from compose.files_status import jobs_of
from compose.kafka import kafka_access
from compose.logs import set_up_logs
from compose.settings import Settings, load
from compose.storage import storage_document, storage_lines
from sinks.clickhouse.queries import progress
from sinks.errors import SinkRefused, SinkUnavailable
from streams.runtime.owners import Owner, current_owners

ASK_S = 2.0
UNHEALTHY = 1
_LOOK = "`sluiceway up` starts one on this machine, one elsewhere is named by"
_ROLLED_UP = ("traffic",)
#: Figures of AI tasks: what is open, and what there was since the stream began.
_OPEN_TASKS = ("tasks_pending", "tasks_processing")
_ENDED_TASKS = ("completed", "failed", "cancelled", "calls", "retries", "lost_calls")
#: Of the events read since the stream began; the first is shown as `events`. Late ones are among the dead.
_OUTCOMES = ("accepted", "duplicate", "rerouted", "late", "dead")


def status(as_json: Annotated[bool, typer.Option("--json", help="as one JSON object")] = False) -> None:
    """Show workers, partitions and progress. Exits 1 when Kafka, ClickHouse or a worker does not answer, or a partition has
    no owner."""
    settings = load()
    set_up_logs(dataclasses.replace(settings, log_level="error"))  # what does not answer is told as a problem
    found = asyncio.run(_gather(settings))
    if as_json:
        print(json.dumps(found, default=str))
    else:
        _print(found)
    raise typer.Exit(UNHEALTHY if found["problems"] else 0)


async def _gather(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {"workers": [], "gateway": None, "progress": [], "storage": None, "problems": []}
    metrics, *_ = await asyncio.gather(_workers(settings, found), _gateway(settings, found), _progress(settings, found))
    found["audio"] = worker_figures(found["workers"], metrics)
    return found


async def _gateway(settings: Settings, found: dict[str, Any]) -> None:
    """The figures of audio and files of the gateway whose address the settings have, if it answers: others may be elsewhere."""
    host = "127.0.0.1" if settings.gateway_host in ("0.0.0.0", "::") else settings.gateway_host
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway_port}"
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        async with (
            ClientSession(timeout=ClientTimeout(total=ASK_S), headers=headers) as session,
            session.get(f"{url}/metrics") as answer,
        ):
            if answer.status != 200:
                return
            metrics = await answer.text()
    except (ClientError, TimeoutError):
        return
    found["gateway"] = {"url": url, **gateway_figures(metrics), "files": gateway_section(metrics)}


async def _workers(settings: Settings, found: dict[str, Any]) -> list[str]:
    """Ask all workers; returns the metrics of those of audio."""
    metrics: list[str] = []
    try:
        async with asyncio.timeout(10):
            owners = await current_owners(kafka_access(settings).aiokafka())
    except (KafkaError, TimeoutError) as error:
        why = "" if isinstance(error, KafkaConnectionError) else f" ({error or 'timed out'})"
        found["problems"].append(
            f"Kafka at {settings.kafka_bootstrap} does not answer{why}; {_LOOK} SLUICEWAY_KAFKA_BOOTSTRAP"
        )
        return metrics
    async with ClientSession(timeout=ClientTimeout(total=ASK_S)) as session:
        for url, owned in owners.urls().items():
            try:
                async with session.get(f"{url}/status") as answer:
                    worker = {"url": url, **await answer.json()}
                if worker["stream"] == "audio":
                    async with session.get(f"{url}/metrics") as answer:
                        metrics.append(await answer.text())
            except (ClientError, TimeoutError):
                found["problems"].append(f"the owner of {_names(owned)} at {url} does not answer")
                continue
            found["workers"].append(worker)
            held = {part["partition"] for part in worker["partitions"]}
            if lost := [owner for owner in owned if owner.partition not in held]:
                found["problems"].append(f"nobody holds {_names(lost)} now; the last to do so was {url}")
    return metrics


def _names(owned: Sequence[Owner]) -> str:
    return ", ".join(sorted(f"{owner.stream}/{owner.partition}" for owner in owned))


async def _progress(settings: Settings, found: dict[str, Any]) -> None:
    sink = clickhouse(settings)
    try:
        async with asyncio.timeout(10):
            rows = await progress(sink)
            found["storage"] = await storage_document(sink, settings.storage_price_per_gb_month, None, 0)
        found["progress"] = [{name: getattr(row, name) for name in row.__dataclass_fields__} for row in rows]
    except (SinkUnavailable, TimeoutError):
        found["problems"].append(
            f"ClickHouse at {settings.clickhouse_url} does not answer; {_LOOK} SLUICEWAY_CLICKHOUSE_URL"
        )
    except SinkRefused as error:
        found["problems"].append(str(error))
    finally:
        await sink.close()


def tasks_of(parts: Sequence[dict[str, Any]]) -> str:
    """What has become of AI tasks, in one line; `parts` are all partitions, as their owners' status has them."""
    sums = Counter[str]()
    for part in parts:
        sums.update({name: int(value) for name, value in part["figures"].items()})
    total = {name: f"{sums[name]:,}" for name in (*_OPEN_TASKS, *(f"outcome_{name}" for name in _ENDED_TASKS))}
    waiting = ", ".join(f"{total[name]} {name.removeprefix('tasks_')}" for name in _OPEN_TASKS)
    ended = ", ".join(f"{total[f'outcome_{name}']} {name.replace('_', ' ')}" for name in _ENDED_TASKS)
    return f"ai: tasks {waiting}; {ended}"


def _print(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("partition", "pid", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("behind", "events", *_OUTCOMES[1:]):
        table.add_column(name, justify="right", no_wrap=True)
    parts = [(worker, part) for worker in found["workers"] for part in worker["partitions"]]
    for worker, part in sorted(parts, key=lambda found: (found[0]["stream"], found[1]["partition"])):
        table.add_row(
            f"{worker['stream']}/{part['partition']}",
            str(worker["pid"]),
            "ready" if part["ready"] else "restoring",
            f"{max(0, part['end'] - part['committed']):,}",
            *(f"{int(part['figures'].get(f'outcome_{name}', 0)):,}" for name in _OUTCOMES),
        )
    if table.row_count:
        console.print(table)
    for stream, until in {row["stream"]: row["complete_until"] for row in found["progress"]}.items():
        known = f"up to {until:%Y-%m-%d %H:%M} UTC" if until and until.year > 1970 else "up to no hour yet"
        what = "rollups are complete" if stream in _ROLLED_UP else "everything is read"
        console.print(f"{stream}: {what} {known}")
    if tasks := [part for worker, part in parts if worker["stream"] == "ai"]:
        console.print(tasks_of(tasks))
    if jobs := [part for worker, part in parts if worker["stream"] == "files"]:
        for line in jobs_of(jobs, [worker for worker in found["workers"] if worker["stream"] == "files"]):
            console.print(line)
    audio, storage, gateway = found["audio"], found["storage"], found["gateway"]
    lines = [*(worker_lines(audio) if audio else ()), *(storage_lines(storage) if storage else ())]
    if gateway:
        lines += [gateway_line(gateway), files_gateway_line(gateway["files"])]
    for line in lines:
        console.print(line, soft_wrap=True)
    for worker in found["workers"]:
        if not worker["sink_available"]:
            console.print(f"worker {worker['pid']} waits for ClickHouse or the object store", style="bold")
    for problem in found["problems"]:
        console.print(f"problem: {problem}", style="bold red", markup=False, soft_wrap=True)
