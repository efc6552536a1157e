"""The partition's clock: what is due is done before the record that moves the clock past it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from streams.ai.calls import call_failed
from streams.ai.deadlines import first_due, schedule, waits
from streams.ai.effects import Abandon
from streams.ai.ending import fail
from streams.ai.granting import free, go_first
from streams.ai.letting_go import forget_texts
from streams.ai.line import NEVER_MS
from streams.ai.state import ORIGIN_TAG, SEGMENT_TAG, TASK_TAG, TEXT_TAG, AiState, key_of
from streams.ai.task import CallState, Task


def pass_time(state: AiState, append_ms: int) -> None:
    """Move the clock, and do first what was due by then."""
    if append_ms <= state.clock_ms:
        return
    state.clock_ms = append_ms
    while state.seated and (task := first_due(state)) is not None and task.due_ms <= append_ms:
        heapq.heappop(state.deadlines)
        task.due_ms = 0
        do_what_is_due(state, task)
        schedule(state, task)
    while state.finished:
        task = state.tasks[next(iter(state.finished))]
        if append_ms < task.finished_ms + state.rules.remember_ms:
            break
        _forget(state, task)


def do_what_is_due(state: AiState, task: Task) -> None:
    """What time alone changes about a task by now."""
    clock_ms = state.clock_ms
    if waits(task) and clock_ms >= task.deadline_ms:
        fail(state, task, "deadline_exceeded", "its deadline passed while calls of it waited for a slot")
        return
    for number, call in enumerate(task.calls):
        if call.state is CallState.RUNNING and clock_ms >= call.lease_ms:
            free(state, task, call, None)
            state.effects.append(Abandon(task.id, number))
            call_failed(state, task, number, "lease_expired", "the attempt had no outcome when its lease ended", 0)
            if task.status.final:
                return
        elif call.state is CallState.PAUSED and clock_ms >= call.due_ms:
            go_first(state, task, number)


def next_due_ms(state: AiState) -> int | None:
    """The clock at which something about unfinished tasks is due, if no record comes before."""
    first = first_due(state)
    due = [] if first is None else [first.due_ms]
    due += [line.look_ms for line in state.lines.values()]
    return min((at for at in due if state.clock_ms < at < NEVER_MS), default=None)


def idle_wanted(state: AiState) -> bool:
    """Whether time decides anything about a task that is not over."""
    return any(line.running or line.waiting for line in state.lines.values()) or next_due_ms(state) is not None


def _forget(state: AiState, task: Task) -> None:
    """Its id may be used anew."""
    del state.tasks[task.id], state.finished[task.id]
    forget_texts(state, task)
    own = state.by_user[task.user]
    own.pop(task.id, None)
    if not own:
        del state.by_user[task.user]
    for kept in (state.dirty, state.new, state.shown):
        kept.pop(task.id, None)
    for chunk in [chunk for chunk in state.chunks if chunk[0] == task.id]:
        del state.chunks[chunk]
        state.tombstones.append(key_of(TEXT_TAG, *chunk))
    state.tombstones += _keys(task)


def _keys(task: Task) -> Iterable[bytes]:
    yield key_of(TASK_TAG, task.id)
    yield key_of(ORIGIN_TAG, task.id)
    yield from (key_of(SEGMENT_TAG, task.id, number) for number in range(len(task.parts)))
    for number, text in enumerate(task.texts):
        yield from (key_of(TEXT_TAG, task.id, number, chunk) for chunk in range(text.chunks))
