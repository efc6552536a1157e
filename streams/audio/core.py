"""The audio fold of one partition: chunks become segments, segments a recording.

Pure: what becomes of a record follows from the log before it and the rules. The clock is the highest append time so far;
every deadline is looked at before the record that moves the clock past it, so that how batches are split decides nothing.

Audio has no cursor of its own. A session's snapshot is written when something lasting happens to it (opened, cut, stored,
closed), and what came since is read from the log again by a restore. Three rules make that exact:

1. Below `position`, where the last committed flush stood, a record is applied only to a session whose snapshot is older,
   and silently: its letters and events are out. No deadline passes and nothing is cut there; had something been, the
   snapshot would be newer.
2. Bytes below a snapshot that a segment still needs are put back in memory. Of several records with one seq the first
   fitting one within the segment's offsets is the one that was taken, since a repeat always comes later.
3. The log is held (`safe_offset`) from the first record that either needs.

A record's way, each stop a module:

    clock      what is due by its append time is done first        deadlines   who is due when
    chunks     open, chunk, close                                   outcomes    what came of an effect, as a record
    cuts       pending chunks become segments                       settling    what an outcome changes
    ending     the last cut, the recording, removal                 letters     events and dead letters
    state      what all of them change; `seal` writes it            restoring   what a new owner makes of the changelog
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import msgspec

from streams.audio import outcomes
from streams.audio import session as sessions
from streams.audio.chunks import take_chunk, take_close, take_open
from streams.audio.clock import pass_time
from streams.audio.cuts import intent_of
from streams.audio.deadlines import schedule
from streams.audio.effects import Assemble, Effect, PutSegment, RemoveSegments
from streams.audio.letters import bury, bury_unreadable
from streams.audio.restoring import ask_for_awaited
from streams.audio.rows import Rows
from streams.audio.session import Status
from streams.audio.settling import take_outcome
from streams.audio.state import STATE_KEY, AudioState, ChangelogRecord, SavedState, Sealed, count, session_key
from topics import audio
from topics.malformed import Malformed
from topics.partitioning import partition_of
from topics.records import Batch, Flush, Record
from topics.rerouting import sent_on

_partition_of = lru_cache(maxsize=65_536)(partition_of)


def step(state: AudioState, batch: Batch) -> AudioState:
    """Fold one batch; total. What it adds is kept open in the state until `seal`."""
    for piece in batch.unreadable:
        if piece.first_offset >= state.position:
            bury_unreadable(state, batch, piece)
    for record in batch.records():
        state.offset = record.offset
        if record.offset >= state.position:
            pass_time(state, record.append_ms)
        _take(state, record)
    ask_for_awaited(state, batch.end)
    return state


def _take(state: AudioState, record: Record) -> None:
    found: outcomes.Outcome | audio.AudioRecord | Malformed | None = outcomes.decode(record.value, record.headers)
    if found is None:
        found = audio.decode(record.key, record.value, record.headers, state.rules.chunk_bytes_max)
    if isinstance(found, audio.Idle):
        count(state, record, "idle")
    elif isinstance(found, Malformed):
        bury(state, record, found.reason, found.error)
    elif (home := _partition_of(record.key or b"", state.rules.partitions)) != state.rules.partition:
        _send_on(state, record, home)
    elif isinstance(found, audio.Chunk):
        take_chunk(state, record, found)
    elif isinstance(found, audio.Open):
        take_open(state, record, found)
    elif isinstance(found, audio.Close):
        take_close(state, record, found.session_id)
    else:
        take_outcome(state, record, found)


def _send_on(state: AudioState, record: Record, to: int) -> None:
    rules = state.rules
    emit = sent_on(rules.source, rules.partition, record, to, rules.chunk_bytes_max)
    if isinstance(emit, Malformed):
        bury(state, record, emit.reason, emit.error)
    elif record.offset >= state.position:
        state.emits.append(emit)
        count(state, record, "rerouted")


def seal(state: AudioState, position: int, version: int) -> Flush:
    """Encode what was folded since the last seal. `position` is the next offset to fold, `version` that of the rows."""
    state.offset = max(state.offset, position)
    changelog: list[ChangelogRecord] = []
    rows = Rows()
    for session_id in state.dirty:
        session = state.sessions[session_id]
        changelog.append((session_key(session_id), sessions.encode(session.save(position, version))))
        changed = [segment for segment in session.segments.values() if (session_id, segment.first_seq) in state.changed]
        rows.add(session, changed, state.rules.partition)
        schedule(state, session)
    changelog += [(session_key(session_id), None) for session_id in state.tombstones]
    state.position = max(state.position, position)
    totals = Counter(state.totals)
    record = SavedState(state.epoch, state.position, state.clock_ms, state.materialised, dict(totals))
    changelog.append((STATE_KEY, msgspec.msgpack.encode(record)))
    flush = Flush(
        position,
        safe_offset=safe_offset(state, position),
        changelog=changelog,
        emits=state.emits,
        dead=state.dead,
        effects=[effect for effect in state.effects if wanted(state, effect)],
        token=Sealed(version, rows, state.clock_ms, totals),
    )
    state.dirty, state.changed, state.tombstones = {}, {}, []
    state.emits, state.dead, state.effects = [], [], []
    return flush


def wanted(state: AudioState, effect: Effect) -> bool:
    """Whether an effect has no outcome yet: after a take-over the log may hold it further on."""
    session = state.sessions.get(effect.opened.session_id)
    if session is None:
        return False
    match effect:
        case PutSegment():
            return intent_of(session, effect.first_seq, effect.last_seq) is not None
        case Assemble():
            return session.status is Status.CLOSING and not session.intents
        case RemoveSegments():
            return session.removing


def safe_offset(state: AudioState, position: int) -> int:
    """Where the log must still be read from by whoever takes over."""
    return min([position, *_needed(state)])


def _needed(state: AudioState) -> Iterator[int]:
    for session in state.sessions.values():
        if session.fresh is not None:
            yield session.fresh[0]
        if session.deferred or not session.live:
            continue
        held = session.pending.first_offset_from(max(state.start, session.held_from))
        if held is not None:
            yield held
        for first_seq in session.intents:
            if session.awaiting or state.shelf.intended(session.id, first_seq):
                yield max(state.start, session.segments[first_seq].first_offset)
