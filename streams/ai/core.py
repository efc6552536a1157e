"""The AI fold of one partition: submitted questions become calls of a model, and their answers the tasks' ends.

Pure: what becomes of a record follows from the log before it and the rules. The clock is the highest append time so far;
every deadline is looked at before the record that moves the clock past it, so that how batches are split decides nothing.

Calls are asked for by effects, once the flush that granted them has committed, and what came of one is a record. Three
rules make each task end once, and a call be repeated only when it was lost:

1. The first final record of a task wins; whatever comes later changes nothing.
2. Of a call only the attempt under way is heard: (term, attempt) of a record must be its own.
3. A new owner grants nothing before it has folded its own `owner` record, which it wrote after fencing the earlier ones:
   by then all outcomes that they have committed are folded, and the calls still under way are lost. They go first.

A record's way, each stop a module:

    clock       what is due by its append time is done first        deadlines   who is due when
    submitting  a question becomes a task                           calls       what came of a call of the model
    seating     a new owner, and what it finds lost                 elsewhere   what a gateway has done itself
    ending      a task's one end                                    granting    waiting calls begin; `line` has their order
    writing     what a call says, piece by piece                    letters     events and dead letters
    state       what all of them change; `seal` writes it           restoring   what a new owner makes of the changelog
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import msgspec

from streams.ai import task as tasks
from streams.ai.calls import take_of_call
from streams.ai.clock import next_due_ms, pass_time
from streams.ai.effects import Abandon, Effect, SendWebhook, Wake
from streams.ai.elsewhere import end_elsewhere
from streams.ai.ending import finish, webhook_sent
from streams.ai.granting import grant
from streams.ai.letting_go import let_go
from streams.ai.rows import Row, task_row
from streams.ai.seating import seat_owner
from streams.ai.state import (
    ORIGIN_TAG,
    SEGMENT_TAG,
    STATE_KEY,
    TASK_TAG,
    TEXT_TAG,
    AiState,
    ChangelogRecord,
    SavedState,
    Sealed,
    key_of,
)
from streams.ai.submitting import accept, take_submit
from streams.ai.task import CallState, Task, Webhook
from streams.runtime.burying import bury, bury_unreadable, send_on
from topics import ai
from topics.ai import Status
from topics.malformed import Malformed
from topics.partitioning import partition_of
from topics.records import Batch, Flush, Record

#: The shortest time that is asked to be woken after: the broker's clock may lag behind.
WAKE_MIN_MS = 20

_partition_of = lru_cache(maxsize=65_536)(partition_of)


def step(state: AiState, batch: Batch) -> AiState:
    """Fold one batch; total. What it adds is kept open in the state until `seal`."""
    bury_unreadable(state, batch, batch.unreadable)
    for record in batch.records():
        state.offset, state.number = record.offset, 0
        pass_time(state, record.append_ms)
        _take(state, record)
        grant(state)
    return state


def _take(state: AiState, record: Record) -> None:
    found = ai.decode(record.key, record.value, record.headers)
    if isinstance(found, Malformed):
        bury(state, record, found.reason, found.error)
    elif isinstance(found, ai.Idle):
        state.totals["idle"] += 1
    elif isinstance(found, ai.Owner):
        seat_owner(state, found.term)
    elif (home := _partition_of(record.key or b"", state.rules.partitions)) != state.rules.partition:
        send_on(state, record, home)
    elif isinstance(found, ai.Submit):
        take_submit(state, record, found)
    elif (task := state.tasks.get(found.task_id)) is not None:
        if not _heard(state, task, found):
            state.totals["stale"] += 1
    elif isinstance(found, ai.Outcome) and found.submit is not None:
        end_elsewhere(state, accept(state, record, found.submit, waits=False), found)
    elif isinstance(found, (ai.Cancel, ai.Outcome)):
        bury(state, record, "unknown_task", f"there is no task {found.task_id}, or it is long over")
    else:
        state.totals["stale"] += 1


def _heard(state: AiState, task: Task, found: ai.TaskRecord) -> bool:
    """Fold a record of a known task. False when it changes nothing: it came too late."""
    if isinstance(found, ai.WebhookSent):
        return webhook_sent(state, task, found)
    if task.status.final:
        return False
    if isinstance(found, ai.Cancel):
        finish(state, task, Status.CANCELLED)
    elif isinstance(found, ai.Outcome):
        end_elsewhere(state, task, found)
    elif isinstance(found, (ai.Block, ai.Answered, ai.CallFailed)):
        return take_of_call(state, task, found)
    return True


def seal(state: AiState, position: int, version: int) -> Flush:
    """Encode what was folded since the last seal. `position` is the next offset to fold, `version` that of the rows."""
    changelog: list[ChangelogRecord] = [*((key, None) for key in state.tombstones), *let_go(state)]
    for task_id in state.new:
        task = state.tasks[task_id]
        changelog.append((key_of(ORIGIN_TAG, task_id), tasks.encode(task.origin)))
        changelog += [(key_of(SEGMENT_TAG, task_id, number), part.encode()) for number, part in enumerate(task.parts)]
    for task_id in state.dirty:
        changelog.append((key_of(TASK_TAG, task_id), tasks.encode(state.tasks[task_id].save(version))))
    for task_id, call, chunk in sorted(state.chunks):
        changelog.append((key_of(TEXT_TAG, task_id, call, chunk), state.tasks[task_id].texts[call].chunk(chunk)))
    state.position = position
    totals = Counter(state.totals)
    record = SavedState(
        state.epoch,
        position,
        state.clock_ms,
        state.term,
        state.materialised,
        state.batches,
        dict(totals),
        {model: line.save() for model, line in state.lines.items()},
    )
    changelog.append((STATE_KEY, msgspec.msgpack.encode(record)))
    flush = Flush(
        position,
        changelog=changelog,
        emits=state.emits,
        dead=state.dead,
        effects=[effect for effect in state.effects if wanted(state, effect)] + _wake(state),
        token=Sealed(version, _rows(state), state.clock_ms, totals),
    )
    state.new, state.dirty, state.shown, state.chunks, state.tombstones = {}, {}, {}, {}, []
    state.emits, state.dead, state.effects = [], [], []
    return flush


def _rows(state: AiState) -> dict[str, Row]:
    return {task_id: task_row(state.tasks[task_id], state.rules) for task_id in state.shown}


def _wake(state: AiState) -> list[Effect]:
    due_ms = next_due_ms(state)
    return [] if due_ms is None else [Wake(max(WAKE_MIN_MS, due_ms - state.clock_ms))]


def wanted(state: AiState, effect: Effect) -> bool:
    """Whether an effect is still to be done: what was folded since may have ended it."""
    if isinstance(effect, (Wake, Abandon)):
        return True
    task = state.tasks.get(effect.task_id)
    if task is None:
        return False
    if isinstance(effect, SendWebhook):
        return task.webhook is Webhook.WANTED
    call = task.calls[effect.call]
    return call.state is CallState.RUNNING and (call.term, call.attempt) == (effect.term, effect.attempt)
