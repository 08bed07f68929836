"""Fold: each record once, each piece of damage once."""

from __future__ import annotations

import json

import orjson
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import fold
from m31a_mp.decoder import Damage, Line
from m31a_mp.fold import Fold
from m31a_mp.journal import Batch
from m31a_mp.rejected import Rejected
from m31a_mp.totals import Totals
from strategies import Record, entries, expected, few_records


def lines(records: list[Record], first: int) -> bytes:
    return b"".join(record.line(first + i) for i, record in enumerate(records))


@given(st.lists(few_records, max_size=20), st.lists(st.integers(0, 20), max_size=8), st.integers(0, 5))
def test_batches_that_come_again_and_again_count_each_record_once(
    records: list[Record], cuts: list[int], repeats: int
) -> None:
    ends = [*sorted(min(cut, len(records)) for cut in cuts), len(records)]
    result = Fold(Totals(0))
    done = 0
    for end in ends:
        # What was not noted as done comes again, with what is new behind it.
        start = max(0, done - repeats)
        for _ in range(2):
            data = lines(records, 0)
            kept = data.split(b"\n")[start:end]
            result.batch("journal", Batch("a", start + 1, b"".join(line + b"\n" for line in kept)))
        done = end
    assert entries(result.totals.to_metrics("s")) == expected(enumerate(records))
    assert result.records == len(records)


def test_records_of_two_writers_with_the_same_numbers_all_count() -> None:
    result = Fold(Totals(0))
    for writer in "ab":
        result.batch("journal", Batch(writer, 1, lines([Record("heal_trigger", ("plan",))], 0)))
    assert result.totals.phases["plan"].heals == 2


def test_gap_in_the_numbers_loses_nothing_and_what_is_below_it_is_known() -> None:
    record = Record("heal_trigger", ("plan",))
    result = Fold(Totals(0))
    result.batch("journal", Batch("a", 5, lines([record] * 2, 5)))
    result.batch("journal", Batch("a", 5, lines([record] * 3, 5)))
    assert result.totals.phases["plan"].heals == 3


def test_invalid_record_of_a_batch_is_rejected_with_its_place_and_is_not_offered_again() -> None:
    good = Record("heal_trigger", ("plan",)).line(1)
    result = Fold(Totals(0))
    batch = Batch("a", 1, good + b"garbage\n" + good, offset=100)
    result.batch("journal", batch)
    result.batch("journal", batch)
    (item,) = result.rejected
    assert (item.file, item.offset, item.data) == ("journal", 100 + len(good), b"garbage")
    assert (result.records, result.totals.rejected) == (2, 1)


_odd: st.SearchStrategy[object] = st.sampled_from(
    [None, True, False, 0, -1, 1.0, -1.0, -0.0, 2**63 - 1, 2**63, 2**64, 1e308, "", "plan", "0", [], {}, [1]]
)


@st.composite
def _odd_lines(draw: st.DrawFn) -> bytes:
    """A record of which something may be missing, odd or too much; or no record, nor even a line."""
    record = orjson.loads(draw(few_records).line(draw(st.integers(0, 50))))
    for key in draw(st.lists(st.sampled_from([*record, "more"]), max_size=2)):
        if key == "time" or draw(st.booleans()):  # without a time, a line gets that of its folding
            record[key] = draw(_odd)
        else:
            record.pop(key, None)
    line = json.dumps(record).encode()  # which writes integers of any size
    return draw(
        st.sampled_from([line, line, line, line, line[:-1], line + b"," + line, b"[]", b"{}", b"", b"1"])
    )


@given(st.lists(_odd_lines(), max_size=12), st.integers(0, 12))
def test_batch_gives_what_its_lines_give_one_by_one(texts: list[bytes], known: int) -> None:
    data = b"".join(text + b"\n" for text in texts)
    batch, single = Fold(Totals(0)), Fold(Totals(0))
    batch.totals.writer("a").last = known
    batch.batch("j", Batch("a", 1, data))
    offsets = [sum(len(text) + 1 for text in texts[:i]) for i in range(len(texts))]
    single.journal("j", [Line(o, t) for o, t in list(zip(offsets, texts, strict=True))[known:]])
    assert batch.totals.to_metrics("s") == single.totals.to_metrics("s")
    assert batch.totals.to_checkpoint() | {"writers": {}} == single.totals.to_checkpoint() | {"writers": {}}
    assert (batch.records, batch.rejected) == (single.records, single.rejected)


def test_damage_and_lines_are_told_apart() -> None:
    result = Fold(Totals(0))
    good = Record("heal_trigger", ("plan",)).line(1)
    result.journal("j", [Line(0, good), Damage(50, "why", b"what"), Line(90, b"garbage\n"), Line(99, good)])
    assert [(item.offset, item.data.rstrip()) for item in result.rejected] == [
        (50, b"what"),
        (90, b"garbage"),
    ]
    assert (result.records, result.totals.rejected) == (2, 2)


def test_rejected_pieces_are_all_counted_and_their_bytes_bounded() -> None:
    result = Fold(Totals(0))
    for i in range(30):
        result.reject(Rejected("j", i, "why", bytes(1024 * 1024)))
    assert result.totals.rejected == len(result.rejected) == 30
    assert sum(len(item.data) for item in result.rejected) <= fold._MAX_REJECTED_BYTES
