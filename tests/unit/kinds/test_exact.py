"""Sums of costs, exact until they are rounded once."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp.kinds.exact import ExactSum

LARGEST = sys.float_info.max


@pytest.mark.parametrize(
    ("costs", "total"),
    [
        ([LARGEST, LARGEST], LARGEST),
        ([-LARGEST, -LARGEST], -LARGEST),
        ([1.7e308, 1.7e308, -1.7e308], 1.7e308),
    ],
)
def test_sum_that_overflows_stops_at_its_own_end(costs: list[float], total: float) -> None:
    sums = ExactSum()
    for cost in costs:
        sums.waiting.append(cost)
    assert sums.value() == pytest.approx(total)


LARGEST = 1.7976931348623157e308


values = st.floats(0, LARGEST) | st.sampled_from([0.1, 5e-324, 1e16, 1.0, 2**-1074, 1e308])


class TestExactSum:
    @given(st.lists(values, max_size=50))
    def test_sum_is_the_exact_one_rounded_once(self, values: list[float]) -> None:
        exact = sum(map(Fraction, values), Fraction())
        total = ExactSum()
        for value in values:
            total.waiting.append(value)
        try:
            wanted = exact.numerator / exact.denominator
        except OverflowError:
            wanted = LARGEST
        assert total.value() == wanted

    @given(st.lists(st.floats(0, 1e300), max_size=20), st.integers(0, 20))
    def test_sum_that_is_stored_on_the_way_is_the_same(self, values: list[float], at: int) -> None:
        straight, resumed = ExactSum(), ExactSum()
        for value in values[:at]:
            resumed.waiting.append(value)
        resumed = ExactSum(orjson.loads(orjson.dumps(resumed.parts())))
        for value in values[at:]:
            resumed.waiting.append(value)
        for value in values:
            straight.waiting.append(value)
        assert resumed.value() == straight.value()

    def test_memory_of_a_sum_does_not_grow_with_its_addends(self) -> None:
        total = ExactSum()
        for _ in range(10_000):
            total.waiting.append(0.1)
            total.settle()
        assert len(total.waiting) < 2000
        assert len(total.parts()) < 5
        assert total.value() == float(Fraction(0.1) * 10_000)

    def test_sum_beyond_the_largest_float_stops_there_and_stays(self) -> None:
        total = ExactSum()
        for _ in range(3000):
            total.waiting.append(1e308)
        assert total.value() == LARGEST
        total = ExactSum(total.parts())
        total.waiting.append(1.0)
        assert total.value() == LARGEST
        assert math.isfinite(sum(total.parts()[1:]))
