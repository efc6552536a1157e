"""Topics that were just made: a worker goes on once the brokers know of them, and not before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.runtime.admin import TopicAdmin, TopicIdentity
from topics.specs import TopicSpec


class _Made:
    def result(self, timeout: float) -> None:
        """Created."""


class _Client:
    def create_topics(self, news: list[object], request_timeout: float) -> dict[str, _Made]:
        return {"new": _Made()}


def _admin(monkeypatch: pytest.MonkeyPatch, codes: list[int], timeout_s: float) -> tuple[TopicAdmin, Iterator[int]]:
    """An admin whose describing fails with these codes, one after another, before it succeeds."""
    admin = TopicAdmin({"bootstrap.servers": "127.0.0.1:1"}, 1, timeout_s)
    left = iter(codes)

    def identify(topics: list[str]) -> list[TopicIdentity]:
        for code in left:
            raise KafkaException(KafkaError(code))
        return [TopicIdentity("id", 1)]

    monkeypatch.setattr(admin, "_client", _Client())
    monkeypatch.setattr(admin, "_identify", identify)
    return admin, left


def test_a_topic_that_was_made_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    admin, left = _admin(monkeypatch, [KafkaError.UNKNOWN_TOPIC_OR_PART] * 3, 15.0)
    admin._create([TopicSpec("new", 1)])
    assert list(left) == []


def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    admin, _ = _admin(monkeypatch, [KafkaError.UNKNOWN_TOPIC_OR_PART] * 1_000, 0.2)
    with pytest.raises(KafkaException):
        admin._create([TopicSpec("new", 1)])


def test_another_error_is_not_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    admin, left = _admin(monkeypatch, [KafkaError.TOPIC_AUTHORIZATION_FAILED] * 2, 15.0)
    with pytest.raises(KafkaException):
        admin._create([TopicSpec("new", 1)])
    assert list(left) != []
