"""A record in the wrong partition for its key is sent on, once: another partitioner, or a producer that sets none."""

from __future__ import annotations

from topics.headers import Headers, header
from topics.malformed import Malformed
from topics.records import Emit
from topics.specs import HEADER_ROOM_BYTES

#: The header that marks a record that was sent on; its value says from where.
REROUTED = "rerouted"


def sent_on(
    topic: str, origin: tuple[int, int], record: tuple[bytes | None, bytes | None, Headers], to: int, size_max: int
) -> Emit | Malformed:
    """The record to write into partition `to`, or why it is a dead letter instead.

    `origin` is (partition, offset) of the record, `record` its key, value and headers, `size_max` the bytes that the topic
    takes of one record beside its headers.
    """
    key, value, headers = record
    if headers and header(headers, REROUTED) is not None:
        return Malformed("misrouted", f"sent on once already, but its key belongs to partition {to}")
    emit = Emit(topic, key, value, [*headers, (REROUTED, b"%d/%d" % origin)], to)
    if emit.nbytes > size_max + HEADER_ROOM_BYTES:
        # Compressed well it came in; as a record of its own it might be refused, and the partition stand still.
        return Malformed("oversized", f"its {emit.nbytes} bytes are too many to send on to {to}")
    return emit
