"""The local journal: tasks that a gateway took while Kafka was away, kept in SQLite until Kafka has them.

A task is on disk (WAL, synced at every commit) before its submission is answered. Each step of its way is one commit, so
that a gateway that dies at any point goes on from the step before:

    waiting -> running -> ended | cancelled

and from any of these but running it is sent, after which it is kept a while for those who ask before its worker knows it.
One process owns a file. Every method may block for a disk's time: call them from one thread.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from topics.ai import Outcome, Submit

#: Journals of one folder, one a process.
FILES_MAX = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    submit BLOB NOT NULL,
    state TEXT NOT NULL,
    starts INTEGER NOT NULL DEFAULT 0,
    outcome BLOB,
    taken_ms INTEGER NOT NULL,
    sent_ms INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS tasks_state ON tasks (state, number) WHERE sent_ms IS NULL;
"""
_COLUMNS = "task_id, digest, submit, state, starts, outcome, taken_ms, sent_ms"


class JournalFull(Exception):
    """The journal takes no more: its bound of rows or bytes is reached, or the disk is."""


class State(StrEnum):
    """How far a journaled task is."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    CANCELLED = "cancelled"


class Entry(NamedTuple):
    """One task. `starts` counts how often work on it began; `outcome` is there once it has ended, `sent_ms` once Kafka has
    what is to be said of it."""

    task_id: str
    digest: str
    submit: Submit
    state: State
    starts: int
    outcome: Outcome | None
    taken_ms: int
    sent_ms: int | None


class Journal:
    """The tasks of one file. `rows_max` and `bytes_max` bound what waits for Kafka, outcomes included."""

    def __init__(self, folder: Path, rows_max: int, bytes_max: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = _own_file(folder)
        self._rows_max, self._bytes_max = rows_max, bytes_max
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)
        # Work that was under way in another life came to nothing.
        self._db.execute("UPDATE tasks SET state = ? WHERE state = ?", (State.WAITING, State.RUNNING))
        self.rows, self.bytes = self._db.execute(f"SELECT {_SIZE} FROM tasks WHERE sent_ms IS NULL").fetchone()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
        os.close(self._lock)

    def take(self, submit: Submit, digest: str, now_ms: int) -> Entry:
        """Keep a task; on disk when this returns. One that is here already is left as it is: compare digests.

        Raises JournalFull.
        """
        known = self.get(submit.task_id)
        if known is not None:
            return known
        data = msgspec.json.encode(submit)
        if self.rows >= self._rows_max or self.bytes + len(data) > self._bytes_max:
            raise JournalFull(f"the journal holds {self.rows} tasks of {self.bytes} bytes, and takes no more")
        with self._commit():
            self._db.execute(
                "INSERT INTO tasks (task_id, digest, submit, state, taken_ms) VALUES (?, ?, ?, ?, ?)",
                (submit.task_id, digest, data, State.WAITING, now_ms),
            )
        self.rows += 1
        self.bytes += len(data)
        return Entry(submit.task_id, digest, submit, State.WAITING, 0, None, now_ms, None)

    def begin(self, task_id: str) -> int:
        """Work on a waiting task begins; how often it has, this time included."""
        with self._commit():
            self._db.execute(
                "UPDATE tasks SET state = ?, starts = starts + 1 WHERE task_id = ? AND state = ?",
                (State.RUNNING, task_id, State.WAITING),
            )
        return int(self._db.execute("SELECT starts FROM tasks WHERE task_id = ?", (task_id,)).fetchone()[0])

    def end(self, outcome: Outcome) -> None:
        """A running task has ended; of one that was cancelled meanwhile this changes nothing."""
        data = msgspec.json.encode(outcome)
        with self._commit():
            changed = self._db.execute(
                "UPDATE tasks SET state = ?, outcome = ? WHERE task_id = ? AND state = ?",
                (State.ENDED, data, outcome.task_id, State.RUNNING),
            ).rowcount
        self.bytes += len(data) * changed

    def cancel(self, task_id: str) -> bool:
        """Nobody wants its answer any more; False when it has ended already, or Kafka has it."""
        with self._commit():
            changed = self._db.execute(
                "UPDATE tasks SET state = ? WHERE task_id = ? AND state IN (?, ?) AND sent_ms IS NULL",
                (State.CANCELLED, task_id, State.WAITING, State.RUNNING),
            ).rowcount
        return changed == 1

    def sent(self, entry: Entry, now_ms: int) -> bool:
        """Kafka has what is to be said of it as `entry` was; False when it was cancelled meanwhile, which is yet to be
        said."""
        task_id = entry.task_id
        (size,) = self._db.execute(f"SELECT {_ONE_SIZE} FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
        with self._commit():
            changed = self._db.execute(
                "UPDATE tasks SET sent_ms = ? WHERE task_id = ? AND state = ? AND sent_ms IS NULL",
                (now_ms, task_id, entry.state),
            ).rowcount
        self.rows -= changed
        self.bytes -= size * changed
        return changed == 1

    def forget(self, sent_before_ms: int) -> None:
        """Remove what was sent before that."""
        with self._commit():
            self._db.execute("DELETE FROM tasks WHERE sent_ms < ?", (sent_before_ms,))

    def get(self, task_id: str) -> Entry | None:
        """A task, if it is here."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
        return None if row is None else _entry(row)

    def newest(self, user: str | None, before: tuple[int, str] | None, limit: int) -> list[Entry]:
        """The newest tasks, or a user's, of which Kafka does not know, taken before a time and id."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM tasks WHERE sent_ms IS NULL "
            "AND (?1 IS NULL OR json_extract(CAST(submit AS TEXT), '$.user') = ?1) "
            "AND (?2 IS NULL OR (taken_ms, task_id) < (?2, ?3)) ORDER BY taken_ms DESC, task_id DESC LIMIT ?4",
            (user, *(before or (None, None)), limit),
        )
        return [_entry(row) for row in rows]

    def unsent(self, state: State, limit: int) -> list[Entry]:
        """The oldest tasks in a state of which Kafka does not know."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM tasks WHERE state = ? AND sent_ms IS NULL ORDER BY number LIMIT ?", (state, limit)
        )
        return [_entry(row) for row in rows]

    @contextmanager
    def _commit(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise JournalFull(f"the journal {self.path} cannot be written: {error}") from error


_ONE_SIZE = "length(submit) + coalesce(length(outcome), 0)"
_SIZE = f"count(*), coalesce(sum({_ONE_SIZE}), 0)"


def _entry(row: tuple[str, str, bytes, str, int, bytes | None, int, int | None]) -> Entry:
    task_id, digest, submit, state, starts, outcome, taken_ms, sent_ms = row
    return Entry(
        task_id,
        digest,
        msgspec.json.decode(submit, type=Submit),
        State(state),
        starts,
        None if outcome is None else msgspec.json.decode(outcome, type=Outcome),
        taken_ms,
        sent_ms,
    )


def _own_file(folder: Path) -> tuple[Path, int]:
    """The first file of the folder that no other process has, and the lock on it: a gateway that starts again finds its
    own again, and two gateways of one folder have one each."""
    for number in range(FILES_MAX):
        path = folder / f"journal-{number}.sqlite"
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return path, lock
    raise JournalFull(f"{FILES_MAX} gateways use {folder} already; give this one a data folder of its own")
