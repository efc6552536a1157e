"""What the stand-in model is told to do wrong, by a request's model name or by rules, and what it counts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from enum import StrEnum

import msgspec

#: What every model name of the stand-in begins with.
NAME = "stand-in"
#: How long an answer takes unless the name or a rule says otherwise.
ANSWER_MS = 500
#: Calls that are remembered; the oldest are forgotten.
CALLS_MAX = 100_000


class Fault(StrEnum):
    """What goes wrong; the `_first` forms before the first token, the others half-way."""

    PLAIN = "plain"  # refuses `stream: true` with 400
    UNSTREAMED = "unstreamed"  # answers `stream: true` with a whole answer
    HANG = "hang"  # takes the request and says nothing
    STALL = "stall"
    BROKEN = "broken"  # an event that is no JSON
    BROKEN_FIRST = "broken_first"
    CUT = "cut"  # the connection breaks
    CUT_FIRST = "cut_first"
    ENDED = "ended"  # the stream ends as if it were whole, without a finish_reason
    TOLD = "told"  # an event that says that an error happened
    S400 = "400"
    S401 = "401"
    S429 = "429"
    S500 = "500"
    S503 = "503"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Applies to the requests of a task, of a call of it and of a model, where these are given; to the first `times` of them,
    and to a `share` of them, which their names alone decide. The first rule that applies is the one that does."""

    fault: Fault | None = None
    task: str | None = None
    call: int | None = None
    model: str | None = None
    times: int | None = None
    share: float = 1.0
    answer_ms: int | None = None
    retry_after_s: float | None = None


class Called(msgspec.Struct):
    """What became of the requests of one call of a task."""

    requests: int = 0
    streamed: int = 0
    answered: int = 0
    faults: Counter[str] = msgspec.field(default_factory=Counter)


class Behaviour(msgspec.Struct, frozen=True):
    """How one request is answered."""

    fault: Fault | None
    answer_ms: int
    reasons: bool
    retry_after_s: float | None = None
    clock: bool = False


_PART = re.compile(r"(?:-(?P<ms>\d+)ms|-(?P<reasons>reasoning)|-(?P<clock>clock)|-(?P<fault>[a-z0-9_]+))")


def behaviour_of(model: str) -> Behaviour | None:
    """What a model's name asks for: `stand-in`, and any of `-reasoning`, `-<n>ms`, `-clock` and `-<fault>`; None for another
    name. The words of a `-clock` are the Unix times at which they are said, microseconds."""
    rest = model.removeprefix(NAME)
    found = Behaviour(None, ANSWER_MS, False)
    if rest == model:
        return None
    while rest:
        part = _PART.match(rest)
        if part is None:
            return None
        if part["ms"]:
            found = msgspec.structs.replace(found, answer_ms=int(part["ms"]))
        elif part["reasons"]:
            found = msgspec.structs.replace(found, reasons=True)
        elif part["clock"]:
            found = msgspec.structs.replace(found, clock=True)
        elif part["fault"] in list(Fault):
            found = msgspec.structs.replace(found, fault=Fault(part["fault"]))
        else:
            return None
        rest = rest[part.end() :]
    return found


class Script:
    """The rules, and the counts by `task/call`, as the header X-Client-Request-Id (`task/call/attempt`) names them."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._left: list[int | None] = []
        self.calls: OrderedDict[str, Called] = OrderedDict()

    def set(self, rules: list[Rule]) -> None:
        """Replace all rules."""
        self._rules, self._left = rules, [rule.times for rule in rules]

    def called(self, name: str) -> Called:
        """The counts of a request's call."""
        found = self.calls.setdefault(_call_of(name), Called())
        if len(self.calls) > CALLS_MAX:
            self.calls.popitem(last=False)
        return found

    def decide(self, name: str, model: str) -> Behaviour | None:
        """How to answer a request; uses up one of the rule's times. None for a model that there is not."""
        asked = behaviour_of(model)
        if asked is None:
            return None
        for number, rule in enumerate(self._rules):
            left = self._left[number]
            if left == 0 or not _applies(rule, name, model):
                continue
            self._left[number] = None if left is None else left - 1
            answer_ms = asked.answer_ms if rule.answer_ms is None else rule.answer_ms
            return Behaviour(rule.fault, answer_ms, asked.reasons, rule.retry_after_s, asked.clock)
        return asked


def _call_of(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _applies(rule: Rule, name: str, model: str) -> bool:
    task, call = [*name.split("/"), "", ""][:2]
    return (
        (rule.task is None or rule.task == task)
        and (rule.call is None or str(rule.call) == call)
        and (rule.model is None or rule.model == model)
        and _share(f"{rule.fault}/{name}") < rule.share
    )


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / (1 << 32)
