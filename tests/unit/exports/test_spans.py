"""Timelines in spans that can be drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from m31a_mp.exports.spans import near_steps, spans
from m31a_mp.model import Timeline

START = 1_795_424_400


def timeline(calls: dict[int, int], step_seconds: int = 1, costs: dict[int, float] | None = None) -> Timeline:
    """A timeline with so many calls at these seconds."""
    starts = sorted(calls)
    zeros = [0] * len(starts)
    return Timeline(
        step_seconds,
        starts,
        tool_calls=[calls[start] for start in starts],
        failures=list(zeros),
        interactions=[1 if costs and start in costs else 0 for start in starts],
        tokens=list(zeros),
        unknown_costs=list(zeros),
        costs=[(costs or {}).get(start, 0.0) for start in starts],
    )


@given(
    st.dictionaries(st.integers(START, START + 100_000), st.integers(1, 2**62), min_size=1, max_size=60),
    st.integers(1, 130),
)
def test_nothing_is_lost_and_there_are_no_more_spans_than_wanted(calls: dict[int, int], most: int) -> None:
    made = timeline(calls)
    steps = list(range(len(made.starts)))
    found = spans(made, steps, most)
    assert len(found.starts) <= most
    assert sum(found.sums["tool_calls"]) == sum(calls.values())
    assert found.seconds == 1 or len(spans_of_half(made, found.seconds)) > most  # as narrow as possible
    for start, number in zip(found.starts, found.sums["tool_calls"], strict=True):
        within = (n for second, n in calls.items() if start <= second < start + found.seconds)
        assert number == sum(within)


def spans_of_half(made: Timeline, seconds: int) -> range:
    half = seconds // 2
    return range(made.starts[0] // half, made.starts[-1] // half + 1)


def test_costs_are_added_exactly_and_do_not_overflow() -> None:
    costs = {START: 0.1, START + 1: 0.2, START + 2: 0.3}
    [cost] = spans(timeline(dict.fromkeys(costs, 0), costs=costs), [0, 1, 2], 1).sums["costs"]
    assert cost == 0.6  # not 0.6000000000000001
    huge = {START: 1.7e308, START + 1: 1.7e308}
    [cost] = spans(timeline(dict.fromkeys(huge, 0), costs=huge), [0, 1], 1).sums["costs"]
    assert 1.7e308 < cost < float("inf")


def test_single_step_of_a_wrong_clock_is_left_out_at_either_end() -> None:
    day = {START + i: 1 for i in range(10)}
    assert near_steps(timeline({1000: 1, **day})) == (list(range(1, 11)), 1)
    assert near_steps(timeline({**day, START + 10**8: 1})) == (list(range(10)), 1)
    assert near_steps(timeline({1000: 1, START: 1})) == ([0, 1], 0)  # either may be the wrong one


def test_steps_without_anything_or_of_no_year_are_not_drawn() -> None:
    assert near_steps(timeline({START: 0, START + 1: 3})) == ([1], 0)
    assert near_steps(timeline({-5: 1, START: 1, 2**62: 1})) == ([1], 2)
    assert near_steps(timeline({})) == ([], 0)
    assert spans(timeline({}), [], 5).sums == {}
