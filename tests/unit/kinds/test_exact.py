"""Sums of costs, exact until they are rounded once."""

from __future__ import annotations

import sys

import pytest

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
        sums.append(cost)
    assert sums.value() == pytest.approx(total)
