"""A new owner: the state of the changelog, and what must be shown again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from streams.ai import line as lines
from streams.ai import task as tasks
from streams.ai.deadlines import schedule
from streams.ai.granting import regular
from streams.ai.letting_go import keep
from streams.ai.rows import Row, task_row
from streams.ai.state import (
    ORIGIN_TAG,
    SEGMENT_TAG,
    STATE_KEY,
    TASK_TAG,
    TEXT_TAG,
    AiState,
    ChangelogRecord,
    SavedState,
    line_of,
    place_of,
)
from streams.ai.task import CallState, Origin
from streams.ai.text import Text
from topics.ai import Status


@dataclass
class Restoring:
    """What a changelog holds, by key; made a state at its end."""

    saved: SavedState | None = None
    origins: dict[str, Origin] = field(default_factory=dict)
    found: dict[str, tasks.Saved] = field(default_factory=dict)
    parts: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    chunks: dict[tuple[str, int], dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))

    def take(self, records: Sequence[ChangelogRecord]) -> None:
        """Apply changelog records in log order."""
        for key, value in records:
            tag, (task_id, *rest) = key[:1], key[1:].decode().split("/")
            numbers = [int(number) for number in rest]
            if key == STATE_KEY and value is not None:
                self.saved = msgspec.msgpack.decode(value, type=SavedState)
            elif tag == ORIGIN_TAG:
                _put(self.origins, task_id, value and tasks.decode_origin(value))
            elif tag == TASK_TAG:
                _put(self.found, task_id, value and tasks.decode_saved(value))
            elif tag == SEGMENT_TAG:
                _put(self.parts[task_id], numbers[0], None if value is None else value.decode())
            elif tag == TEXT_TAG:
                _put(self.chunks[task_id, numbers[0]], numbers[1], value)


def _put(kept: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    if value is None:
        kept.pop(key, None)
    else:
        kept[key] = value


def restored(state: AiState, kept: Restoring, epoch: int, position: int) -> None:
    """End of a restore; reading goes on at `position`."""
    if kept.saved is not None:
        saved = kept.saved
        state.clock_ms, state.term, state.materialised = saved.clock_ms, saved.term, saved.materialised
        state.batches, state.totals = saved.batches, Counter(saved.totals)
        state.lines = {model: lines.load(line) for model, line in saved.lines.items()}
    state.epoch, state.position, state.offset = epoch, position, position
    for task_id, found in sorted(kept.found.items(), key=lambda item: item[1].accepted_version):
        parts = [text for _, text in sorted(kept.parts[task_id].items())]
        texts = [_text(kept.chunks.get((task_id, number), {})) for number in range(len(found.calls))]
        task = tasks.load(kept.origins[task_id], parts, found, texts)
        state.tasks[task_id] = task
        state.by_user[task.user][task_id] = None
        schedule(state, task)
    over = [task for task in state.tasks.values() if task.status.final]
    over.sort(key=lambda task: (task.marks[-1].version, task.marks[-1].number))
    state.finished = dict.fromkeys(task.id for task in over)
    for task in over:
        if not task.let_go:
            keep(state, task)
    state.open = dict.fromkeys(task.id for task in state.tasks.values() if not task.status.final)
    _line_up(state)


def _text(chunks: dict[int, bytes]) -> Text:
    return Text.load([data for _, data in sorted(chunks.items())])


def _line_up(state: AiState) -> None:
    """Put the waiting calls back into their lines."""
    tags: list[tuple[int, str, str]] = []
    for task_id in state.open:
        task = state.tasks[task_id]
        line = line_of(state, task.origin.model)
        line.running += sum(1 for _ in task.running())
        for number, call in enumerate(task.calls):
            if call.state is CallState.WAITING and regular(task, number):
                tags.append((call.tag, task.origin.model, task.user))
            if call.state is not CallState.WAITING:
                continue
            if task.status is Status.PROCESSING:
                line.join(place_of(task, number))
            elif number == 0:
                line.join(place_of(task, number), fresh_ms=task.accepted_ms)
    for tag, model, user in sorted(tags):
        state.lines[model].keep_tag(user, tag)


def unmaterialised(state: AiState) -> dict[str, Row]:
    """What ClickHouse may lack after a restore: tasks newer than it is known to hold."""
    newer = [task for task in state.tasks.values() if task.version > state.materialised]
    return {task.id: task_row(task, state.rules) for task in newer}
