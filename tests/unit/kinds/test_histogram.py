"""The histogram of durations: each in its bucket, and quantiles within 2.2 %."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import Collector, ToolMetric
from m31a_mp.kinds import histogram
from m31a_mp.kinds.histogram import Histogram, bucket
from m31a_mp.kinds.packed import pack, read_plain
from strategies import INT64_MAX, any_counts
from strategies import bucket as exact_bucket
from strategies import histogram as expected

STEPS = 16


def is_within(duration: int, index: int) -> bool:
    """Whether `duration <= 1000 * 2**((index + 1) / 16)`, in whole numbers."""
    exponent = index + 1
    left, right = Fraction(duration, 1000) ** STEPS, Fraction(2) ** exponent
    return left <= right


def test_bucket_of_every_bound_and_of_what_is_above_it_is_exact() -> None:
    for index in range(bucket(1), bucket(INT64_MAX)):
        bound = histogram._BOUNDS[index - bucket(1)]
        for duration in {bound, bound + 1, max(1, bound - 1)}:
            found = bucket(duration)
            assert is_within(duration, found)
            assert not is_within(duration, found - 1)


def test_largest_duration_has_a_bucket() -> None:
    assert is_within(INT64_MAX, bucket(INT64_MAX))
    assert not is_within(INT64_MAX, bucket(INT64_MAX) - 1)


@given(st.integers(1, INT64_MAX))
def test_bucket_is_the_exact_one(duration: int) -> None:
    assert bucket(duration) == exact_bucket(duration)


def made_of(durations: list[int]) -> Histogram:
    made = Histogram()
    made.add(Counter(durations))
    return made


@given(st.lists(any_counts, max_size=30), st.lists(any_counts, max_size=30))
def test_merge_and_json_give_what_adding_gives(one: list[int], two: list[int]) -> None:
    whole, merged = made_of(one + two), made_of(one)
    merged.merge(made_of(two))
    assert merged == whole
    read = Histogram.from_json(orjson.loads(orjson.dumps(whole.to_json())))
    assert read == whole
    if one + two:
        assert whole.to_json() == expected(one + two)


@given(
    st.lists(st.integers(0, 20) | st.integers(0, 10**9), min_size=1, max_size=200),
    st.floats(0, 1),
)
def test_quantile_is_within_2_2_percent(durations: list[int], q: float) -> None:
    durations.sort()
    exact = durations[max(1, math.ceil(Fraction(repr(q)) * len(durations))) - 1]
    made = made_of(durations)
    for bounds in ((durations[0], durations[-1]), (None, None)):
        found = made.quantile(q, *bounds)
        assert found is not None
        assert abs(found - exact) <= 0.0222 * exact


def test_quantiles_of_recorded_calls_are_near_and_their_ends_exact(sessions: Any) -> None:
    durations = [i * i for i in range(1, 1001)]
    with Collector("s", sessions) as collector:
        for duration in durations:
            collector.record_tool_call("bash", True, duration)
        tool = collector.snapshot().tool("bash")
    assert tool
    assert (tool.quantile(0), tool.quantile(1)) == (1.0, 1_000_000.0)
    for q in (0.5, 0.9, 0.95, 0.99):
        assert tool.quantile(q) == pytest.approx((1000 * q) ** 2, rel=0.0222)


def test_rank_is_that_of_the_decimal_number() -> None:
    assert made_of(list(range(1, 101))).quantile(0.07) == 7.0


def test_short_durations_are_exact() -> None:
    for duration in range(1, 17):
        assert made_of([duration] * 3).quantile(0.5) == duration


def test_json_that_is_read_stays_as_it_is() -> None:
    document = {"scale": 4, "zero_count": 0, "offset": -20, "bucket_counts": [0, 1, 0]}
    assert Histogram.from_json(document).counts == [1]
    assert document["bucket_counts"] == [0, 1, 0]


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_quantile_of_no_part_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        ToolMetric("bash").quantile(q)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"scale": 3, "zero_count": 0, "offset": 0, "bucket_counts": []},
        {"scale": 4, "zero_count": -1, "offset": 0, "bucket_counts": []},
        {"scale": 4, "zero_count": True, "offset": 0, "bucket_counts": []},
        {"scale": 4, "zero_count": 0, "offset": 0, "bucket_counts": [1.5]},
        {"scale": 4, "zero_count": 0, "offset": 0, "bucket_counts": {"0": 1}},
        {"scale": 4, "zero_count": 0, "offset": "0", "bucket_counts": [1]},
        {"scale": 4, "zero_count": 0, "offset": -161, "bucket_counts": [1]},
        {"scale": 4, "zero_count": 0, "offset": 840, "bucket_counts": [1] * 10},
    ],
)
def test_json_of_another_form_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^(is|has) "):
        Histogram.from_json(wrong)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.sampled_from(["", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=1),
    max_leaves=4,
)
documents = st.lists(any_counts, max_size=30).map(lambda durations: made_of(durations).to_json())
damages = st.tuples(
    st.sampled_from(["scale", "zero_count", "offset", "bucket_counts", "a count", "no key"]), any_json
)


def damaged(document: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    if key == "no key":
        return {name: document[name] for name in list(document)[1:]}
    if key == "a count":
        counts = document["bucket_counts"]
        return document | {"bucket_counts": [*counts[: len(counts) // 2], value, *counts[len(counts) // 2 :]]}
    return document | {key: value}


@given(st.lists(st.tuples(documents, st.none() | damages), min_size=1, max_size=4))
def test_many_that_are_read_at_once_are_those_that_are_read_one_by_one(
    found: list[tuple[dict[str, Any], tuple[str, object] | None]],
) -> None:
    values = [damaged(document, *damage) if damage else document for document, damage in found]
    try:
        expected = [pack(Histogram.from_json(value)) for value in values]
    except ValueError:
        assert read_plain(values) is None
    else:
        assert read_plain(values) in (None, expected)


def test_histograms_of_this_library_are_read_at_once() -> None:
    values = [made_of(durations).to_json() for durations in ([0, 1], [7, 7, 10**9], [INT64_MAX])]
    assert read_plain(values) == [pack(Histogram.from_json(value)) for value in values]
