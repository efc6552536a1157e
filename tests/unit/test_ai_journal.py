"""The journal of AI tasks: what it was given survives a SIGKILL, is done once, and reaches Kafka when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from streams.ai.model_port import Asked, Delta, Message, ModelCall, ModelRetryable, TaskType
from streams.web.ai.direct import DirectRules, DirectWork
from streams.web.ai.identity import digest_of, new_task_id
from streams.web.ai.journal import Journal, JournalFull, State
from streams.web.ai.keeper import JournalLimits, Keeper
from streams.web.idempotency import id_of_key, valid_key
from streams.web.publisher import HeadedRecord, Place, PublishUnavailable
from topics.ai import Kind, Outcome, Status, Submit, TaskRecord, Usage, decode
from topics.ids import valid_id

MB = 1 << 20


def task(number: int, question: str = "why?") -> Submit:
    return Submit(f"t-{number}", "chat", "ann", "en", question, 1)


class Log:
    """A topic that is away until it is back; with `unsure` it keeps what it is sent and says that it did not."""

    def __init__(self) -> None:
        self.connected = False
        self.unsure = 0
        self.records: list[TaskRecord] = []

    async def append(self, records: Sequence[HeadedRecord]) -> Place:
        if not self.connected:
            raise PublishUnavailable("away")
        for key, value, headers in records:
            found = decode(key, value, list(headers))
            assert not hasattr(found, "reason"), found
            self.records.append(found)  # type: ignore[arg-type]
        if self.unsure:
            self.unsure -= 1
            raise PublishUnavailable("no answer")
        return Place(0, len(self.records) - 1)


class Echo:
    """Answers with the question; refuses as often as `troubles` says, and waits for `gate`."""

    def __init__(self, troubles: int = 0) -> None:
        self.calls: list[ModelCall] = []
        self.troubles = troubles
        self.gate = asyncio.Event()
        self.gate.set()

    async def stream(self, call: ModelCall) -> AsyncIterator[Delta | Usage]:
        self.calls.append(call)
        yield Delta(Kind.ANSWER, "so: ")
        await self.gate.wait()
        if self.troubles:
            self.troubles -= 1
            raise ModelRetryable("server_error", "500", began=True)
        yield Delta(Kind.ANSWER, call.messages[-1].content)
        yield Usage(3, 2)


class Plain:
    @property
    def task_types(self) -> Mapping[str, TaskType]:
        return {"chat": TaskType("chat@1", "m")}

    def messages(self, asked: Asked) -> tuple[Message, ...]:
        return (Message("user", "|".join(asked.texts)),)


def keeper(folder: Path, log: Log, model: Echo, **limits: float) -> Keeper:
    rules = DirectRules(
        models={"m": (4, 0)}, split=lambda text: text.split("/"), opening_chars=3, pause_s=lambda attempt: 0.0
    )
    work = DirectWork(model, Plain(), rules)
    return Keeper(folder, log, work, JournalLimits(patience_s=0.0, pause_s=0.01, **limits))  # type: ignore[arg-type]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_an_id_derives_from_user_and_key_and_a_digest_from_what_was_asked() -> None:
    assert id_of_key("ann", "k") == id_of_key("ann", "k")
    ids = {id_of_key("ann", "k"), id_of_key("ann", "l"), id_of_key("an", "nk"), new_task_id(), new_task_id()}
    assert len(ids) == 5
    assert all(valid_id(name) for name in ids)
    assert digest_of(task(1)) == digest_of(Submit("other", "chat", "ann", "en", "why?", 99))
    assert digest_of(task(1)) != digest_of(task(1, "why"))
    assert valid_key("a b") and not any(map(valid_key, ("", " a", "a\n", "é", "a" * 256)))


def test_a_full_journal_takes_no_more_until_kafka_has_some(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 2, MB)
    journal.take(task(1), "d1", 1)
    journal.take(task(2), "d2", 1)
    assert journal.take(task(2), "other", 1).digest == "d2"
    with pytest.raises(JournalFull):
        journal.take(task(3), "d3", 1)
    assert journal.sent(journal.unsent(State.WAITING, 1)[0], 5)
    journal.take(task(3), "d3", 1)
    journal.forget(6)
    assert journal.get("t-1") is None and journal.rows == 2
    journal.close()
    with pytest.raises(JournalFull):
        Journal(tmp_path, 9, 10).take(task(4), "d4", 1)


def test_two_gateways_of_one_folder_have_a_journal_each(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, 9, MB), Journal(tmp_path, 9, MB)
    first.take(task(1), "d", 1)
    assert second.get("t-1") is None and first.path != second.path
    first.close()
    again = Journal(tmp_path, 9, MB)
    assert again.get("t-1") is not None


def test_what_was_taken_survives_sigkill(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom streams.web.ai.journal import Journal\nfrom topics.ai import Submit\n"
        "journal = Journal(Path(sys.argv[1]), 10_000, 1 << 30)\n"
        "for n in range(10_000):\n"
        "    journal.take(Submit(f't-{n}', 'chat', 'ann', 'en', 'why?', 1), 'd', 1)\n"
        "    journal.begin(f't-{n}')\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    taken = -1
    while taken < 50:
        taken = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    taken = max([taken, *map(int, process.stdout.read().split())])
    process.wait()
    journal = Journal(tmp_path, 10_000, MB)
    waiting = journal.unsent(State.WAITING, 10_000)
    assert [entry.task_id for entry in waiting][: taken + 1] == [f"t-{n}" for n in range(taken + 1)]
    assert all(entry.starts == 1 for entry in waiting[: taken + 1])
    assert not journal.unsent(State.RUNNING, 1)


async def test_a_task_is_done_here_and_reaches_kafka_with_its_outcome(tmp_path: Path) -> None:
    log, model = Log(), Echo()
    keep = keeper(tmp_path, log, model)
    await keep.start()
    await keep.take(task(1), "d")
    await until(lambda: keep.lives.get("t-1") is not None and keep.lives["t-1"].over)
    events = keep.lives["t-1"].events
    assert [event.event for event in events] == ["status", "status", "token", "result"]
    assert len({event.id for event in events}) == 4
    log.unsure, log.connected = 1, True
    await until(lambda: keep.rows == 0)
    await keep.close()
    assert len(model.calls) == 1
    assert len(log.records) == 2 and log.records[0] == log.records[1]  # sent again, the same
    outcome = log.records[0]
    assert isinstance(outcome, Outcome) and outcome.submit == task(1)
    assert (outcome.status, outcome.result, outcome.usage) == (Status.COMPLETED, "so: why?", Usage(3, 2))


async def test_work_that_a_death_cut_short_begins_again_as_the_next_attempt(tmp_path: Path) -> None:
    log, model = Log(), Echo()
    model.gate.clear()
    keep = keeper(tmp_path, log, model)
    await keep.start()
    await keep.take(task(1), "d")
    await until(lambda: bool(model.calls))
    await keep.close()
    model.gate.set()
    keep = keeper(tmp_path, log, model)
    await keep.start()
    await until(lambda: "t-1" in keep.lives and keep.lives["t-1"].over)
    entry = await keep.get("t-1")
    await keep.close()
    assert entry is not None and entry.outcome is not None
    assert (entry.outcome.attempts, entry.outcome.status) == (2, Status.COMPLETED)


async def test_a_call_that_breaks_is_made_again_and_its_tokens_are_void(tmp_path: Path) -> None:
    keep = keeper(tmp_path, Log(), Echo(troubles=1))
    await keep.start()
    await keep.take(task(1), "d")
    await until(lambda: "t-1" in keep.lives and keep.lives["t-1"].over)
    events = keep.lives["t-1"].events
    await keep.close()
    discards = [number for number, event in enumerate(events) if event.data.get("discard")]
    assert len(discards) == 1
    after = "".join(event.data["text"] for event in events[discards[0] :] if event.event == "token")
    assert after == events[-1].data["result"] == "so: why?"


async def test_a_call_fails_after_its_retries(tmp_path: Path) -> None:
    model = Echo(troubles=9)
    keep = keeper(tmp_path, Log(), model)
    await keep.start()
    await keep.take(task(1), "d")
    await until(lambda: "t-1" in keep.lives and keep.lives["t-1"].over)
    last = keep.lives["t-1"].events[-1]
    await keep.close()
    assert len(model.calls) == 3
    assert (last.event, last.data["error"]["type"], last.data["result"]) == ("error", "server_error", None)


async def test_segments_are_asked_one_by_one_and_merged(tmp_path: Path) -> None:
    model = Echo()
    keep = keeper(tmp_path, Log(), model)
    await keep.start()
    await keep.take(task(1, "one/two"), "d")
    await until(lambda: "t-1" in keep.lives and keep.lives["t-1"].over)
    last = keep.lives["t-1"].events[-1]
    await keep.close()
    assert last.data["result"] == "so: one|so: one|so: two"
    assert last.data["usage"] == {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}


async def test_a_cancel_ends_the_call_and_reaches_kafka_behind_its_task(tmp_path: Path) -> None:
    log, model = Log(), Echo()
    model.gate.clear()
    keep = keeper(tmp_path, log, model)
    await keep.start()
    await keep.take(task(1), "d")
    await until(lambda: bool(model.calls))
    assert await keep.cancel("t-1") and not await keep.cancel("t-1")
    assert keep.lives["t-1"].events[-1].data["status"] == "cancelled"
    log.connected = True
    await until(lambda: keep.rows == 0)
    await keep.close()
    assert [type(record).__name__ for record in log.records] == ["Submit", "Cancel"]


async def test_a_task_that_waits_is_left_to_the_workers_once_kafka_is_back(tmp_path: Path) -> None:
    started = time.monotonic()
    log, model = Log(), Echo()
    keep = keeper(tmp_path, log, model)
    keep.limits = JournalLimits(patience_s=60, pause_s=0.01)
    await keep.start()
    await keep.take(task(1), "d")
    log.connected = True
    await until(lambda: keep.rows == 0)
    await keep.close()
    assert log.records == [task(1)] and not model.calls and time.monotonic() - started < 30


async def test_a_cancel_while_kafka_is_told_of_the_task_is_told_too(tmp_path: Path) -> None:
    class Slow(Log):
        gate = asyncio.Event()
        reached = asyncio.Event()

        async def append(self, records: Sequence[HeadedRecord]) -> Place:
            place = await super().append(records)
            self.reached.set()
            await self.gate.wait()
            return place

    log = Slow()
    keep = keeper(tmp_path, log, Echo())
    keep.limits = JournalLimits(patience_s=60, pause_s=0.01)
    await keep.start()
    await keep.take(task(1), "d")
    log.connected = True
    await log.reached.wait()
    assert await keep.cancel("t-1")
    log.gate.set()
    await until(lambda: keep.rows == 0)
    await keep.close()
    assert [type(record).__name__ for record in log.records] == ["Submit", "Submit", "Cancel"]


async def test_a_bug_or_a_type_that_is_gone_fails_its_task_only(tmp_path: Path) -> None:
    class Broken(Echo):
        async def stream(self, call: ModelCall) -> AsyncIterator[Delta | Usage]:
            raise LookupError("a bug")
            yield Usage()

    gone = Submit("t-2", "no-such-type", "ann", "en", "why?", 1)
    for submit, error_type in ((task(1), "internal_error"), (gone, "unknown_type")):
        keep = keeper(tmp_path / error_type, Log(), Broken())
        await keep.start()
        await keep.take(submit, "d")
        await until(lambda: any(live.over for live in keep.lives.values()))  # noqa: B023
        entry = await keep.get(submit.task_id)
        await keep.close()
        assert entry is not None and entry.outcome is not None
        assert (entry.outcome.status, entry.outcome.error_type) == (Status.FAILED, error_type)


async def test_an_answer_that_no_record_holds_fails_its_task(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log, Echo())
    await keep.start()
    await keep.take(task(1, "\x01" * (200 << 10)), "d")
    await until(lambda: "t-1" in keep.lives and keep.lives["t-1"].over)
    log.connected = True
    await until(lambda: keep.rows == 0)
    await keep.close()
    (outcome,) = log.records
    assert isinstance(outcome, Outcome)
    assert (outcome.error_type, outcome.result) == ("answer_too_large", "")


async def test_the_time_of_a_task_begins_with_its_first_call(tmp_path: Path) -> None:
    model = Echo()
    model.gate.clear()
    rules = DirectRules(models={"m": (1, 0), "other": (1, 0)}, split=lambda text: [text], deadline_s=0.3)
    keep = Keeper(tmp_path, Log(), DirectWork(model, Plain(), rules), JournalLimits(patience_s=0.0, pause_s=0.01))
    await keep.start()
    for number in range(2):
        await keep.take(task(number), "d")
    await until(lambda: len(model.calls) == 2)  # the first one's time is over
    model.gate.set()
    await until(lambda: "t-1" in keep.lives and keep.lives["t-1"].over)
    ends = [await keep.get(f"t-{number}") for number in range(2)]
    await keep.close()
    assert [end.outcome.error_type for end in ends if end and end.outcome] == ["deadline_exceeded", None]


def test_the_newest_tasks_are_listed_a_page_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 9, MB)
    for number in range(4):
        journal.take(task(number), "d", number // 2)
    journal.take(Submit("b", "chat", "bob", "en", "?", 1), "d", 7)
    assert [entry.task_id for entry in journal.newest("ann", None, 9)] == ["t-3", "t-2", "t-1", "t-0"]
    assert [entry.task_id for entry in journal.newest("ann", (1, "t-2"), 1)] == ["t-1"]
    assert [entry.task_id for entry in journal.newest(None, None, 1)] == ["b"]
