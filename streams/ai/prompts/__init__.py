"""What a model is told: a task's type selects a versioned template, its language the answer's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from streams.ai.model_port import Asked, Message, Part, TaskType
from streams.ai.prompts.templates import TEMPLATES


class ShippedPrompts:
    """The templates of this folder; a `Prompts`. `models` names the model of each task type that has one of its own."""

    def __init__(self, model: str, models: Mapping[str, str] = MappingProxyType({})) -> None:
        unknown = set(models) - set(TEMPLATES)
        if unknown:
            raise ValueError(f"no task type is called {', '.join(sorted(unknown))}; there are: {', '.join(TEMPLATES)}")
        self._task_types = {
            name: TaskType(f"{name}.v{template.version}", models.get(name, model))
            for name, template in TEMPLATES.items()
        }

    @property
    def task_types(self) -> Mapping[str, TaskType]:
        """All task types there are; others are refused."""
        return MappingProxyType(self._task_types)

    def messages(self, asked: Asked) -> tuple[Message, ...]:
        """The messages of one call: what to do, and the text it is about, each in a message of its own, so that no text
        can pass for an instruction of ours. `asked.task_type` is one of `task_types`."""
        template = TEMPLATES[asked.task_type]
        language = f"Write your answer in this language: {asked.language}."
        match asked.part:
            case Part.WHOLE:
                return Message("system", f"{template.task} {language}"), Message("user", asked.texts[0])
            case Part.SEGMENT:
                place = (
                    f"You see part {asked.number} of {asked.of} of a long text; each part begins with the end of the "
                )
                task = f"{template.task} {place}one before. {template.segment} {language}"
                return Message("system", task), Message("user", asked.texts[0])
            case Part.MERGE:
                beginning, *answers = asked.texts
                place = f"A long text was worked on in {len(answers)} parts, which overlap. You see its beginning, and then "
                task = f"{template.task} {place}what was found in each part, in order. {template.merge} {language}"
                found = (f"Part {number} of {len(answers)}:\n{text}" for number, text in enumerate(answers, 1))
                text = "\n\n".join([f"Beginning of the text:\n{beginning}", *found])
                return Message("system", task), Message("user", text)
