"""The audio core in the shape that the runtime asks for, and what a session looks like from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from streams.audio import core, restoring, seqs
from streams.audio.clock import idle_wanted
from streams.audio.figures import of_memory, of_sessions, of_totals
from streams.audio.held import Budget, Shelf
from streams.audio.rows import Rows, status_name
from streams.audio.rules import AudioRules
from streams.audio.session import Session
from streams.audio.state import AudioState
from streams.runtime.fold import Materialisation, Position
from topics.records import Batch, Emit, Flush


class AudioFold:
    """Implements `streams.runtime.fold.Fold` over `core`."""

    def __init__(self, rules: AudioRules, budget: Budget) -> None:
        self.shelf = Shelf(budget)
        self.state = AudioState(rules, self.shelf)
        self.applied = 0
        self._budget = budget
        self._position = Position(0, 0)
        self._clock_ms = 0
        self._totals: Counter[str] = Counter()
        self._rows = Rows()
        self._shown = 0  # ClickHouse has all rows up to this version

    def restore(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """See `Fold`."""
        restoring.restore(self.state, records)

    def restored(self, position: Position) -> None:
        """See `Fold`."""
        restoring.restored(self.state, position.epoch, position.offset)
        self._rows = restoring.unmaterialised(self.state)
        self._position, self.applied = position, position.offset
        self._clock_ms, self._totals = self.state.clock_ms, Counter(self.state.totals)

    def step(self, batch: Batch) -> None:
        """See `Fold`."""
        core.step(self.state, batch)
        self.applied = batch.end

    def seal(self, position: Position) -> Flush:
        """See `Fold`."""
        flush = core.seal(self.state, position.offset, position.version)
        flush.token = (position, flush.token)
        return flush

    def committed(self, flush: Flush) -> None:
        """See `Fold`."""
        self._position, sealed = flush.token
        self._rows.update(sealed.rows)
        self._clock_ms, self._totals = sealed.clock_ms, sealed.totals

    def undone(self) -> Sequence[Any]:
        """See `Fold`."""
        return list(restoring.undone(self.state))

    def idle(self) -> Emit | None:
        """See `Fold`: while a session is open, the time decides when it is cut and ended."""
        if not idle_wanted(self.state):
            return None
        return Emit(self.state.rules.source, None, b"", [("type", b"idle")], self.state.rules.partition)

    def materialise(self) -> Materialisation | None:
        """See `Fold`."""
        tables = self._rows.tables()
        if not tables:
            self.state.materialised = max(self.state.materialised, self._position.version, self._shown)
            return None
        return Materialisation(self._position, tables, self._rows.newest)

    def materialised(self, done: Materialisation) -> None:
        """See `Fold`."""
        # Not the position's: after a restore the fold stands below the rows that it has to show.
        self._shown = done.token
        self._rows.forget(done.token)

    @property
    def open_rows(self) -> int:
        """See `Fold`."""
        return len(self.state.emits) + len(self.state.dead) + len(self.state.dirty)

    @property
    def unwritten_bytes(self) -> int:
        """See `Fold`: not counted, a session's row and those of its segments are small."""
        return 0

    def figures(self) -> Mapping[str, float]:
        """See `Fold`. Outcomes and clock are of what is committed."""
        return {
            "append_ms": float(self._clock_ms),
            **of_totals(self._totals),
            **of_sessions(self.state.sessions.values()),
            **of_memory(self.shelf, self._budget),
        }

    def session(self, session_id: str) -> Session | None:
        """A session as it is folded, committed or not."""
        return self.state.sessions.get(session_id)

    def described(self, session: Session) -> dict[str, Any]:
        """A session's state for those who ask the owner."""
        opened, recording = session.opened, session.recording
        return {
            "session_id": session.id,
            "status": status_name(session),
            "next_seq": seqs.next_in_order(session.ranges),
            "last_seq": session.ranges[-1][1] if session.ranges else None,
            "stored_seq": session.stored_seq(),
            **{name: getattr(opened, name) for name in opened.__struct_fields__[1:]},
            "seqs": seqs.union(session.ranges),
            "gaps": seqs.gaps(session.ranges),
            "duplicates": session.duplicates,
            "bytes": session.size,
            "opened_ms": session.opened_ms,
            "last_ms": session.last_ms,
            "closed_by": session.closed_by,
            "closed_ms": session.closed_ms or None,
            "recording": recording.key if recording else None,
            "recording_bytes": recording.size if recording else None,
            "duration_ms": recording.duration_ms if recording else None,
            "md5": recording.md5 if recording else None,
            "error": session.error,
            "held_bytes": self.shelf.held_by(session.id),
            "deferred": session.deferred,
            "segments": len(session.segments),
            "unstored": len(session.intents),
        }
