"""What stands in tables, comparisons and help, and what is said of wrong usage."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from m31a_mp.cli.cells import cost, duration
from m31a_mp.cli.layout import Column, Table
from m31a_mp.cli.tables import View


def printed(view: Any, width: int) -> list[str]:
    """The lines on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


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


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0.0, "0.0000"),
        (1234.5, "1,234.5000"),
        (0.0001, "0.0001"),
        (3e-5, "0.00003"),
        (1.27e-7, "0.00000013"),
        (5e-324, "< 0.000000001"),
    ],
)
def test_small_cost_is_written_without_an_exponent(amount: float, expected: str) -> None:
    assert cost(amount, 0, 2) == expected
    assert cost(amount, 1, 2) == f"at least {expected}"


def test_cost_of_no_interaction_is_no_number() -> None:
    assert cost(0.0, 0, 0) == "-"
    assert cost(0.5, 0, 0) == "0.5000"  # another program may count otherwise


# --- Tables -------------------------------------------------------------------------------------------


def test_remark_of_a_heading_is_not_in_the_footer() -> None:
    table = Table(
        "Models", [Column("model"), Column("calls", 1)], [["x" * 30, "1"]], remark="; 1 without one"
    )
    lines = printed(View([Text("head"), table], []), 30)
    assert lines[2] == "Models; 1 without one"
    assert lines[-1] == "no room for: calls (Models)"
