"""What a fetch's bytes become: every codec's records, nothing of aborted transactions, and poison kept whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException

from streams.runtime.fetched import UNPACKED_BYTES_MAX, FetchedRecords, decode_fetch
from tests.recordbatch import CODECS, Raw, abort_marker, record_batch
from topics.records import Batch


def _decoded(data: bytes, position: int = 0, aborted: Sequence[tuple[int, int]] = ()) -> Batch:
    fetched = PartitionRecords(
        TopicPartition("t", 3), FetchedRecords(data), list(aborted), position, None, None, True, READ_COMMITTED
    )
    batch = decode_fetch("t", 3, fetched)
    assert (batch.topic, batch.partition, batch.begin, batch.end) == ("t", 3, position, fetched.next_fetch_offset)
    return batch


@pytest.mark.parametrize("codec", CODECS)
def test_records_of_every_codec_are_read(codec: str) -> None:
    sent = [Raw(b"k", b"v" * 50, (("producer", b"edge"), ("empty", None))), Raw(None, b""), Raw(b"k", None)]
    batch = _decoded(record_batch(sent, codec=codec, base_offset=7, append_ms=123))
    assert batch.offsets.tolist() == [7, 8, 9]
    assert batch.append_ms.tolist() == [123] * 3
    assert [(r.key, r.value) for r in batch.records()] == [(b"k", b"v" * 50), (None, b""), (b"k", None)]
    assert [tuple(r.headers) for r in batch.records()] == [(("producer", b"edge"), ("empty", None)), (), ()]
    assert batch.unreadable == ()


def test_a_position_inside_a_batch_leaves_out_what_came_before() -> None:
    batch = _decoded(record_batch([Raw(b"k", b"%d" % i) for i in range(5)], base_offset=10), position=13)
    assert _values(batch) == [b"3", b"4"]
    assert (batch.begin, batch.end) == (13, 15)


def test_aborted_transactions_and_control_records_are_left_out() -> None:
    data = b"".join(
        [
            record_batch([Raw(b"k", b"aborted")], base_offset=0, producer_id=9, transactional=True),
            record_batch([Raw(b"k", b"other")], base_offset=1, producer_id=8, transactional=True),
            abort_marker(base_offset=2, producer_id=9),
            record_batch([Raw(b"k", b"again")], base_offset=3, producer_id=9, transactional=True),
        ]
    )
    batch = _decoded(data, aborted=[(9, 0)])
    assert _values(batch) == [b"other", b"again"]
    assert batch.end == 4


def test_a_corrupt_payload_is_kept_whole_and_its_neighbours_are_read() -> None:
    poison = record_batch([Raw(b"k", b"lost" * 100)] * 3, codec="lz4", base_offset=1, append_ms=5, spoil=True)
    data = record_batch([Raw(b"k", b"before")]) + poison + record_batch([Raw(b"k", b"after")], base_offset=4)
    batch = _decoded(data)
    assert _values(batch) == [b"before", b"after"]
    (piece,) = batch.unreadable
    assert (piece.first_offset, piece.next_offset, piece.append_ms, piece.data) == (1, 4, 5, poison)
    assert piece.error


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_name_that_is_no_utf8_spoils_nothing(codec: str) -> None:
    sent = [Raw(b"k", b"1", ((b"\xff\xfe", b"x"),)), Raw(b"k", b"2", ((b"ok", None),))]
    batch = _decoded(record_batch(sent, codec=codec, append_ms=11))
    assert _values(batch) == [b"1", b"2"]
    assert batch.append_ms.tolist() == [11, 11]
    assert [tuple(r.headers) for r in batch.records()] == [(("\\xff\\xfe", b"x"),), (("ok", None),)]
    assert batch.unreadable == ()


def test_what_comes_before_a_record_that_makes_no_sense_is_kept() -> None:
    sent = [Raw(b"k", b"1"), Raw(b"k", b"2"), Raw(b"k", b"3", ((b"h", None),))]
    data = record_batch(sent, base_offset=5, append_ms=9, cut_bytes=3)
    batch = _decoded(data + record_batch([Raw(b"k", b"after")], base_offset=8))
    assert _values(batch) == [b"1", b"2", b"after"]
    (piece,) = batch.unreadable
    assert (piece.first_offset, piece.next_offset, piece.append_ms, piece.data) == (7, 8, 9, data)


def test_bytes_after_the_last_record_cost_none_of_them() -> None:
    batch = _decoded(record_batch([Raw(b"k", b"1"), Raw(b"k", b"2")], payload_tail=b"junk"))
    assert (_values(batch), batch.unreadable) == ([b"1", b"2"], ())


@pytest.mark.parametrize(
    ("deltas", "read"),
    [
        ([0, 0, 1], 1),
        ([1, 0, 2], 1),
        ([2, 0, 1], 1),
        ([-1, 0, 1], 0),
        ([3, 4, 5], 0),
        ([0, 1, 2**62], 2),
        ([0, 2, 1], 2),
    ],
    ids=str,
)
def test_offsets_out_of_turn_are_poison(deltas: list[int], read: int) -> None:
    """Brokers take them in batches that are not compressed; a reader that went by them would skip records in silence."""
    sent = [Raw(b"k", b"%d" % i, delta=delta) for i, delta in enumerate(deltas)]
    data = record_batch(sent, base_offset=5, append_ms=9)
    batch = _decoded(data + record_batch([Raw(b"k", b"after")], base_offset=8), position=5)
    assert batch.offsets.tolist() == [*(5 + delta for delta in deltas[:read]), 8]
    (piece,) = batch.unreadable
    first = min(batch.offsets[read - 1] + 1, 7) if read else 5
    assert (piece.first_offset, piece.next_offset, piece.data) == (first, 8, data)
    assert "its offsets" in piece.error


def test_a_number_too_long_for_a_word_is_poison() -> None:
    too_long = b"\x82" + b"\x80" * 8 + b"\x02"  # 1 in its low 64 bits
    data = record_batch([Raw(b"k", b"1"), Raw(b"k", b"2", (("producer", b"edge"),), count=too_long)])
    batch = _decoded(data)
    assert [(r.value, tuple(r.headers)) for r in batch.records()] == [(b"1", ())]
    assert [piece.first_offset for piece in batch.unreadable] == [1]


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_becomes_huge_is_poison(codec: str) -> None:
    bomb = record_batch([Raw(b"k", bytes(UNPACKED_BYTES_MAX))], codec=codec, base_offset=1)
    assert len(bomb) < UNPACKED_BYTES_MAX // 100
    batch = _decoded(record_batch([Raw(b"k", b"1")]) + bomb + record_batch([Raw(b"k", b"2")], base_offset=2))
    assert _values(batch) == [b"1", b"2"]
    assert [(piece.first_offset, piece.next_offset, piece.data) for piece in batch.unreadable] == [(1, 2, bomb)]


def test_a_fetch_of_many_large_batches_ends_early_and_goes_on_where_it_ended() -> None:
    value = bytes(UNPACKED_BYTES_MAX // 3)
    data = b"".join(record_batch([Raw(b"k", value)], codec="zstd", base_offset=i) for i in range(5))
    batch = _decoded(data)
    assert (len(batch), batch.end, batch.unreadable) == (3, 3, ())


def test_a_batch_that_compresses_a_hundredfold_is_read() -> None:
    sent = [Raw(b"k", b"the same again" * 10) for _ in range(10_000)]
    assert len(data := record_batch(sent, codec="zstd")) < 1_500_000 // 50
    assert _values(_decoded(data)) == [raw.value for raw in sent]


def test_a_wrong_checksum_is_no_poison_but_a_fault() -> None:
    data = bytearray(record_batch([Raw(b"k", b"v")]))
    data[-1] ^= 1
    with pytest.raises(CorruptRecordException, match=r"t\[3\] at 0"):
        _decoded(bytes(data))


def test_a_batch_that_begins_inside_another_has_its_records() -> None:
    sent = [Raw(b"k", b"%d" % i, (("n", b"%d" % i),)) for i in range(5)]
    batch = _decoded(record_batch(sent[:3]) + record_batch(sent[3:], base_offset=3)).since(2)
    assert (batch.begin, batch.end, len(batch)) == (2, 5, 3)
    assert [(r.offset, r.value, list(r.headers)) for r in batch.records()] == [
        (i, b"%d" % i, [("n", b"%d" % i)]) for i in (2, 3, 4)
    ]


def _values(batch: Batch) -> list[bytes | None]:
    return [record.value for record in batch.records()]
