"""The templates. What one says is part of a task's record: a change of its words is a new version."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """What to do with a text; `segment` and `merge` say what that means for a part of one and for what the parts gave."""

    version: int
    task: str
    segment: str
    merge: str


TEMPLATES = {
    "analysis": Template(
        version=1,
        task=(
            "Analyse the text that the user sends: say what it is about, what matters in it, what follows from it, and what "
            "remains uncertain. Rest on the text, and say so where you go beyond it."
        ),
        segment="Analyse this part alone, briefly, with the facts and figures that the whole analysis will need.",
        merge="Write one analysis of the whole text. Mention neither parts nor their order, and nothing twice.",
    ),
    "question": Template(
        version=1,
        task=(
            "Answer the user's question correctly and to the point, the answer itself first. Where you do not know, say so."
        ),
        segment="Collect from this part what helps to answer the question; if nothing does, say just that.",
        merge="Answer the question from what was found. Mention neither parts nor their order.",
    ),
    "summary": Template(
        version=1,
        task=(
            "Summarise the text that the user sends in about a tenth of its length, in its own order, adding nothing that it "
            "does not say."
        ),
        segment="Summarise this part alone; do not repeat what its beginning shares with the part before.",
        merge="Join the summaries into one that reads as a whole. Mention neither parts nor their order, and nothing twice.",
    ),
    "translation": Template(
        version=1,
        task=(
            "Translate the text that the user sends faithfully and in full, keeping its form, names, figures and code. Send "
            "the translation and nothing else."
        ),
        segment="Translate this part in full.",
        merge="Join the translations into one. Where two overlap, keep one; leave out nothing else, and add nothing.",
    ),
}
