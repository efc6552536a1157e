"""Slots: which waiting call begins next, as far as concurrency, rate and batches allow."""

from __future__ import annotations

from streams.ai.deadlines import schedule
from streams.ai.effects import CallModel
from streams.ai.letters import mark
from streams.ai.line import NEVER_MS, Line, Place
from streams.ai.rules import AHEAD_MS, AiRules
from streams.ai.state import AiState, line_of, place_of
from streams.ai.task import Call, CallState, Task, What
from topics.ai import Status


def grant(state: AiState) -> None:
    """Begin what may begin since the last record: in lines that it changed, and in those whose time has come."""
    if not state.seated:
        return
    for model, line in state.lines.items():
        if line.look_ms <= state.clock_ms:
            _grant(state, model, line)


def _grant(state: AiState, model: str, line: Line) -> None:
    """Begin waiting calls of a model as far as slots, rate and batches allow, and say when to look again."""
    slots = _slots(state.rules, model, line)
    line.look_ms = NEVER_MS
    while line.waiting and line.running < slots:
        due_ms = _rate_due_ms(state, model, line)
        if due_ms > state.clock_ms:
            line.look_ms = due_ms
            break
        place = _next(state, line)
        if place is None:
            line.look_ms = _batch_due_ms(state.rules, line)
            break
        _start(state, line, place)
        line.look_ms = NEVER_MS
    if state.rules.eager:
        # A batch that an idle slot began is over with what it has begun.
        line.released = 0


def _slots(rules: AiRules, model: str, line: Line) -> int:
    """The calls to be under way: the slots, and as many more as end while an outcome is on its way to free one."""
    slots = rules.slots(model) if model in rules.models else 1
    ahead = slots * AHEAD_MS // line.mean_ms if line.mean_ms else 0
    return slots + min(8 * slots, ahead)


def _rate_due_ms(state: AiState, model: str, line: Line) -> int:
    """The clock from which the next call may begin."""
    rate = state.rules.rate(model) if model in state.rules.models else None
    if rate is None:
        return 0
    calls, window_ms = rate
    return line.starts[-calls] + window_ms if len(line.starts) >= calls else 0


def _next(state: AiState, line: Line) -> Place | None:
    """The first in turn: of what is under way, and of the current batch."""
    if line.released == 0 and line.fresh and _batch_due_ms(state.rules, line) <= state.clock_ms:
        line.released = min(state.rules.batch_size, len(line.fresh))
        state.batches += 1
    going, fresh = line.first_going(), line.first_fresh() if line.released else None
    return min((place for place in (going, fresh) if place is not None), default=None)


def _batch_due_ms(rules: AiRules, line: Line) -> int:
    """The clock from which a batch may begin."""
    if rules.eager or len(line.fresh) >= rules.batch_size:
        return 0
    return line.oldest_ms + rules.batch_wait_ms


def _start(state: AiState, line: Line, place: Place) -> None:
    task, rules = state.tasks[place.task_id], state.rules
    call = task.calls[place.call]
    line.granted = max(line.granted, call.tag)
    if task.status is Status.PENDING:
        line.released -= 1
        task.status, task.batch = Status.PROCESSING, state.batches
        task.started_ms, task.deadline_ms = state.clock_ms, state.clock_ms + rules.deadline_ms
        leave(state, task, place.call)
        for other in range(1, task.segments):
            line.join(place_of(task, other))
    else:
        leave(state, task, place.call)
    rate = rules.rate(task.origin.model) if task.origin.model in rules.models else None
    if rate is not None:
        line.starts.append(state.clock_ms)
        while len(line.starts) > rate[0]:
            line.starts.popleft()
    line.running += 1
    call.state, call.attempt, call.term = CallState.RUNNING, call.attempt + 1, state.term
    call.blocks, call.lease_ms = 0, state.clock_ms + rules.lease_ms
    left_ms = max(1, task.deadline_ms - state.clock_ms)
    model = task.origin.model
    state.effects.append(CallModel(task.id, place.call, model, call.term, call.attempt, left_ms, call.retries))
    state.totals["calls"] += 1
    mark(state, task, What.STARTED, place.call, call.lease_ms)
    schedule(state, task)


def queue(state: AiState, task: Task) -> None:
    """A new task waits in its user's turn."""
    line = line_of(state, task.origin.model)
    for call in task.calls[: task.segments]:
        call.state, call.tag = CallState.WAITING, line.next_tag(task.user)
    line.join(place_of(task, 0), fresh_ms=task.accepted_ms)


def go_first(state: AiState, task: Task, number: int) -> None:
    """A call of a task that is under way waits at the head of the line."""
    line, call = line_of(state, task.origin.model), task.calls[number]
    call.state, call.tag = CallState.WAITING, line.granted
    line.join(place_of(task, number))


def leave(state: AiState, task: Task, number: int) -> None:
    """A call waits no longer."""
    line = line_of(state, task.origin.model)
    line.leave(place_of(task, number))
    if regular(task, number):
        line.drop_tag(task.user, task.calls[number].tag)


def regular(task: Task, call: int) -> bool:
    """Whether a call waits in its user's turn; what is under way already has a tag of its own."""
    return task.calls[call].attempt == 0 and call < task.segments


def free(state: AiState, task: Task, call: Call, duration_ms: int | None) -> None:
    """A running call's slot is free."""
    line = line_of(state, task.origin.model)
    line.running, line.look_ms = line.running - 1, 0
    if duration_ms is not None:
        line.mean_ms += (duration_ms - line.mean_ms) // 8 if line.mean_ms else max(1, duration_ms)
