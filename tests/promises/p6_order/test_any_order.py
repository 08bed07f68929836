"""The same records in any other order, stored and read on the way or not, give the same numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metrics_of import folded, stored
from strategies import INT64_MAX, Record, entries, expected, few_names, few_records, records_of

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
