"""Packed histograms add up to what their lists add up to, whatever the size of the counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp.kinds.histogram import Histogram
from m31a_mp.kinds.packed import add, pack, unpack
from strategies import INT64_MAX

counts = st.integers(0, 3) | st.sampled_from([255, 256, 2**16 - 1, 2**16, 2**32 - 1, 2**32, INT64_MAX])
histograms = st.builds(
    lambda zero_count, offset, first, counts, last: Histogram(
        zero_count, offset, [first, *counts, last] if last else []
    ),
    counts,
    st.integers(-160, 500),
    st.integers(1, 300),
    st.lists(counts, max_size=8),
    counts,
)


@given(histograms)
def test_histogram_comes_back(histogram: Histogram) -> None:
    assert unpack(pack(histogram)) == histogram


@pytest.mark.slow
@given(st.lists(histograms, min_size=1, max_size=20), st.integers(0, 20))
def test_packed_histograms_add_up_in_any_groups(parts: list[Histogram], at: int) -> None:
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    packed = list(map(pack, parts))
    assert unpack(add(packed)) == whole
    groups = [group for group in (packed[:at], packed[at:]) if group]
    assert unpack(add(list(map(add, groups)))) == whole


def test_sums_of_the_largest_counts_are_exact() -> None:
    packed = pack(Histogram(INT64_MAX, 0, [INT64_MAX, 1, INT64_MAX]))
    for times in (2, 3, 100):
        found = unpack(add([packed] * times))
        assert (found.zero_count, found.counts) == (
            times * INT64_MAX,
            [times * INT64_MAX, times, times * INT64_MAX],
        )
    assert unpack(add([add([packed] * 3), packed])).counts == [4 * INT64_MAX, 4, 4 * INT64_MAX]
