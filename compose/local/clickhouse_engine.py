"""ClickHouse's engine in this process: every request runs on a connection of its own, so no setting outlives it."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import chdb

from compose.local.clickhouse_query import Statement

COPY_BYTES = 1 << 20

# Formats whose chunks make one stream when they are put one after the other. The engine repeats the head and foot of
# others (JSON, Arrow, CSVWithNames, ...) in every chunk; those are made whole.
_STREAMED = {
    "native", "rowbinary", "tabseparated", "tsv", "tabseparatedraw", "tsvraw", "raw", "csv", "jsoneachrow", "jsonlines",
    "ndjson", "jsoncompacteachrow", "jsonstringseachrow", "lineasstring", "msgpack", "values", "null",
}  # fmt: skip

_CODE = re.compile(r"Code: (\d+)\. ")
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
UNKNOWN_SETTING = 115
UNKNOWN_EXCEPTION = 1002


class EngineError(RuntimeError):
    """An exception of the engine: its text as ClickHouse prints it, and its number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Work:
    """One request: the statement, its data, and all that holds for it alone."""

    statement: Statement
    format: str
    data: IO[bytes]
    settings: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    database: str = ""
    session: str = ""


@dataclass
class _Session:
    """The SET and USE statements of one client session, said again at the start of each of its requests."""

    said: list[str] = field(default_factory=list)
    used_at: float = 0.0


class Engine:
    """chdb on one folder. `run` may be called from any number of threads at once; inserts use files in `scratch`."""

    def __init__(self, folder: Path, scratch: Path, session_timeout_s: float = 3600.0) -> None:
        self._folder = str(folder)
        self._scratch = str(scratch)
        # The engine lives as long as one connection does.
        self._root = chdb.connect(self._folder)
        self._sessions: dict[str, _Session] = {}
        self._session_timeout_s = session_timeout_s
        self._lock = threading.Lock()
        version, self.timezone = self._root.query("SELECT version(), timezone()", "TSV").bytes().decode().split()
        self._version_note = f" (version {version})"

    def close(self) -> None:
        """Close the last connection, and with it the engine."""
        self._root.close()

    def run(self, work: Work, emit: Callable[[bytes], None]) -> dict[str, int]:
        """Run one statement, give its result to `emit` piece by piece, and return the figures of the summary.

        Raises EngineError; whatever `emit` raises cancels a streaming read.
        """
        connection = chdb.connect(self._folder)
        try:
            self._prepare(connection, work)
            figures = self._execute(connection, work, emit)
            if work.statement.kind == "set" and work.session:
                self._remember(work)
            return figures
        except RuntimeError as error:
            raise self._as_engine_error(error) from None
        finally:
            connection.close()

    def _prepare(self, connection: Any, work: Work) -> None:
        for said in self._session_statements(work.session):
            connection.query(said)
        if work.statement.kind == "insert":
            # Read as a stream: mapped into memory, or parsed in parallel, a long file would take as much memory.
            connection.query("SET storage_file_read_method = 'pread', input_format_parallel_parsing = 0")
        if work.database:
            connection.query(f"USE {_quoted(work.database, '`')}")
        if work.settings:
            connection.query(
                "SET " + ", ".join(f"{_checked(k)} = {_quoted(v, chr(39))}" for k, v in work.settings.items())
            )

    def _execute(self, connection: Any, work: Work, emit: Callable[[bytes], None]) -> dict[str, int]:
        if work.statement.kind == "insert":
            return self._insert(connection, work)
        if work.statement.kind == "read" and work.format.lower() in _STREAMED:
            return _read(connection, work, emit)
        result = connection.query(work.statement.sql, work.format, params=work.parameters)
        emit(result.bytes())
        return _figures(result)

    def _insert(self, connection: Any, work: Work) -> dict[str, int]:
        """Insert from a file. The engine's own streaming insert hides errors of the write: it reports success.

        The file is named by its descriptor: a name in a folder would be read as a glob, and might match nothing.
        """
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            shutil.copyfileobj(work.data, file, COPY_BYTES)
            file.flush()
            file.seek(0)
            head, settings = work.statement.sql, work.statement.settings
            sql = f"{head} FROM INFILE '/dev/fd/{file.fileno()}' {settings} FORMAT {work.format}"
            return _figures(connection.query(sql, params=work.parameters))

    def _session_statements(self, name: str) -> list[str]:
        if not name:
            return []
        now = time.monotonic()
        with self._lock:
            for old in [n for n, s in self._sessions.items() if now - s.used_at > self._session_timeout_s]:
                del self._sessions[old]
            session = self._sessions.get(name)
            if session is None:
                return []
            session.used_at = now
            return list(session.said)

    def _remember(self, work: Work) -> None:
        with self._lock:
            session = self._sessions.setdefault(work.session, _Session())
            session.said.append(work.statement.sql)
            session.used_at = time.monotonic()

    def _as_engine_error(self, error: RuntimeError) -> EngineError:
        if isinstance(error, EngineError):
            return error
        text = str(error)
        found = _CODE.search(text)
        message = text[found.start() :] if found else text
        if "(version " not in message:
            message += self._version_note
        return EngineError(message, int(found[1]) if found else UNKNOWN_EXCEPTION)


def _figures(result: Any) -> dict[str, int]:
    return {
        "read_rows": result.storage_rows_read(),
        "read_bytes": result.storage_bytes_read(),
        "written_rows": result.rows_written(),
        "written_bytes": result.bytes_written(),
        "result_rows": result.rows_read(),
    }


def _read(connection: Any, work: Work, emit: Callable[[bytes], None]) -> dict[str, int]:
    rows = 0
    with connection.send_query(work.statement.sql, work.format, params=work.parameters) as stream:
        for chunk in stream:
            rows += chunk.rows_read()
            emit(chunk.bytes())
    return {"result_rows": rows}


def _checked(name: str) -> str:
    if not _SETTING_NAME.match(name):
        raise EngineError(f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)", UNKNOWN_SETTING)
    return name


def _quoted(text: str, quote: str) -> str:
    escaped = text.replace("\\", "\\\\").replace(quote, "\\" + quote)
    return f"{quote}{escaped}{quote}"
