"""SIGTERM ends a worker cleanly and in time in every state: while it waits, joins, restores or flushes, whatever is away."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient

from compose.local.process import free_port
from compose.local.server import Server
from compose.local.stack import LocalStack
from compose.settings import Settings
from compose.stream_processes import stop_within_s
from tests.chaos.driver import PARTITIONS, Run, chaos_run, made_up
from tests.chaos.source import GROUP
from tests.chaos.workers import SUPERVISED, Worker

pytestmark = pytest.mark.stack

LIMIT_S = 10.0
#: A last flush that is given up sooner makes the test shorter, and the limit by as much.
DEADLINE_S = 2.0
SHORT_LIMIT_S = LIMIT_S - (Settings.flush_deadline_s - DEADLINE_S)


def test_the_limits_of_all_steps_fit_the_promise() -> None:
    assert stop_within_s(Settings()) < LIMIT_S


def _ended(worker: Worker, code: int, seconds: float, limit_s: float) -> None:
    print(f"stop: {seconds:.1f} s of {limit_s:.1f}")
    assert code == 0, worker.log()
    assert seconds < limit_s, worker.log()


@contextmanager
def _answerless(hangs: bool) -> Iterator[tuple[int, threading.Event]]:
    """A port where connections are taken and held, or taken and broken; the event tells that one was."""
    asked, held = threading.Event(), []

    def serve() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return
            asked.set()
            if not hangs:
                held.pop().close()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], asked
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@pytest.mark.parametrize("hangs", [False, True], ids=["breaks off", "hangs"])
@pytest.mark.parametrize("server", ["ClickHouse", "Kafka"])
def test_while_it_waits_for_a_server(stack: LocalStack, tmp_path: Path, server: str, hangs: bool) -> None:
    with _answerless(hangs) as (port, asked):
        where = {
            "ClickHouse": {"clickhouse_url": f"http://127.0.0.1:{port}"},
            "Kafka": {"kafka_bootstrap": f"127.0.0.1:{port}"},
        }
        settings = stack.settings(data_dir=tmp_path, worker_port=free_port(), **where[server])
        worker = Worker("waiting", settings, SUPERVISED, revive=False).start()
        try:
            assert asked.wait(30), worker.log()
            code, seconds = worker.drain()
        finally:
            worker.kill()
    _ended(worker, code, seconds, SHORT_LIMIT_S)
    assert worker.log().count("\n") < 10, worker.log()


@pytest.fixture(scope="module")
def run(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One topic for all: each test's worker goes on where that of the one before was stopped."""
    with chaos_run(stack, tmp_path_factory.mktemp("stop"), flush_deadline_s=DEADLINE_S) as run:
        yield run


def _nothing(run: Run) -> None:
    """All servers stay."""


def _hangs(server: Callable[[LocalStack], Server]) -> Callable[[Run], None]:
    return lambda run: server(run.stack).signal(signal.SIGSTOP)


def _dies(server: Callable[[LocalStack], Server]) -> Callable[[Run], None]:
    return lambda run: server(run.stack).kill()


def _kafka(stack: LocalStack) -> Server:
    return stack.kafka


def _clickhouse(stack: LocalStack) -> Server:
    return stack.clickhouse


@pytest.mark.parametrize(
    ("point", "befall"),
    [
        pytest.param("begin.before=stop@1", _nothing, id="restoring"),
        pytest.param("begin.before=stop@1", _hangs(_kafka), id="restoring, Kafka hangs"),
        pytest.param("begin.before=stop@1", _dies(_kafka), id="restoring, Kafka gone", marks=pytest.mark.long),
        pytest.param("raw.before=stop@2", _dies(_clickhouse), id="flushing, ClickHouse gone"),
        pytest.param("raw.before=stop@2", _hangs(_clickhouse), id="flushing, ClickHouse hangs", marks=pytest.mark.long),
        pytest.param("commit.before=stop@6", _hangs(_kafka), id="flushing, Kafka hangs"),
        pytest.param("commit.before=stop@6", _dies(_kafka), id="flushing, Kafka gone", marks=pytest.mark.long),
    ],
)
def test_in_the_middle_of_its_work(run: Run, point: str, befall: Callable[[Run], None]) -> None:
    """The worker freezes itself at the point, so that the server goes and the signal comes in just that state."""
    with run.feeder(made_up(seed=5, count=2_000), rate_s=100_000) as feeder:
        feeder.finish()
    worker = run.worker(revive=False, faults=point)
    run.until(lambda: worker.frozen, f"frozen at {point}")
    with ExitStack() as mended:
        for server in run.stack.servers:
            mended.callback(server.start)
            mended.callback(server.signal, signal.SIGCONT)
        befall(run)
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGCONT)
        started = time.monotonic()
        code, seconds = worker.ended(30), time.monotonic() - started
    _ended(worker, code, seconds, SHORT_LIMIT_S)


def test_with_nothing_to_do_while_kafka_hangs(run: Run) -> None:
    worker = run.worker(command=SUPERVISED, revive=False, flush_deadline_s=Settings.flush_deadline_s)
    run.until(lambda: worker.owns() == set(range(PARTITIONS)), "the worker owns all")
    run.wait_drained()
    run.stack.kafka.signal(signal.SIGSTOP)
    try:
        code, seconds = worker.drain()
    finally:
        run.stack.kafka.signal(signal.SIGCONT)
    _ended(worker, code, seconds, LIMIT_S)


def test_before_the_first_assignment(run: Run) -> None:
    """A member that is frozen holds up the rebalance until its session ends, and with it whoever joins."""
    # Longer than another worker takes to start on a busy machine: once the session is over, nothing is waited for.
    owner = run.worker(session_timeout_s=30.0)
    run.until(lambda: owner.owns() == set(range(PARTITIONS)), "the first worker owns all")
    owner.signal(signal.SIGSTOP)
    try:
        joining = run.worker(command=SUPERVISED, revive=False, session_timeout_s=6.0)
        run.until(lambda: _rebalancing(run), "a rebalance waits for the frozen member")
        code, seconds = joining.drain()
        _ended(joining, code, seconds, SHORT_LIMIT_S)
    finally:
        owner.signal(signal.SIGCONT)
    assert owner.drain()[0] == 0


def _rebalancing(run: Run) -> bool:
    admin = AdminClient({"bootstrap.servers": run.source.bootstrap, "log_level": 0})
    state = admin.describe_consumer_groups([GROUP], request_timeout=10)[GROUP].result(15).state
    return bool(state == ConsumerGroupState.PREPARING_REBALANCING)
