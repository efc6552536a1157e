"""A record in the wrong partition for its key is sent on, once: another partitioner, or a producer that sets none."""

from __future__ import annotations

from topics.headers import header
from topics.malformed import Malformed
from topics.records import Emit, Record
from topics.specs import HEADER_ROOM_BYTES

#: The header that marks a record that was sent on; its value says from where.
REROUTED = "rerouted"


def sent_on(topic: str, partition: int, record: Record, to: int, size_max: int) -> Emit | Malformed:
    """What to write into partition `to` for a record that lies in `partition`, or why it is a dead letter instead.

    `size_max` is what the topic takes of one record beside its headers, bytes.
    """
    if record.headers and header(record.headers, REROUTED) is not None:
        return Malformed("misrouted", f"sent on once already, but its key belongs to partition {to}")
    marked = [*record.headers, (REROUTED, b"%d/%d" % (partition, record.offset))]
    emit = Emit(topic, record.key, record.value, marked, to)
    if emit.nbytes > size_max + HEADER_ROOM_BYTES:
        # Compressed well it came in; as a record of its own it might be refused, and the partition stand still.
        return Malformed("oversized", f"its {emit.nbytes} bytes are too many to send on to {to}")
    return emit
