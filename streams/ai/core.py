"""The AI fold of one partition: submitted questions become calls of a model, and their answers the tasks' ends.

Pure: what becomes of a record follows from the log before it and the rules. The clock is the highest append time so far;
every deadline is looked at before the record that moves the clock past it, so that how batches are split decides nothing.

Calls are asked for by effects, once the flush that granted them has committed, and what came of one is a record. Three
rules make each task end once, and a call be repeated only when it was lost:

1. The first final record of a task wins; whatever comes later changes nothing.
2. Of a call only the attempt under way is heard: (term, attempt) of a record must be its own.
3. A new owner grants nothing before it has folded its own `owner` record, which it wrote after fencing the earlier ones:
   by then all outcomes that they have committed are folded, and the calls still under way are lost. They go first.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from streams.ai import line as lines
from streams.ai import task as tasks
from streams.ai.effects import Abandon, CallModel, Effect, SendWebhook, Wake
from streams.ai.line import Line, Place, SavedLine
from streams.ai.rows import Row, task_row
from streams.ai.rules import AHEAD_MS, AiRules
from streams.ai.task import Call, CallState, Mark, Origin, Task, Webhook, What
from streams.ai.telling import event_of, written
from streams.ai.text import Piece, Text
from topics import ai
from topics.ai import Kind, Status
from topics.ai_events import Figures, encode_event
from topics.malformed import Malformed
from topics.partitioning import partition_of
from topics.records import Batch, DeadLetter, Emit, Flush, Record, Unreadable
from topics.rerouting import sent_on
from topics.rows import version_of

STATE_KEY = b"p"
ORIGIN_TAG, SEGMENT_TAG, TASK_TAG, TEXT_TAG = b"q", b"g", b"t", b"x"
#: The shortest time that is asked to be woken after: the broker's clock may lag behind.
WAKE_MIN_MS = 20

_partition_of = lru_cache(maxsize=65_536)(partition_of)

ChangelogRecord = tuple[bytes, bytes | None]
Split = Callable[[str, int, int], list[str]]


class _Saved(msgspec.Struct, array_like=True):
    """The fold's own record: where its last flush stood, the clock there, totals, and what ClickHouse holds."""

    epoch: int
    position: int
    clock_ms: int
    term: int
    materialised: int
    batches: int
    totals: dict[str, int]
    lines: dict[str, SavedLine]


@dataclass
class AiState:
    """State of one partition. `seat` is the term of this process, from which on it grants; `offset` that of the record
    being folded, `number` of the event that it brings about next."""

    rules: AiRules
    split: Split
    epoch: int = 0
    position: int = 0
    clock_ms: int = 0
    term: int = 0
    seat: int = -1
    offset: int = 0
    number: int = 0
    materialised: int = 0
    batches: int = 0
    tasks: dict[str, Task] = field(default_factory=dict)  # in the order of the log
    by_user: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    lines: dict[str, Line] = field(default_factory=dict)
    deadlines: list[tuple[int, str]] = field(default_factory=list)
    open: dict[str, None] = field(default_factory=dict)  # tasks that are not over
    finished: dict[str, None] = field(default_factory=dict)  # in the order of their ends
    new: dict[str, None] = field(default_factory=dict)  # tasks whose origins are to be written
    dirty: dict[str, None] = field(default_factory=dict)
    shown: dict[str, None] = field(default_factory=dict)  # tasks whose rows are to be written
    chunks: dict[tuple[str, int, int], None] = field(default_factory=dict)
    tombstones: list[bytes] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)

    @property
    def event_version(self) -> int:
        """The version of what the record being folded brings about."""
        return version_of(self.epoch, self.offset)


@dataclass(frozen=True)
class Sealed:
    """What a flush leaves to be shown once it has committed."""

    version: int
    rows: dict[str, Row]
    clock_ms: int
    totals: Counter[str]


# -- step --------------------------------------------------------------------------------------------------------


def step(state: AiState, batch: Batch) -> AiState:
    """Fold one batch; total. What it adds is kept open in the state until `seal`."""
    for piece in batch.unreadable:
        _bury_unreadable(state, batch, piece)
    for record in batch.records():
        state.offset, state.number = record.offset, 0
        _pass_time(state, record.append_ms)
        _take(state, record)
        for model in state.lines:
            _grant(state, model)
    return state


def _take(state: AiState, record: Record) -> None:
    found = ai.decode(record.key, record.value, record.headers)
    if isinstance(found, Malformed):
        _bury(state, record, found.reason, found.error)
    elif isinstance(found, ai.Idle):
        state.totals["idle"] += 1
    elif isinstance(found, ai.Owner):
        _seat(state, found.term)
    elif (home := _partition_of(record.key or b"", state.rules.partitions)) != state.rules.partition:
        _send_on(state, record, home)
    elif isinstance(found, ai.Submit):
        _submit(state, record, found)
    elif (task := state.tasks.get(found.task_id)) is not None:
        if not _heard(state, task, found):
            state.totals["stale"] += 1
    elif isinstance(found, ai.Outcome) and found.submit is not None:
        _end_elsewhere(state, _accept(state, record, found.submit, waits=False), found)
    elif isinstance(found, (ai.Cancel, ai.Outcome)):
        _bury(state, record, "unknown_task", f"there is no task {found.task_id}, or it is long over")
    else:
        state.totals["stale"] += 1


def _heard(state: AiState, task: Task, found: ai.TaskRecord) -> bool:
    """Fold a record of a known task. False when it changes nothing: it came too late."""
    if isinstance(found, ai.WebhookSent):
        return _webhook_sent(state, task, found)
    if task.status.final:
        return False
    if isinstance(found, ai.Cancel):
        _finish(state, task, Status.CANCELLED)
    elif isinstance(found, ai.Outcome):
        _end_elsewhere(state, task, found)
    elif isinstance(found, (ai.Block, ai.Answered, ai.CallFailed)):
        return _of_a_call(state, task, found)
    return True


def _send_on(state: AiState, record: Record, to: int) -> None:
    rules = state.rules
    emit = sent_on(rules.source, rules.partition, record, to, rules.record_bytes_max)
    if isinstance(emit, Malformed):
        _bury(state, record, emit.reason, emit.error)
    else:
        state.emits.append(emit)
        state.totals["rerouted"] += 1


# -- submitting --------------------------------------------------------------------------------------------------


def _submit(state: AiState, record: Record, submit: ai.Submit) -> None:
    known = state.tasks.get(submit.task_id)
    if known is None:
        _accept(state, record, submit, waits=True)
    elif msgspec.structs.replace(submit, submitted_ms=known.submit.submitted_ms) == known.submit:
        state.totals["duplicate"] += 1
    else:
        _bury(state, record, "conflict", f"task {known.id} was submitted with other content before")


def _accept(state: AiState, record: Record, submit: ai.Submit, waits: bool) -> Task:
    rules = state.rules
    kind = rules.task_types.get(submit.task_type)
    model = submit.model or (kind.model if kind else "")
    parts = state.split(submit.question, rules.segment_chars, rules.segment_overlap_chars) if waits else []
    parts = parts if len(parts) > 1 else []
    value = record.value or b""
    if not waits:
        value = msgspec.json.encode(submit)
    template = kind.template if kind else ""
    origin = Origin(value, list(record.headers), record.offset, record.append_ms, model, template, len(parts))
    calls = [Call() for _ in range(len(parts) or 1)] + ([Call(CallState.HELD)] if parts else [])
    task = Task(origin, submit, parts, state.event_version, state.clock_ms, calls)
    task.webhook = Webhook.WANTED if submit.webhook_url else Webhook.NONE
    state.tasks[task.id] = task
    state.by_user[task.user][task.id] = None
    state.open[task.id] = state.new[task.id] = None
    state.totals["submitted"] += 1
    _mark(state, task, What.ACCEPTED)
    refusal = _refusal(rules, submit) if waits else None
    if refusal is not None:
        _fail(state, task, *refusal)
    elif waits:
        _queue(state, task)
    return task


def _refusal(rules: AiRules, submit: ai.Submit) -> tuple[str, str] | None:
    if submit.task_type not in rules.task_types:
        return "unknown_type", f"task type {submit.task_type} is none of {', '.join(rules.task_types)}"
    if submit.model is not None and submit.model not in rules.models:
        return "model_not_allowed", f"model {submit.model} is none of {', '.join(rules.models)}"
    return None


def _queue(state: AiState, task: Task) -> None:
    line = _line(state, task.origin.model)
    for call in task.calls[: task.segments]:
        call.tag = line.next_tag(task.user)
    line.join(_place(task, 0), fresh_ms=task.accepted_ms)


def _line(state: AiState, model: str) -> Line:
    return state.lines.setdefault(model, Line())


def _place(task: Task, call: int) -> Place:
    return Place(task.calls[call].tag, task.accepted_version, call, task.id)


# -- granting ----------------------------------------------------------------------------------------------------


def _grant(state: AiState, model: str) -> None:
    """Begin waiting calls of a model as far as slots, rate and batches allow."""
    if state.term != state.seat:
        return
    line = state.lines[model]
    slots = _slots(state.rules, model, line)
    while line.running < slots and _rate_due_ms(state, model, line) <= state.clock_ms:
        place = _next(state, line)
        if place is None:
            break
        _start(state, line, place)
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
        _leave(state, line, task, place.call)
        for other in range(1, task.segments):
            line.join(_place(task, other))
    else:
        _leave(state, line, task, place.call)
    rate = rules.rate(task.origin.model) if task.origin.model in rules.models else None
    if rate is not None:
        line.starts.append(state.clock_ms)
        while len(line.starts) > rate[0]:
            line.starts.popleft()
    line.running += 1
    call.state, call.attempt, call.term = CallState.RUNNING, call.attempt + 1, state.term
    call.blocks, call.lease_ms = 0, state.clock_ms + rules.lease_ms
    left_ms = max(1, task.deadline_ms - state.clock_ms)
    state.effects.append(CallModel(task.id, place.call, task.origin.model, call.term, call.attempt, left_ms))
    state.totals["calls"] += 1
    _mark(state, task, What.STARTED, place.call, call.lease_ms)
    _schedule(state, task)


def _regular(task: Task, call: int) -> bool:
    """Whether a call waits in its user's turn; what is under way already has a tag of its own."""
    return task.calls[call].attempt == 0 and call < task.segments


def _leave(state: AiState, line: Line, task: Task, number: int) -> None:
    """A call waits no longer."""
    line.leave(_place(task, number))
    if _regular(task, number):
        line.drop_tag(task.user, task.calls[number].tag)


def _go_first(state: AiState, task: Task, number: int) -> None:
    """A call of a task that is under way waits at the head of the line."""
    line, call = _line(state, task.origin.model), task.calls[number]
    call.state, call.tag = CallState.WAITING, line.granted
    line.join(_place(task, number))


# -- what comes of calls -----------------------------------------------------------------------------------------


def _of_a_call(state: AiState, task: Task, found: ai.Block | ai.Answered | ai.CallFailed) -> bool:
    if found.call >= len(task.calls):
        return False
    call = task.calls[found.call]
    if call.state is not CallState.RUNNING or (call.term, call.attempt) != (found.term, found.attempt):
        state.totals["late_answers"] += not isinstance(found, ai.Block)
        return False
    if isinstance(found, ai.Block):
        return _block(state, task, call, found)
    call.prompt_tokens += found.usage.prompt_tokens
    call.completion_tokens += found.usage.completion_tokens
    _free(state, task, call, found.duration_ms)
    if isinstance(found, ai.CallFailed):
        _call_failed(state, task, found.call, found.error_type, found.error, found.retry_after_ms)
    elif found.blocks != call.blocks:
        error = f"{call.blocks} of {found.blocks} blocks are in the log"
        _call_failed(state, task, found.call, "incomplete", error, 0)
    else:
        _answered(state, task, found.call)
    return True


def _block(state: AiState, task: Task, call: Call, found: ai.Block) -> bool:
    if found.block != call.blocks:
        return False
    _write(state, task, found.call, found.kind, found.text)
    return True


def _write(state: AiState, task: Task, number: int, kind: Kind, text: str) -> None:
    """One more piece of what a call says."""
    call = task.calls[number]
    piece = Piece(state.event_version, state.number, state.clock_ms, kind, text)
    state.chunks[task.id, number, task.texts[number].add(piece)] = None
    _emit(state, task, encode_event(written(task, state.rules.partition, number, call.blocks, piece)))
    call.blocks += 1
    state.dirty[task.id] = None


def _free(state: AiState, task: Task, call: Call, duration_ms: int | None) -> None:
    """A running call's slot is free."""
    line = _line(state, task.origin.model)
    line.running -= 1
    if duration_ms is not None:
        line.mean_ms += (duration_ms - line.mean_ms) // 8 if line.mean_ms else max(1, duration_ms)


def _answered(state: AiState, task: Task, number: int) -> None:
    task.calls[number].state = CallState.DONE
    if number == task.last:
        _finish(state, task, Status.COMPLETED)
        return
    _mark(state, task, What.SEGMENT, number)
    if all(call.state is CallState.DONE for call in task.calls[:-1]):
        _go_first(state, task, task.last)
    _schedule(state, task)


def _call_failed(
    state: AiState, task: Task, number: int, error_type: str, error: str, retry_after_ms: int | None
) -> None:
    """Another attempt after a pause, unless none makes sense or there were enough."""
    call = task.calls[number]
    if retry_after_ms is not None and state.clock_ms + retry_after_ms >= task.deadline_ms:
        error, retry_after_ms = f"{error} (and its retry would come after the deadline)", None
    if retry_after_ms is None or call.retries >= state.rules.retries_max:
        call.state = CallState.GIVEN_UP
        _fail(state, task, error_type, error)
        return
    call.state, call.due_ms = CallState.PAUSED, state.clock_ms + max(1, retry_after_ms)
    call.retries += 1
    state.totals["retries"] += 1
    _discard(state, task, number, error_type, retry_after_ms)
    _schedule(state, task)


def _discard(state: AiState, task: Task, number: int, error_type: str, retry_after_ms: int) -> None:
    """What an attempt has written is void."""
    _clear(state, task, number)
    _mark(state, task, What.DISCARDED, number, retry_after_ms, error_type)


def _clear(state: AiState, task: Task, number: int) -> None:
    for chunk in range(task.texts[number].chunks):
        state.chunks[task.id, number, chunk] = None
    task.texts[number] = Text()


def _seat(state: AiState, term: int) -> None:
    """A new owner: what earlier ones had under way, and had no word of, is lost."""
    if term <= state.term:
        state.totals["stale"] += 1
        return
    state.term = term
    for task in list(state.tasks.values()):
        if task.status.final:
            if task.webhook is Webhook.WANTED:
                state.effects.append(SendWebhook(task.id))
            continue
        lost = list(task.running())
        if lost:
            # The time in which nobody worked is not the task's.
            task.deadline_ms = state.clock_ms + state.rules.deadline_ms
        for number in lost:
            _lost(state, task, number)
            if task.status.final:
                break


def _lost(state: AiState, task: Task, number: int) -> None:
    call = task.calls[number]
    _free(state, task, call, None)
    call.lost += 1
    state.totals["lost_calls"] += 1
    if call.lost > state.rules.lost_max:
        call.state = CallState.GIVEN_UP
        _fail(state, task, "lost_too_often", f"its worker died {call.lost} times while the model was called")
        return
    _go_first(state, task, number)
    _discard(state, task, number, "lost", 0)
    _schedule(state, task)


# -- ends --------------------------------------------------------------------------------------------------------


def _fail(state: AiState, task: Task, error_type: str, error: str) -> None:
    task.error_type, task.error = error_type, error[: ai.MAX_ERROR_CHARS]
    _finish(state, task, Status.FAILED)
    origin = task.origin
    where = (state.rules.source, state.rules.partition, origin.offset, origin.append_ms)
    letter = DeadLetter(
        error_type, task.error, *where, task.id.encode(), origin.value, origin.headers, max(1, task.begun)
    )
    state.dead.append(letter)
    state.totals["dead"] += 1
    state.totals[f"error_{error_type}"] += 1


def _finish(state: AiState, task: Task, status: Status) -> None:
    line = _line(state, task.origin.model)
    if any(True for _ in task.running()):
        state.effects.append(Abandon(task.id))
    for number, call in enumerate(task.calls):
        if call.state is CallState.RUNNING:
            _free(state, task, call, None)
        elif call.state is CallState.WAITING:
            _leave(state, line, task, number)
        if call.state is not CallState.DONE:
            call.state = CallState.GIVEN_UP
    task.status, task.finished_ms = status, state.clock_ms
    state.finished[task.id] = None
    del state.open[task.id]
    state.totals[status.value] += 1
    state.totals["task_ms"] += state.clock_ms - task.accepted_ms
    _mark(state, task, {"completed": What.COMPLETED, "failed": What.FAILED}.get(status, What.CANCELLED))
    if task.webhook is Webhook.WANTED:
        state.effects.append(SendWebhook(task.id))
    _schedule(state, task)


def _end_elsewhere(state: AiState, task: Task, found: ai.Outcome) -> None:
    """A gateway has processed the task itself."""
    task.gateway = True
    # Its last attempt counts as one of ours when it is written down as such.
    more = found.attempts - (found.status is Status.COMPLETED)
    task.extra = Figures(
        attempts=max(0, more),
        calls=max(0, more),
        retries=max(0, found.attempts - 1),
        prompt_tokens=found.usage.prompt_tokens,
        completion_tokens=found.usage.completion_tokens,
    )
    if task.started_ms == 0:
        task.started_ms = max(0, state.clock_ms - max(0, found.finished_ms - found.started_ms))
    if found.status is Status.FAILED:
        _fail(state, task, found.error_type or "failed", found.error)
        return
    if task.texts[task.last].chunks:
        _discard(state, task, task.last, "answered_elsewhere", 0)
    call = task.calls[task.last]
    if call.state is CallState.WAITING:
        _leave(state, _line(state, task.origin.model), task, task.last)
        call.state = CallState.HELD
    call.attempt, call.blocks = call.attempt + 1, 0
    for kind, text in ((Kind.REASONING, found.reasoning), (Kind.ANSWER, found.result)):
        for at in range(0, len(text), ai.MAX_BLOCK_BYTES // 4):
            _write(state, task, task.last, kind, text[at : at + ai.MAX_BLOCK_BYTES // 4])
    _finish(state, task, Status.COMPLETED)


def _webhook_sent(state: AiState, task: Task, found: ai.WebhookSent) -> bool:
    if task.webhook is not Webhook.WANTED or not task.status.final:
        return False
    task.webhook = Webhook.DELIVERED if found.delivered else Webhook.GIVEN_UP
    state.totals["webhooks_delivered" if found.delivered else "webhooks_given_up"] += 1
    state.dirty[task.id] = state.shown[task.id] = None
    return True


# -- time --------------------------------------------------------------------------------------------------------


def _pass_time(state: AiState, append_ms: int) -> None:
    """Move the clock, and do first what was due by then."""
    if append_ms <= state.clock_ms:
        return
    state.clock_ms = append_ms
    while (task := _first_due(state)) is not None and task.due_ms <= append_ms:
        heapq.heappop(state.deadlines)
        task.due_ms = 0
        _do_what_is_due(state, task)
        _schedule(state, task)
    while state.finished:
        task = state.tasks[next(iter(state.finished))]
        if append_ms < task.finished_ms + state.rules.remember_ms:
            break
        _forget(state, task)


def _do_what_is_due(state: AiState, task: Task) -> None:
    clock_ms = state.clock_ms
    if _waits(task) and clock_ms >= task.deadline_ms:
        _fail(state, task, "deadline_exceeded", "its deadline passed while calls of it waited for a slot")
        return
    for number, call in enumerate(task.calls):
        if call.state is CallState.RUNNING and clock_ms >= call.lease_ms:
            _free(state, task, call, None)
            state.effects.append(Abandon(task.id, number))
            _call_failed(state, task, number, "lease_expired", "the attempt had no outcome when its lease ended", 0)
            if task.status.final:
                return
        elif call.state is CallState.PAUSED and clock_ms >= call.due_ms:
            _go_first(state, task, number)


def _waits(task: Task) -> bool:
    """Whether a task under way has calls that wait for a slot."""
    return task.status is Status.PROCESSING and any(call.state is CallState.WAITING for call in task.calls)


def _first_due(state: AiState) -> Task | None:
    """The unfinished task whose deadline is the next."""
    while state.deadlines:
        due_ms, task_id = state.deadlines[0]
        task = state.tasks.get(task_id)
        if task is not None and task.due_ms == due_ms and not task.status.final:
            return task
        heapq.heappop(state.deadlines)
    return None


def _due_ms(state: AiState, task: Task) -> int | None:
    """When time alone changes something about a task next."""
    if task.status.final:
        return None
    due = [call.lease_ms for call in task.calls if call.state is CallState.RUNNING]
    due += [call.due_ms for call in task.calls if call.state is CallState.PAUSED]
    if task.status is Status.PROCESSING:
        due.append(task.deadline_ms)
    return min((at for at in due if at > state.clock_ms), default=None)


def _schedule(state: AiState, task: Task) -> None:
    due_ms = _due_ms(state, task)
    if due_ms is not None and (task.due_ms == 0 or due_ms < task.due_ms):
        task.due_ms = due_ms
        heapq.heappush(state.deadlines, (due_ms, task.id))


def next_due_ms(state: AiState) -> int | None:
    """The clock at which something about unfinished tasks is due, if no record comes before."""
    first = _first_due(state)
    due = [] if first is None else [first.due_ms]
    for model, line in state.lines.items():
        if line.waiting:
            if line.fresh and line.released == 0:
                due.append(_batch_due_ms(state.rules, line))
            due.append(_rate_due_ms(state, model, line))
    return min((at for at in due if at > state.clock_ms), default=None)


def _forget(state: AiState, task: Task) -> None:
    """Its id may be used anew."""
    del state.tasks[task.id], state.finished[task.id]
    own = state.by_user[task.user]
    own.pop(task.id, None)
    if not own:
        del state.by_user[task.user]
    for kept in (state.dirty, state.new, state.shown):
        kept.pop(task.id, None)
    for chunk in [chunk for chunk in state.chunks if chunk[0] == task.id]:
        del state.chunks[chunk]
        state.tombstones.append(_key(TEXT_TAG, *chunk))
    state.tombstones += _keys(task)


def _keys(task: Task) -> Iterable[bytes]:
    yield _key(TASK_TAG, task.id)
    yield _key(ORIGIN_TAG, task.id)
    yield from (_key(SEGMENT_TAG, task.id, number) for number in range(len(task.parts)))
    for number, text in enumerate(task.texts):
        yield from (_key(TEXT_TAG, task.id, number, chunk) for chunk in range(text.chunks))


# -- what goes out -----------------------------------------------------------------------------------------------


def _mark(state: AiState, task: Task, what: What, call: int = 0, value: int = 0, label: str = "") -> None:
    """Something happened to a task: it is told, and its snapshot is written."""
    attempt = task.calls[call].attempt
    mark = Mark(state.event_version, state.number, state.clock_ms, what, call, attempt, value, label)
    task.marks.append(mark)
    task.updated_ms = state.clock_ms
    _emit(state, task, encode_event(event_of(task, mark, state.rules)))
    state.dirty[task.id] = state.shown[task.id] = None


def _emit(state: AiState, task: Task, value: bytes) -> None:
    state.emits.append(Emit(state.rules.events, task.id.encode(), value))
    state.number += 1


def _bury(state: AiState, record: Record, reason: str, error: str) -> None:
    where = (state.rules.source, state.rules.partition, record.offset, record.append_ms)
    state.dead.append(DeadLetter(reason, error, *where, record.key, record.value, record.headers))
    state.totals["dead"] += 1
    state.totals["malformed"] += 1


def _bury_unreadable(state: AiState, batch: Batch, piece: Unreadable) -> None:
    at = (batch.topic, batch.partition, piece.first_offset, piece.append_ms)
    state.dead.append(DeadLetter("unreadable", piece.error, *at, None, piece.data))
    state.totals["dead"] += 1


# -- flush -------------------------------------------------------------------------------------------------------


def seal(state: AiState, position: int, version: int) -> Flush:
    """Encode what was folded since the last seal. `position` is the next offset to fold, `version` that of the rows."""
    changelog: list[ChangelogRecord] = [(key, None) for key in state.tombstones]
    for task_id in state.new:
        task = state.tasks[task_id]
        changelog.append((_key(ORIGIN_TAG, task_id), tasks.encode(task.origin)))
        changelog += [(_key(SEGMENT_TAG, task_id, number), part.encode()) for number, part in enumerate(task.parts)]
    for task_id in state.dirty:
        changelog.append((_key(TASK_TAG, task_id), tasks.encode(state.tasks[task_id].save(version))))
    for task_id, call, chunk in sorted(state.chunks):
        changelog.append((_key(TEXT_TAG, task_id, call, chunk), state.tasks[task_id].texts[call].chunk(chunk)))
    state.position = position
    totals = Counter(state.totals)
    record = _Saved(
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


def _key(tag: bytes, task_id: str, *numbers: int) -> bytes:
    return tag + "/".join([task_id, *(f"{number:05d}" for number in numbers)]).encode()


# -- restore -----------------------------------------------------------------------------------------------------


@dataclass
class Restoring:
    """What a changelog holds, by key; made a state at its end."""

    saved: _Saved | None = None
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
                self.saved = msgspec.msgpack.decode(value, type=_Saved)
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
        _schedule(state, task)
    over = [task for task in state.tasks.values() if task.status.final]
    over.sort(key=lambda task: (task.marks[-1].version, task.marks[-1].number))
    state.finished = dict.fromkeys(task.id for task in over)
    state.open = dict.fromkeys(task.id for task in state.tasks.values() if not task.status.final)
    _line_up(state)


def _text(chunks: dict[int, bytes]) -> Text:
    return Text.load([data for _, data in sorted(chunks.items())])


def _line_up(state: AiState) -> None:
    """Put the waiting calls back into their lines."""
    tags: list[tuple[int, str, str]] = []
    for task_id in state.open:
        task = state.tasks[task_id]
        line = _line(state, task.origin.model)
        line.running += sum(1 for _ in task.running())
        for number, call in enumerate(task.calls):
            if call.state is CallState.WAITING and _regular(task, number):
                tags.append((call.tag, task.origin.model, task.user))
            if call.state is not CallState.WAITING:
                continue
            if task.status is Status.PROCESSING:
                line.join(_place(task, number))
            elif number == 0:
                line.join(_place(task, number), fresh_ms=task.accepted_ms)
    for tag, model, user in sorted(tags):
        state.lines[model].keep_tag(user, tag)


def unmaterialised(state: AiState) -> dict[str, Row]:
    """What ClickHouse may lack after a restore: tasks newer than it is known to hold."""
    newer = [task for task in state.tasks.values() if task.version > state.materialised]
    return {task.id: task_row(task, state.rules) for task in newer}


def idle_wanted(state: AiState) -> bool:
    """Whether time decides anything about a task that is not over."""
    return any(line.running or line.waiting for line in state.lines.values()) or next_due_ms(state) is not None
