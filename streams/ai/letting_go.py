"""What finished tasks have said is kept within a budget: the oldest let go of theirs, which ClickHouse has.

Question, answers and reasoning leave state and changelog alike. What stays of the question is a digest, by which a repeated
submit is still told from a conflict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec

from streams.ai import task as tasks
from streams.ai.state import ORIGIN_TAG, TASK_TAG, TEXT_TAG, AiState, ChangelogRecord, key_of
from streams.ai.task import Task, Webhook
from streams.ai.text import Text
from topics.ai import Submit


class Texts(NamedTuple):
    """What a task has let go of."""

    question: str
    result: str


class TextsAway(Exception):
    """They cannot be read now."""


class LetGoTexts(Protocol):
    """Where they are."""

    async def texts(self, task_id: str) -> Texts:
        """Those of a task that has let go of them. Raises TextsAway."""


def keep(state: AiState, task: Task) -> None:
    """A task is over: its texts count from now on."""
    state.kept[task.id] = 2 * len(task.origin.value) + sum(text.nbytes for text in task.texts)
    state.kept_bytes += state.kept[task.id]


def forget_texts(state: AiState, task: Task) -> None:
    """They count no longer."""
    state.kept_bytes -= state.kept.pop(task.id, 0)


def let_go(state: AiState) -> list[ChangelogRecord]:
    """Bring the texts within the budget; what the changelog is to be told of it."""
    changelog: list[ChangelogRecord] = []
    for task in list(_oldest(state)):
        changelog += _slimmed(state, task)
    return changelog


def _oldest(state: AiState) -> Iterator[Task]:
    """The tasks that are to let go of theirs. Those that ClickHouse may not have yet keep them."""
    over = state.kept_bytes - state.rules.texts_bytes_share
    for task_id, size in state.kept.items():
        task = state.tasks[task_id]
        if over <= 0 or task_id in state.dirty or task.version > state.materialised:
            return
        if task.webhook is not Webhook.WANTED:
            over -= size
            yield task


def _slimmed(state: AiState, task: Task) -> Iterator[ChangelogRecord]:
    for call, text in enumerate(task.texts):
        yield from ((key_of(TEXT_TAG, task.id, call, chunk), None) for chunk in range(text.chunks))
    forget_texts(state, task)
    task.texts = [Text() for _ in task.calls]
    task.submit = msgspec.structs.replace(task.submit, question=digest_of(task.submit.question))
    task.origin = msgspec.structs.replace(task.origin, value=msgspec.json.encode(task.submit))
    task.let_go = True
    yield key_of(ORIGIN_TAG, task.id), tasks.encode(task.origin)
    # Its row is not written again: the version stays.
    yield key_of(TASK_TAG, task.id), tasks.encode(task.save(task.version))


def same_task(known: Task, submit: Submit) -> bool:
    """Whether a submit asks for what a known task was submitted with."""
    question = digest_of(submit.question) if known.let_go else submit.question
    asked = msgspec.structs.replace(submit, submitted_ms=known.submit.submitted_ms, question=question)
    return asked == known.submit


def digest_of(question: str) -> str:
    """What stays of a question."""
    return hashlib.blake2b(question.encode(), digest_size=16).hexdigest()
