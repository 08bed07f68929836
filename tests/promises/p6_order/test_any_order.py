"""The same records in any other order, stored and read on the way or not, give the same numbers."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp.metrics.file import encoded
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import read
from metrics_of import folded, stored
from strategies import INT64_MAX, Record, entries, expected, few_names, few_records, records_of

timed = st.lists(st.tuples(st.integers(0, 10**6), few_records), max_size=30, unique_by=lambda item: item[0])


class TestOrder:
    @pytest.mark.slow
    @given(timed, st.randoms(use_true_random=False))
    def test_order_does_not_show(self, records: list[tuple[int, Record]], random: st.DataObject) -> None:
        shuffled = list(records)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        one, other = folded(records), folded(shuffled)
        assert one.to_metrics("s") == other.to_metrics("s")
        assert entries(one.to_metrics("s")) == expected(records)

    @pytest.mark.slow
    @given(timed, st.integers(0, 30))
    def test_store_and_restore_on_the_way_do_not_show(
        self, records: list[tuple[int, Record]], at: int
    ) -> None:
        straight = folded(records)
        resumed = folded(records[at:], stored(folded(records[:at])))
        assert resumed.to_metrics("s") == straight.to_metrics("s")
        assert stored(resumed).to_metrics("s") == straight.to_metrics("s")

    @pytest.mark.slow
    @given(timed, st.sets(st.integers(0, 30)))
    def test_publications_of_totals_that_stay_in_memory_do_not_show(
        self, records: list[tuple[int, Record]], published: set[int]
    ) -> None:
        kept = Totals(0)
        for at, record in enumerate(records):
            folded([record], kept)
            if at in published:
                assert encoded("s", kept) == encoded("s", folded(records[: at + 1]))
        straight = folded(records)
        assert kept.to_metrics("s") == straight.to_metrics("s")
        assert encoded("s", kept) == encoded("s", straight)
        document = orjson.loads(encoded("s", kept))
        restored = Totals.restore(read(document), document["m31a_mp"])
        assert restored.to_metrics("s") == straight.to_metrics("s")

    @pytest.mark.slow
    @given(timed, timed, st.booleans())
    def test_merge_with_entries_at_rest_is_a_merge(
        self, mine: list[tuple[int, Record]], theirs: list[tuple[int, Record]], rest: bool
    ) -> None:
        whole, other = folded(mine), folded(theirs)
        encoded("s", whole)
        if rest:
            encoded("s", other)
        whole.merge(other)
        straight = folded(mine)
        straight.merge(folded(theirs))
        assert encoded("s", whole) == encoded("s", straight)
        assert (whole.count_entries(), whole.names_bytes) == (straight.count_entries(), straight.names_bytes)

    @pytest.mark.slow
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

    @pytest.mark.slow
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
