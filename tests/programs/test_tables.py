"""What stands in tables, comparisons and help, and what is said of wrong usage."""

from __future__ import annotations

import io
import re
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from test_cli import Call, Result, call, directory

from m31a_mp import Collector, Usage
from m31a_mp.cli.cells import cost, duration
from m31a_mp.cli.layout import Column, Table
from m31a_mp.cli.tables import View

__all__ = ["call", "directory"]  # fixtures


def printed(view: Any, width: int) -> list[str]:
    """The lines on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def table_of(result: Result, title: str) -> list[str]:
    """The lines of a table behind its heading; none if it is not there."""
    lines = iter(result.out.splitlines())
    return list(takewhile(bool, islice(dropwhile(lambda line: not line.startswith(title), lines), 1, None)))


def cells(line: str) -> list[str]:
    """The cells of a row."""
    return re.split(r"\s{2,}", line.strip())


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


def test_models_have_a_sum_where_there_are_several(call: Call, directory: Path) -> None:
    usage = Usage(900, 100, 1000, cached_tokens=500, reasoning_tokens=30)
    with Collector(directory.name, directory.parent) as collector:
        collector.record_llm_interaction("plan", usage, 0.25, model="opus", duration_ms=2000)
        assert "in all" not in table_of(call("show", directory), "Models")
        collector.record_llm_interaction("plan", usage, None, model="haiku")
    total = ["2", "800", "1,000", "0", "140", "60", "2,000", "at least 0.2500"]
    assert cells(table_of(call("show", directory, "--top", "1"), "Models")[-1]) == ["in all", *total]


def test_every_table_has_a_title_and_an_empty_line_before_and_behind(call: Call, directory: Path) -> None:
    for name in (directory.name, "two"):
        with Collector(name, directory.parent) as collector:
            collector.record_edit_strategy("whole_file")
    lines = call("show", directory, directory.with_name("two")).out.splitlines()
    assert lines[:3] == ["the sum of 2 sessions", "", "Sessions"]
    started = next(i for i, line in enumerate(lines) if line.startswith("started "))
    assert [lines[started - 1], *lines[started + 1 : started + 4]] == [
        *("", "", "Edit strategies"),
        "strategy    edits",
    ]
