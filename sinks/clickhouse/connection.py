"""One connection to ClickHouse over HTTP, blocking, used by one thread at a time; its errors are the sink's two."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error, ProgrammingError
from clickhouse_connect.driver.summary import QuerySummary

from sinks.errors import SinkRefused, SinkUnavailable

# Server errors that the same request meets again however often it is sent: names, types and values that do not fit.
# Every other error is waited out, as waiting loses nothing and refusing might.
_PERMANENT = {
    6: "CANNOT_PARSE_TEXT",
    7: "INCORRECT_NUMBER_OF_COLUMNS",
    8: "THERE_IS_NO_COLUMN",
    10: "NOT_FOUND_COLUMN_IN_BLOCK",
    16: "NO_SUCH_COLUMN_IN_TABLE",
    27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
    32: "ATTEMPT_TO_READ_AFTER_EOF",
    33: "CANNOT_READ_ALL_DATA",
    36: "BAD_ARGUMENTS",
    43: "ILLEGAL_TYPE_OF_ARGUMENT",
    44: "ILLEGAL_COLUMN",
    46: "UNKNOWN_FUNCTION",
    47: "UNKNOWN_IDENTIFIER",
    48: "NOT_IMPLEMENTED",
    50: "UNKNOWN_TYPE",
    53: "TYPE_MISMATCH",
    60: "UNKNOWN_TABLE",
    62: "SYNTAX_ERROR",
    69: "ARGUMENT_OUT_OF_BOUND",
    70: "CANNOT_CONVERT_TYPE",
    81: "UNKNOWN_DATABASE",
    115: "UNKNOWN_SETTING",
    117: "INCORRECT_DATA",
    131: "TOO_LARGE_STRING_SIZE",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    407: "DECIMAL_OVERFLOW",
}

_NO_CONNECTION = re.compile(r"HTTPS?ConnectionPool\(host='([^']*)', port=(\d+)\).*\[Errno -?\d+\] ([^\"')]*)")

# The server acknowledges an insert only once its part is written, not when it is buffered; and it writes a block that it
# has seen before, so that no rows written means that something is wrong.
_INSERT_SETTINGS = {"async_insert": 0, "insert_deduplicate": 0}


@dataclass(frozen=True)
class Server:
    """Where ClickHouse is, as whom to speak to it, and the database of every table. `compress` suits a far server."""

    url: str
    database: str
    user: str = "default"
    password: str = field(default="", repr=False)
    compress: bool = False
    connect_timeout_s: float = 5.0
    timeout_s: float = 60.0

    def qualified(self, table: str) -> str:
        """The table's name with its database, quoted."""
        return f"`{self.database}`.`{table}`"


class Connection:
    """A lazily opened client. Raises SinkUnavailable or SinkRefused from every call."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._client: Client | None = None

    def insert(self, table: str, data: pa.Table) -> None:
        """Insert the rows of `data`, column by name. On return they are in a part on the server's disk."""
        what = f"insert into {table}"
        with _translated(what):
            summary = self._open().raw_insert(
                self.server.qualified(table),
                data.column_names,
                _arrow_stream(data, "lz4" if self.server.compress else None),
                settings=_INSERT_SETTINGS,
                fmt="ArrowStream",
            )
        if summary.written_rows == 0:
            _distrust(what, f"it reports none of {data.num_rows} rows written")

    def command(self, sql: str) -> None:
        """Run one statement that returns no rows."""
        what = sql.split("\n", 1)[0]
        with _translated(what):
            answer = self._open().command(sql)
        if isinstance(answer, QuerySummary) and "written_rows" not in answer.summary:
            _distrust(what, "it has no end")

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """The rows of one query; `parameters` fill `{name:Type}` placeholders."""
        what = sql.strip().split("\n", 1)[0][:60]
        with _translated(what):
            answer = self._open().query(sql, parameters=dict(parameters or {}))
        rows: Sequence[Sequence[Any]] = answer.result_rows
        if not rows and ("read_rows" not in answer.summary or answer.summary.get("result_rows", "0") != "0"):
            _distrust(what, "it has no end")
        return rows

    def close(self) -> None:
        """Drop the connection; a later call opens it again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _open(self) -> Client:
        if self._client is None:
            url = urlsplit(self.server.url)
            self._client = clickhouse_connect.get_client(
                interface=url.scheme,
                host=url.hostname,
                port=url.port or (8443 if url.scheme == "https" else 8123),
                proxy_path=url.path,
                username=self.server.user,
                password=self.server.password,
                compress=self.server.compress,
                connect_timeout=self.server.connect_timeout_s,
                send_receive_timeout=self.server.timeout_s,
                autogenerate_session_id=False,
                tz_mode="aware",
            )
        return self._client


def _arrow_stream(data: pa.Table, compression: str | None) -> pa.Buffer:
    # A column whose chunks carry different dictionaries would need replacement messages, which not every reader of the
    # format honours.
    out = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(out, data.schema, options=options) as writer:
        writer.write_table(data.unify_dictionaries())
    # As a buffer, not bytes: the client then sends it as it is, and the statement in the URL.
    return out.getvalue()


def _told(error: ClickHouseError) -> str:
    """The error's own words, or one line for what urllib3 says in five."""
    found = _NO_CONNECTION.search(str(error))
    return f"no connection to {found[1]}:{found[2]} ({found[3]})" if found else str(error)[:600]


def _distrust(what: str, found: str) -> NoReturn:
    # A connection that breaks inside the head of an answer looks, to the client, like an empty answer with status 200.
    raise SinkUnavailable(f"ClickHouse: {what}: the answer is not whole: {found}")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClickHouseError as error:
        code = error.code if isinstance(error, Error) else None
        message = f"ClickHouse: {what}: {_told(error)}"
        # The client itself refuses, without a server code, what it cannot even send.
        if code in _PERMANENT or (code is None and isinstance(error, ProgrammingError)):
            raise SinkRefused(message) from error
        raise SinkUnavailable(message) from error
