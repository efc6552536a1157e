"""The messages that a model is sent, word for word: another wording is another version of the template."""

from __future__ import annotations

import hashlib

import pytest

from streams.ai.model_port import Asked, Message, Part, Prompts
from streams.ai.prompts import ShippedPrompts

PROMPTS: Prompts = ShippedPrompts("deepseek-ai/DeepSeek-R1", {"summary": "small"})


def test_a_type_selects_template_and_model() -> None:
    found = {name: (kind.template, kind.model) for name, kind in PROMPTS.task_types.items()}
    assert found == {
        "analysis": ("analysis.v1", "deepseek-ai/DeepSeek-R1"),
        "question": ("question.v1", "deepseek-ai/DeepSeek-R1"),
        "summary": ("summary.v1", "small"),
        "translation": ("translation.v1", "deepseek-ai/DeepSeek-R1"),
    }


def test_a_model_for_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="no task type is called horoscope; there are: analysis, question"):
        ShippedPrompts("m", {"horoscope": "m"})


def test_a_whole_question() -> None:
    asked = Asked(task_type="question", language="zh", part=Part.WHOLE, texts=("为什么天空是蓝色的？ {braces} %s",))
    assert PROMPTS.messages(asked) == (
        Message(
            "system",
            "Answer the user's question correctly and to the point, the answer itself first. Where you do not know, say so. "
            "Write your answer in this language: zh.",
        ),
        Message("user", "为什么天空是蓝色的？ {braces} %s"),
    )


def test_a_segment() -> None:
    asked = Asked(task_type="summary", language="en", part=Part.SEGMENT, texts=("the part",), number=2, of=3)
    assert PROMPTS.messages(asked) == (
        Message(
            "system",
            "Summarise the text that the user sends in about a tenth of its length, in its own order, adding nothing that it "
            "does not say. You see part 2 of 3 of a long text; each part begins with the end of the one before. Summarise "
            "this part alone; do not repeat what its beginning shares with the part before. Write your answer in this "
            "language: en.",
        ),
        Message("user", "the part"),
    )


def test_a_merge() -> None:
    asked = Asked(task_type="question", language="de", part=Part.MERGE, texts=("Why", "first", "second"))
    assert PROMPTS.messages(asked) == (
        Message(
            "system",
            "Answer the user's question correctly and to the point, the answer itself first. Where you do not know, say so. "
            "A long text was worked on in 2 parts, which overlap. You see its beginning, and then what was found in each "
            "part, in order. Answer the question from what was found. Mention neither parts nor their order. Write your "
            "answer in this language: de.",
        ),
        Message("user", "Beginning of the text:\nWhy\n\nPart 1 of 2:\nfirst\n\nPart 2 of 2:\nsecond"),
    )


@pytest.mark.parametrize(
    ("task_type", "digest"),
    [
        ("analysis", "05f321463c956be3"),
        ("question", "3153975c21d0b87d"),
        ("summary", "597fd32009ff1b6f"),
        ("translation", "a9a41719b991f784"),
    ],
)
def test_a_version_keeps_its_words(task_type: str, digest: str) -> None:
    """All three kinds of call. If this fails and the change is meant, raise the template's version."""
    said = "\n".join(
        f"{message.role}: {message.content}"
        for part in Part
        for message in PROMPTS.messages(Asked(task_type=task_type, language="en", part=part, texts=("a", "b", "c")))
    )
    template = PROMPTS.task_types[task_type].template
    assert (template, hashlib.sha256(said.encode()).hexdigest()[:16]) == (f"{task_type}.v1", digest)
