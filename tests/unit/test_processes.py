"""Every process that compose starts gets settings of its own."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from compose.local.stack import LocalStack
from compose.processes import Processes
from compose.settings import Settings, load
from compose.stream_processes import settings_of_each

STREAMS = ["traffic", "audio", "ai", "files"]


def test_streams_side_by_side_have_ports_side_by_side() -> None:
    each = settings_of_each(Settings(worker_port=9100), STREAMS)
    assert [(name, own.worker_port) for name, own in each] == [
        (stream, 9100 + number) for number, stream in enumerate(STREAMS)
    ]
    free = settings_of_each(Settings(worker_port=0), STREAMS)
    assert [own.worker_port for _, own in free] == [0] * len(STREAMS)


@pytest.mark.parametrize("port", [9100, 0])
def test_a_worker_listens_where_it_is_asked_for_its_readiness(port: int) -> None:
    processes = Processes(Settings(gateway_port=9000, worker_port=port), STREAMS)
    ports = [load(child.environ).worker_port for child in processes.children[1:]]
    assert len(set(ports)) == len(STREAMS)
    assert 0 not in ports
    if port:
        assert ports == [9100, 9101, 9102, 9103]


class _WithoutTopic(BaseHTTPRequestHandler):
    """A gateway whose topic of events is not there."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_without_traffic_a_gateway_needs_no_topic_of_events() -> None:
    with HTTPServer(("127.0.0.1", 0), _WithoutTopic) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        settings = Settings(gateway_port=server.server_port)
        assert Processes(settings, ["files"]).waiting_for() == ["worker files"]
        assert Processes(settings, ["traffic", "files"]).waiting_for() == ["gateway", "worker traffic", "worker files"]
        server.shutdown()


def test_a_stack_downloads_into_the_cache_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICEWAY_CACHE_DIR", str(tmp_path / "cache"))
    stacks = [LocalStack.of(load()), LocalStack.on_free_ports(tmp_path)]
    assert [stack.settings().cache_dir for stack in stacks] == [tmp_path / "cache"] * 2
    assert [stack.kafka.cache_dir for stack in stacks] == [tmp_path / "cache"] * 2
