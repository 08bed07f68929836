"""What stands in tables, comparisons and help, and what is said of wrong usage."""

from __future__ import annotations

import pytest

from m31a_mp.cli.cells import duration

# --- Cells --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (0, "0 ms"),
        (5.04, "5 ms"),  # as its neighbours, of which no parts are known
        (9.99, "9.9 ms"),
        (12.9, "12 ms"),
        (999.9, "999 ms"),
        (1000, "1.0 s"),
        (9_999, "9.9 s"),
        (59_999, "59.9 s"),
        (59_999.9, "59.9 s"),
        (60_000, "1 min 0 s"),
        (3_599_999, "59 min 59 s"),
        (86_399_999, "23 h 59 min"),
    ],
)
def test_duration_is_never_rounded_up_to_another_unit(milliseconds: float, expected: str) -> None:
    assert duration(milliseconds) == expected
