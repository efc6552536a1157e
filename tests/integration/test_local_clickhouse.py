"""The local ClickHouse front serves unmodified clients as a ClickHouse server does."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
import lz4.frame
import numpy as np
import psutil
import pyarrow as pa
import pytest
from backports import zstd
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from compose.local.clickhouse import ClickHouse
from compose.local.errors import LocalStackError
from compose.local.process import free_port
from compose.local.stack import LocalStack
from tests.disks import small_disk

pytestmark = pytest.mark.stack


def _client(server: ClickHouse, **options: Any) -> Client:
    return clickhouse_connect.get_client(host="127.0.0.1", port=server.port, **options)


@pytest.fixture
def client(stack: LocalStack) -> Iterator[Client]:
    with _client(stack.clickhouse) as client:
        yield client


@pytest.fixture
def table(client: Client) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex}"
    client.command(
        f"CREATE TABLE {name} (a UInt64, s String) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    yield name
    client.command(f"DROP TABLE {name}")


def _post(server: ClickHouse, body: bytes = b"", headers: dict[str, str] | None = None, **query: str) -> Any:
    """What curl would do; gives status, body and headers."""
    request = urllib.request.Request(f"{server.url}/?{urlencode(query)}", data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def _count(client: Client, table: str) -> int:
    return int(client.query(f"SELECT count() FROM {table}").result_rows[0][0])


def test_settings_of_concurrent_requests_stay_apart(stack: LocalStack) -> None:
    def ask(number: int) -> set[tuple[str, str]]:
        seen = set()
        with _client(stack.clickhouse, settings={"max_block_size": 1000 + number}) as own:
            for turn in range(40):
                rows = own.query(
                    "SELECT toString(getSetting('max_block_size')), toString(getSetting('max_threads')), sleep(0.002)",
                    settings={"max_threads": 1 + (number + turn) % 7},
                ).result_rows
                seen.add((rows[0][0], str(int(rows[0][1]) - (number + turn) % 7)))
        return seen

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert answers == [{(str(1000 + number), "1")} for number in range(8)]
    _, body, _ = _post(
        stack.clickhouse, b"SELECT count() FROM system.settings WHERE changed AND name = 'max_block_size'"
    )
    assert body == b"0\n"


def test_one_slow_query_does_not_hold_up_others(stack: LocalStack, client: Client) -> None:
    with ThreadPoolExecutor(1) as pool, _client(stack.clickhouse) as other:
        slow = pool.submit(other.query, "SELECT sleep(3)")
        for _ in range(20):
            client.query("SELECT 1")
        assert not slow.done()
        slow.result(60)


def test_set_lasts_for_its_session_alone(stack: LocalStack) -> None:
    with _client(stack.clickhouse) as one, _client(stack.clickhouse) as two:
        one.command("SET max_block_size = 77")
        ask = "SELECT toUInt64(getSetting('max_block_size'))"
        assert one.query(ask).result_rows == [(77,)]
        # A setting of one request wins over the session's, and is gone after it.
        assert one.query(ask, settings={"max_block_size": 78}).result_rows == [(78,)]
        assert one.query(ask).result_rows == [(77,)]
        assert two.query(ask).result_rows != [(77,)]


def test_rows_come_back_as_they_went_in(client: Client, table: str) -> None:
    rows = [(n, f"row {n} 'quoted' \t \\ ü") for n in range(1000)]
    summary = client.insert(table, rows, column_names=["a", "s"])
    assert summary.written_rows == 1000
    assert client.query(f"SELECT * FROM {table} ORDER BY a").result_rows == rows
    assert client.query_arrow(f"SELECT a FROM {table} ORDER BY a")["a"].to_pylist() == list(range(1000))
    assert client.query(f"SELECT * FROM {table} WHERE a > 5000").result_rows == []


@pytest.mark.parametrize("text", ["plain", "tab\tline\nend", "back\\slash 'quote' \"double\"", "\\n \\N ü ☃", ""])
def test_parameters_arrive_unchanged(client: Client, text: str) -> None:
    query = "SELECT {text:String}, {list:Array(String)}, {many:UInt64}"
    values = {"text": text, "list": [text, "x"], "many": 2**63}
    assert client.query(query, parameters=values).result_rows == [(text, [text, "x"], 2**63)]


@pytest.mark.parametrize("compression", ["lz4", "zstd", "gzip", None])
def test_arrow_inserts_keep_every_row(client: Client, table: str, compression: str | None) -> None:
    rows = 200_000
    arrow = pa.table({"a": np.arange(rows, dtype=np.uint64), "s": np.arange(rows).astype(str)})
    with io.BytesIO() as sink, pa.ipc.new_file(sink, arrow.schema) as writer:
        writer.write_table(arrow, max_chunksize=10_000)
        writer.close()
        raw = sink.getvalue()
    pack = {"lz4": lz4.frame.compress, "zstd": zstd.compress, "gzip": gzip.compress, None: bytes}[compression]
    client.raw_insert(table, ["a", "s"], pack(raw), fmt="Arrow", compression=compression)
    assert client.query(f"SELECT count(), sum(a) FROM {table}").result_rows == [(rows, rows * (rows - 1) // 2)]


def _frames(pack: Callable[[bytes], bytes], frames: int) -> bytes:
    """Rows 0, 1, 2, ... as TSV, a frame of its own for each 10,000, cut in the middle of rows."""
    text = b"".join(b"%d\tx\n" % n for n in range(frames * 10_000))
    size = len(text) // frames + 1
    return b"".join(pack(text[at : at + size]) for at in range(0, len(text), size))


@pytest.mark.parametrize(
    ("encoding", "pack"), [("lz4", lz4.frame.compress), ("zstd", zstd.compress), ("gzip", gzip.compress)]
)
def test_every_frame_of_a_compressed_body_is_stored(
    stack: LocalStack, client: Client, table: str, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    headers = {"Content-Encoding": encoding}
    status, said, _ = _post(stack.clickhouse, _frames(pack, 7), headers, query=f"INSERT INTO {table} FORMAT TSV")
    assert (status, said) == (200, b"")
    assert client.query(f"SELECT count(), uniqExact(a) FROM {table}").result_rows == [(70_000, 70_000)]


@pytest.mark.parametrize("end", [-1, -5000])
def test_a_body_cut_short_stores_nothing(stack: LocalStack, client: Client, table: str, end: int) -> None:
    body = _frames(lz4.frame.compress, 7)[:end]
    query = f"INSERT INTO {table} FORMAT TSV"
    status, _, headers = _post(stack.clickhouse, body, {"Content-Encoding": "lz4"}, query=query)
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (400, "271")
    assert _count(client, table) == 0


def test_an_upload_broken_off_stores_nothing(stack: LocalStack, client: Client, table: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.clickhouse.port)
    connection.putrequest("POST", "/?" + urlencode({"query": f"INSERT INTO {table} FORMAT TSV"}))
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"1\tx\n")
    connection.close()
    client.query("SELECT sleep(0.2)")
    assert _count(client, table) == 0


@pytest.mark.parametrize("format", ["Native", "ArrowStream", "Parquet", "RowBinary", "JSONEachRow"])
def test_data_cut_short_stores_nothing(stack: LocalStack, client: Client, table: str, format: str) -> None:
    rows = _post(stack.clickhouse, b"SELECT number AS a, 'text' AS s FROM numbers(1000)", default_format=format)[1]
    query = f"INSERT INTO {table} FORMAT {format}"
    status, _, headers = _post(stack.clickhouse, rows[: len(rows) * 2 // 3], query=query)
    assert status >= 400
    assert headers["X-ClickHouse-Exception-Code"] is not None
    assert _count(client, table) == 0
    assert _post(stack.clickhouse, rows, query=query)[0] == 200
    assert _count(client, table) == 1000


def _refused(server: ClickHouse, table: str, rows: bytes, code: int) -> None:
    """The insert fails aloud: an exception with its code and name, and no summary that claims rows."""
    status, said, headers = _post(server, rows, query=f"INSERT INTO {table} FORMAT TSV")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (500, str(code)), said
    assert re.match(rb"Code: %d\. DB::Exception: " % code, said)
    assert "X-ClickHouse-Summary" not in headers


def test_an_insert_that_meets_too_many_parts_fails_aloud(stack: LocalStack, client: Client, table: str) -> None:
    client.command(f"ALTER TABLE {table} MODIFY SETTING parts_to_throw_insert = 1")
    client.command(f"SYSTEM STOP MERGES {table}")
    client.insert(table, [(1, "x")], column_names=["a", "s"])
    _refused(stack.clickhouse, table, b"2\tx\n", 252)
    with pytest.raises(DatabaseError, match="TOO_MANY_PARTS"):
        client.insert(table, [(3, "x")], column_names=["a", "s"])
    with pytest.raises(DatabaseError, match="TOO_MANY_PARTS"):
        client.insert_arrow(table, pa.table({"a": [4], "s": ["x"]}))
    assert client.query(f"SELECT a FROM {table}").result_rows == [(1,)]


def test_an_insert_over_too_many_partitions_fails_aloud(stack: LocalStack, client: Client) -> None:
    table = f"t_{uuid.uuid4().hex}"
    client.command(f"CREATE TABLE {table} (a UInt64) ENGINE = MergeTree ORDER BY a PARTITION BY a")
    _refused(stack.clickhouse, table, b"".join(b"%d\n" % n for n in range(150)), 252)
    assert _count(client, table) == 0


def test_an_insert_that_a_view_behind_the_table_refuses_fails_aloud(stack: LocalStack, client: Client) -> None:
    table = f"t_{uuid.uuid4().hex}"
    client.command(f"CREATE TABLE {table} (a UInt64) ENGINE = Null")
    client.command(f"CREATE TABLE {table}_to (a UInt8) ENGINE = MergeTree ORDER BY a")
    client.command(
        f"CREATE MATERIALIZED VIEW {table}_view TO {table}_to AS SELECT throwIf(a = 7, 'seven') AS a FROM {table}"
    )
    _refused(stack.clickhouse, table, b"7\n", 395)
    assert _count(client, f"{table}_to") == 0


def test_an_insert_into_a_full_disk_fails_aloud(tmp_path: Path) -> None:
    """Both places fill up: the one where a body is put down, and the one where rows are written."""
    # Signs that have a meaning in a file pattern.
    with small_disk(tmp_path / "a {b,c}* [d]", "48m") as disk, _running(ClickHouse(disk, free_port())) as server:
        text = "a UInt64, s String DEFAULT randomString(a)"
        assert _post(server, f"CREATE TABLE t ({text}) ENGINE = MergeTree ORDER BY a".encode())[0] == 200
        assert _post(server, b"1000\n", query="INSERT INTO t (a) FORMAT TSV")[0] == 200
        _refused(server, "t (a)", b"1000000\n" * 100, 243)
        _refused(server, "t (a)", b"1\n" * (60 << 19), 75)
        assert _post(server, b"SELECT count() FROM t")[1] == b"1\n"


@contextmanager
def _running(server: ClickHouse) -> Iterator[ClickHouse]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_the_same_token_is_stored_once(client: Client, table: str) -> None:
    for _ in range(2):
        client.insert(table, [(1, "x")], column_names=["a", "s"], settings={"insert_deduplication_token": "one"})
    client.insert(table, [(1, "x")], column_names=["a", "s"], settings={"insert_deduplication_token": "two"})
    assert _count(client, table) == 2


def test_a_large_insert_does_not_fill_memory(stack: LocalStack, client: Client, table: str, tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.tsv", 1_500_000
    line = b"x" * 200
    with path.open("wb") as file:
        for start in range(0, rows, 10_000):
            file.write(b"".join(b"%d\t%b\n" % (n, line) for n in range(start, start + 10_000)))
    assert stack.clickhouse.pid is not None
    process = psutil.Process(stack.clickhouse.pid)
    before = process.memory_info().rss
    peak = 0
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        # Small blocks, so that what the engine itself holds does not hide what the front does.
        small = {"max_insert_block_size": 50_000, "min_insert_block_size_rows": 50_000}
        insert = pool.submit(client.raw_insert, table, ["a", "s"], file, settings=small, fmt="TSV")
        while wait([insert], timeout=0.05).not_done:
            peak = max(peak, process.memory_info().rss)
        insert.result(0)
    assert _count(client, table) == rows
    assert peak - before < 420e6, f"{(peak - before) / 1e6:.0f} MB for {os.path.getsize(path) / 1e6:.0f} MB of rows"


def test_errors_carry_clickhouses_code(stack: LocalStack, client: Client, table: str) -> None:
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE") as raised:
        client.query("SELECT * FROM no_such_table")
    assert raised.value.code == 60
    with pytest.raises(DatabaseError, match="NO_SUCH_COLUMN"):
        client.raw_insert(table, ["nope"], b"1\n", fmt="TSV")
    with pytest.raises(DatabaseError, match="CANNOT_PARSE"):
        client.raw_insert(table, ["a", "s"], b"one\tx\n", fmt="TSV")
    assert _count(client, table) == 0
    status, said, headers = _post(stack.clickhouse, b"SELECT 1", no_such_setting="1")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (404, "115")
    assert re.fullmatch(rb"Code: 115\. DB::Exception: .*\(UNKNOWN_SETTING\) \(version [0-9.]+\)\n", said, re.DOTALL)


def test_an_error_in_the_middle_of_a_stream_is_seen(stack: LocalStack, client: Client) -> None:
    query = "SELECT number, throwIf(number = 3000000, 'too far') FROM numbers(10000000)"
    with pytest.raises(StreamFailureError, match="too far"), client.query_row_block_stream(query) as blocks:
        for _ in blocks:
            pass
    with pytest.raises(http.client.IncompleteRead):
        _post(stack.clickhouse, query.encode() + b" FORMAT TSV")


def test_streaming_gives_all_rows(client: Client) -> None:
    with client.query_row_block_stream("SELECT number FROM numbers(3000000)") as blocks:
        assert sum(len(block) for block in blocks) == 3_000_000


def test_curl_gets_what_it_would_from_a_server(stack: LocalStack, client: Client, table: str) -> None:
    server = stack.clickhouse
    url = f"{server.url}/?query=SELECT%201%20AS%20x%20FORMAT%20JSONEachRow"
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert (answer.read(), answer.headers["X-ClickHouse-Format"]) == (b'{"x":1}\n', "JSONEachRow")
        assert answer.headers["X-ClickHouse-Timezone"] in ("UTC", "Etc/UTC")
        assert json.loads(answer.headers["X-ClickHouse-Summary"])["result_rows"] == "1"
    assert _post(server, b"SELECT 1, 'a'")[1] == b"1\ta\n"
    assert _post(server, b"SELECT 1 AS x", default_format="CSVWithNames")[1] == b'"x"\n1\n'
    assert _post(server, b"1\tx\n2\ty\n", query=f"INSERT INTO {table} FORMAT TSV")[0] == 200
    assert _post(server, f"INSERT INTO {table} FORMAT JSONEachRow\n".encode() + b'{"a": 3, "s": "z"}')[0] == 200
    assert _post(server, f"INSERT INTO {table} VALUES (4, 'v'), (5, upper('w'))".encode())[0] == 200
    assert _post(server, f"SELECT s FROM {table} ORDER BY a FORMAT TSV".encode())[1] == b"x\ny\nz\nv\nW\n"
    assert _post(server, b"SELECT 1; SELECT 2")[2]["X-ClickHouse-Exception-Code"] == "62"
    # A format with head and foot is whole, however many blocks the engine made of it.
    whole = json.loads(_post(server, b"SELECT number FROM numbers(200000) FORMAT JSON")[1])
    assert len(whole["data"]) == 200_000


def test_a_folder_that_the_engine_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match=r"question mark .*SLUICEWAY_DATA_DIR"):
        ClickHouse(tmp_path / "what?", free_port()).start()
    assert not (tmp_path / "what").exists()


def test_a_configured_password_is_asked_for(tmp_path: Path) -> None:
    with _running(ClickHouse(tmp_path, free_port(), user="analyst", password="quite secret")) as server:
        with _client(server, username="analyst", password="quite secret") as client:
            assert client.query("SELECT 1").result_rows == [(1,)]
        with pytest.raises(DatabaseError, match="516"):
            _client(server, username="analyst", password="wrong")
        for credentials in ({}, {"user": "default", "password": "quite secret"}):
            status, _, headers = _post(server, b"SELECT 1", **credentials)
            assert (status, headers["X-ClickHouse-Exception-Code"]) == (403, "516")
        assert (
            _post(server, b"SELECT 1", {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": "quite secret"})[0] == 200
        )
        assert server.pid is not None
        assert "quite secret" not in " ".join(psutil.Process(server.pid).cmdline())
