"""What a gateway remembers of submissions: bounded, and for as long as it is of use."""

from __future__ import annotations

from streams.web.publisher import Place
from streams.web.recent import Recent


def test_the_newest_are_kept_within_bytes_and_number() -> None:
    recent = Recent[str](len, most=5, bytes_max=30)
    for number in range(4):
        recent.remember(f"j{number}", "x" * 10)
    assert [recent.get(f"j{number}") is not None for number in range(4)] == [False, True, True, True]
    recent.remember("large", "x" * 31)
    assert all(recent.get(name) is None for name in ("large", "j3")), "what fits nowhere is not kept"
    for number in range(9):
        recent.remember(f"s{number}", "x")
    assert [recent.get(f"s{number}") is not None for number in range(9)] == [False] * 4 + [True] * 5


def test_one_that_is_sent_again_is_the_newest_and_counts_once() -> None:
    recent = Recent[str](len, most=9, bytes_max=30)
    for _ in range(5):
        first = recent.remember("a", "x" * 10)
    second = recent.remember("b", "y" * 10)
    again = recent.remember("a", "x" * 10)
    recent.forget(first)
    assert recent.get("a") is again, "only itself is forgotten"
    recent.remember("c", "z" * 15)
    assert (recent.get("b"), recent.get("a")) == (None, again)
    recent.forget(second)
    recent.forget(again)
    recent.remember("d", "z" * 15)
    assert recent.get("c") is not None


def test_it_answers_for_what_its_owner_has_not_read() -> None:
    recent = Recent[str](len, most=9, bytes_max=100)
    kept = recent.remember("a", "x")
    assert recent.unread("a", 1_000) == "x", "Kafka has not confirmed it"
    kept.place = Place(0, 7)
    assert (recent.unread("a", 7), recent.unread("a", 8), recent.unread("b", 0)) == ("x", None, None)


def test_what_is_old_is_not_compared_with() -> None:
    recent = Recent[str](len, most=9, bytes_max=100, compared_s=0.0)
    recent.remember("a", "x", Place(0, 7))
    assert recent.get("a") is None and recent.unread("a", 7) == "x"
