"""What records add up to, in whatever order they are added."""

from __future__ import annotations

import math
from fractions import Fraction

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import SessionMetrics, totals
from m31a_mp.events import fold_record
from m31a_mp.totals import ExactSum, TooManyEntriesError, Totals
from strategies import INT64_MAX, Record, entries, expected, few_names, few_records, records_of

LARGEST = 1.7976931348623157e308


def folded(records: list[tuple[int, Record]], into: Totals | None = None) -> Totals:
    result = into or Totals(0)
    for time, record in records:
        fold_record(result, record.line(time), 0)
    return result


def stored(before: Totals) -> Totals:
    """As the next process reads it."""
    metrics = orjson.loads(orjson.dumps(before.to_metrics("s").to_json()))
    checkpoint = orjson.loads(orjson.dumps(before.to_checkpoint()))
    return Totals.restore(SessionMetrics.from_json(metrics), checkpoint)


values = st.floats(0, LARGEST) | st.sampled_from([0.1, 5e-324, 1e16, 1.0, 2**-1074, 1e308])


class TestExactSum:
    @given(st.lists(values, max_size=50))
    def test_sum_is_the_exact_one_rounded_once(self, values: list[float]) -> None:
        exact = sum(map(Fraction, values), Fraction())
        total = ExactSum()
        for value in values:
            total.add(value)
        try:
            wanted = exact.numerator / exact.denominator
        except OverflowError:
            wanted = LARGEST
        assert total.value() == wanted

    @given(st.lists(st.floats(0, 1e300), max_size=20), st.integers(0, 20))
    def test_sum_that_is_stored_on_the_way_is_the_same(self, values: list[float], at: int) -> None:
        straight, resumed = ExactSum(), ExactSum()
        for value in values[:at]:
            resumed.add(value)
        resumed = ExactSum(orjson.loads(orjson.dumps(resumed.parts())))
        for value in values[at:]:
            resumed.add(value)
        for value in values:
            straight.add(value)
        assert resumed.value() == straight.value()

    def test_memory_of_a_sum_does_not_grow_with_its_addends(self) -> None:
        total = ExactSum()
        for _ in range(10_000):
            total.add(0.1)
        assert len(total._addends) < 2000
        assert len(total.parts()) < 5
        assert total.value() == float(Fraction(0.1) * 10_000)

    def test_sum_beyond_the_largest_float_stops_there_and_stays(self) -> None:
        total = ExactSum()
        for _ in range(3000):
            total.add(1e308)
        assert total.value() == LARGEST
        total = ExactSum(total.parts())
        total.add(1.0)
        assert total.value() == LARGEST
        assert math.isfinite(sum(total.parts()[1:]))


timed = st.lists(st.tuples(st.integers(0, 10**6), few_records), max_size=30, unique_by=lambda item: item[0])


class TestOrder:
    @given(timed, st.randoms(use_true_random=False))
    def test_order_does_not_show(self, records: list[tuple[int, Record]], random: st.DataObject) -> None:
        shuffled = list(records)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        one, other = folded(records), folded(shuffled)
        assert one.to_metrics("s") == other.to_metrics("s")
        assert entries(one.to_metrics("s")) == expected(records)

    @given(timed, st.integers(0, 30))
    def test_store_and_restore_on_the_way_do_not_show(
        self, records: list[tuple[int, Record]], at: int
    ) -> None:
        straight = folded(records)
        resumed = folded(records[at:], stored(folded(records[:at])))
        assert resumed.to_metrics("s") == straight.to_metrics("s")
        assert stored(resumed).to_metrics("s") == straight.to_metrics("s")

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3), records_of(few_names, st.sampled_from([0, 1, INT64_MAX, INT64_MAX - 1]))
            ),
            max_size=12,
        ),
        st.randoms(use_true_random=False),
    )
    def test_order_of_equal_times_and_of_sums_that_stop_does_not_show(
        self, records: list[tuple[int, Record]], random: st.DataObject
    ) -> None:
        shuffled = list(records)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        assert folded(records).to_metrics("s") == folded(shuffled).to_metrics("s")

    @given(
        st.lists(
            st.tuples(st.integers(0, 3), records_of(few_names, st.sampled_from([0, 1, INT64_MAX]))),
            max_size=12,
        ),
        st.integers(0, 12),
    )
    def test_when_it_was_published_does_not_show_in_sums_that_stop(
        self, records: list[tuple[int, Record]], at: int
    ) -> None:
        resumed = folded(records[at:], stored(folded(records[:at])))
        assert resumed.to_metrics("s") == folded(records).to_metrics("s")


def test_times_are_those_of_the_start_and_of_the_latest_record() -> None:
    metrics = folded(
        [(3_000, Record("heal_trigger", ("plan",))), (2_000, Record("heal_trigger", ("plan",)))],
        Totals(1_000),
    ).to_metrics("s")
    assert (metrics.started_at.microsecond, metrics.updated_at.microsecond) == (1, 3)


def test_session_is_never_updated_before_it_started() -> None:
    metrics = folded([(1, Record("heal_trigger", ("plan",)))], Totals(10**9)).to_metrics("s")
    assert metrics.updated_at == metrics.started_at


def test_drops_heard_of_twice_count_once() -> None:
    result = Totals(0)
    for dropped in ({"no_space": 2}, {"no_space": 2}, {"no_space": 5, "backlog": 1}, {"no_space": 3}):
        result.saw_dropped(result.writer("a"), dropped)
    result.saw_dropped(result.writer("b"), {"no_space": 1})
    assert result.to_metrics("s").dropped == {"no_space": 6, "backlog": 1}
    assert stored(result).to_metrics("s").dropped == {"no_space": 6, "backlog": 1}
    resumed = stored(result)
    resumed.saw_dropped(resumed.writer("a"), {"no_space": 5, "backlog": 1})
    assert resumed.to_metrics("s").dropped == {"no_space": 6, "backlog": 1}


def test_one_distinct_name_too_many_is_refused_and_the_known_ones_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(totals, "MAX_ENTRIES", 2)
    result = Totals(0)
    for name in ("a", "b"):
        for event in ("heal_trigger", "bisect_trigger"):
            fold_record(result, Record(event, (name,)).line(1), 0)
        fold_record(result, Record("tool_call", (name, True, 1)).line(1), 0)
    before = result.to_metrics("s")
    for record in (Record("heal_trigger", ("c",)), Record("tool_call", ("c", True, 1))):
        with pytest.raises(TooManyEntriesError, match="'c'"):
            fold_record(result, record.line(99), 0)
    assert result.to_metrics("s") == before
    fold_record(result, Record("tool_call", ("a", True, 1)).line(1), 0)
    assert result.to_metrics("s").tools[0].call_count == 2


def test_forgotten_writers_are_those_that_are_gone() -> None:
    result = Totals(0)
    for writer in "abc":
        result.writer(writer).last = 7
    result.keep_writers({"b", "x"})
    assert {name: mark.last for name, mark in stored(result).writers.items()} == {"b": 7}
