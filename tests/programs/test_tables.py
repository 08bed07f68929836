"""What stands in tables, comparisons and help, and what is said of wrong usage."""

from __future__ import annotations

import io
import os
import re
import shlex
from datetime import UTC, datetime
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console
from test_cli import COMMANDS, Call, Result, call, directory

from m31a_mp import Collector, PlanOutcome, SessionMetrics, Usage, load
from m31a_mp.cli.entries import Choice, metrics_views
from m31a_mp.cli.layout import Column, Line, Table
from m31a_mp.cli.record import command as record
from m31a_mp.cli.tables import ALL, View
from m31a_mp.kinds.catalog import KINDS
from m31a_mp.wording import cost, duration

UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"

__all__ = ["call", "directory"]  # fixtures


def printed(view: Any, width: int) -> list[str]:
    """The lines on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False)
    for line in view.lines(width):
        console.print(line)
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
    lines = printed(View([Line("head"), table], []), 30)
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


def header_at(width: int, metrics: SessionMetrics, title: str, choice: Choice = ALL) -> list[str]:
    """The titles of a table's columns where there is so much room."""
    [table] = [
        view for view in metrics_views(metrics, choice) if isinstance(view, Table) and view.title == title
    ]
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    return cells(lines[1])


def test_plan_outcomes_keep_success_and_error_before_all_else() -> None:
    at = datetime.now(UTC)
    text = "rename the module and everything that imports it"
    outcomes = [
        PlanOutcome("task-1", "edit", text, False, 8300, 1234, 5, ("a.py",), "timeout", at),
        PlanOutcome("task-2", "edit", text, True, 8300, 2, 5, ("a.py",) * 20, "", at),
    ]
    metrics = SessionMetrics("one", plan_outcomes=outcomes, plan_outcome_count=32)
    title = "Plan outcomes"
    assert header_at(40, metrics, title) == ["task", "action", "success", "error type", "ago"]
    first = ["task", "action", "success", "duration", "heals used", "tool calls"]
    assert header_at(80, metrics, title) == [*first, "error type", "ago"]
    assert header_at(200, metrics, title)[2] == "description"
    [table] = [view for view in metrics_views(metrics, ALL) if isinstance(view, Table)]
    lines = printed(table, 80)
    assert lines[0] == "Plan outcomes, the latest 2 of 32"
    assert lines[1].index("heals used") + len("heals used") == lines[3].index("1,234") + len("1,234")


def test_column_of_a_happening_that_says_nothing_is_not_there() -> None:
    outcomes = [PlanOutcome("task-1", "edit", "", True, 8300, timestamp=datetime.now(UTC))]
    titles = header_at(200, SessionMetrics("one", plan_outcomes=outcomes), "Plan outcomes")
    assert titles == ["task", "action", "success", "duration", "heals used", "tool calls", "ago"]


def fill_with_two_of_all(directory: Path) -> None:
    """Two entries at least in each table."""
    with Collector(directory.name, directory.parent) as collector:
        for name in ("first", "second"):
            for error in ("timeout", "exit 1", *(f"error {i}" for i in range(9))):
                collector.record_tool_call(name, False, 20, error=error)
            collector.record_llm_interaction(name, Usage(9, 1, 10), 0.5, model=name)
            collector.record_phase_transition(name)
            collector.record_edit_strategy(name)
            collector.record_cancellation(name, "timeout")


def test_top_is_for_every_table(call: Call, directory: Path) -> None:
    fill_with_two_of_all(directory)
    result = call("show", directory, "--top", "1")
    assert result.out.endswith(
        "\n\n1 more tool\n1 more model\n1 more phase with model use\n1 more phase\n1 more edit strategy\n"
    )
    assert "\nErrors, the most frequent 1 of 22\n" in result.out
    assert "\nCancellations, the latest 1 of 2\n" in result.out
    result = call("show", directory, "--top", "100")
    assert "\nErrors\n" in result.out
    assert "more" not in result.out
    assert "\nErrors, the most frequent 10 of 22\n" in call("show", directory).out
    Collector("two", directory.parent).stop()
    pair = (directory, directory.with_name("two"))
    assert "\n\n1 more session\n1 more tool\n" in call("show", *pair, "--top", "1").out
    compared = call("show", "--compare", *pair, "--top", "1").out
    assert "\n\n1 more tool that differs\n21 more errors that differ\n1 more model that differs\n" in compared
    assert "more" not in call("show", "--compare", *pair, "--top", "100").out


def names_by(call: Call, directory: Path, sort: str, title: str) -> list[str]:
    """The first column of a table that is sorted."""
    rows = table_of(call("show", directory, "--sort", sort), title)[2:]
    return [cells(row)[0] for row in rows if not row.startswith(("─", "in all"))]


def test_phases_are_sorted_by_their_duration(call: Call, directory: Path) -> None:
    with Collector(directory.name, directory.parent) as collector:
        for name, took in (("plan", 20), ("execute", 90), ("verify", 50)):
            collector.record_phase_transition(name)
            collector.record_phase_duration(name, took, True)
        collector.record_phase_transition("ship")
        collector.record_phase_transition("ship")
    for sort in ("total", "max", "p50", "p95"):
        assert names_by(call, directory, sort, "Phases") == ["execute", "verify", "plan", "ship"]
    assert names_by(call, directory, "name", "Phases") == ["execute", "plan", "ship", "verify"]
    assert names_by(call, directory, "calls", "Phases") == ["ship", "plan", "execute", "verify"]
    assert names_by(call, directory, "cost", "Phases") == ["plan", "execute", "verify", "ship"]


@pytest.mark.parametrize("sort", ["calls", "failed", "p50", "p95", "max", "total"])
def test_column_that_is_sorted_by_is_the_last_to_leave(directory: Path, sort: str) -> None:
    fill_with_two_of_all(directory)
    metrics = load(directory.parent, directory.name)
    assert metrics
    assert sort in header_at(17, metrics, "Tools", Choice(sort))
    assert len(header_at(40, metrics, "Tools", Choice(sort))) > 3


def test_comparison_is_not_sorted(call: Call, directory: Path) -> None:
    fill_with_two_of_all(directory)
    result = call("show", "--compare", directory, directory, "--sort", "p95")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("m31a-mp: --compare has an order of its own")


def test_watch_sorts_and_cuts_as_show_does(call: Call, directory: Path) -> None:
    with Collector(directory.name, directory.parent) as collector:
        for name, took in (("short", 1), ("long", 9), ("longer", 30)):
            collector.record_tool_call(name, True, took)
    choice = ("--sort", "total", "--top", "2")
    watched = call("watch", "--count", "1", directory, *choice)
    assert watched.out == call("show", directory, *choice).out + "\n"
    assert [cells(row)[0] for row in table_of(watched, "Tools")[2:4]] == ["longer", "long"]
    assert call("watch", "--top", "0", directory).status == 2


def test_session_that_is_named_twice_counts_once(call: Call, directory: Path) -> None:
    fill_with_two_of_all(directory)
    Collector("two", directory.parent).stop()
    os.symlink(directory, "again")
    names = (directory, directory.with_name("two"), "again", directory / "metrics.json", directory)
    result = call("show", *names)
    assert result.out.startswith("the sum of 2 sessions\n")
    assert cells(table_of(result, "Tools")[-1])[:2] == ["in all", "22"]
    assert f"\n{os.path.relpath(directory)} was named 4 times and counts once\n" in result.out
    assert [cells(row)[0] for row in table_of(result, "Sessions")[2:4]] == [
        os.path.relpath(path) for path in names[:2]
    ]
    document = call("show", *names, "--json").json
    assert len(document["sessions"]) == 2
    assert document["totals"]["tool_calls"] == 22
    assert " was named twice and counts once\n" in call("show", directory, directory).out


def test_new_input_is_never_called_input(directory: Path) -> None:
    with Collector(directory.name, directory.parent) as collector:
        usage = Usage(900_000, 100, 900_100, cached_tokens=500_000)
        collector.record_llm_interaction("plan", usage, 0.25, model="opus-of-the-third-generation")
    metrics = load(directory.parent, directory.name)
    assert metrics
    titles = header_at(64, metrics, "Models")
    assert "new in" in titles
    assert "cache read" not in titles


# --- Comparisons --------------------------------------------------------------------------------------


def test_comparison_has_the_errors_and_phases_that_differ(call: Call, directory: Path) -> None:
    other = directory.with_name("two")
    for path, error, number, took in ((directory, "timeout", 1, 500), (other, "exit 2", 3, 800)):
        with Collector(path.name, path.parent) as collector:
            collector.record_tool_call("make", False, 20, error=error)
            for _ in range(number):
                collector.record_tool_call("grep", False, 0, error="exit 1")
            collector.record_phase_duration("plan", took, path == directory)
            collector.record_phase_duration("same", 500, True)
            if path == other:
                collector.record_phase_duration("new", 90, True)
    result = call("show", "--compare", directory, other)
    assert [cells(row)[0] for row in table_of(result, "Tools that differ")[2:]] == ["grep"]
    assert [cells(row) for row in table_of(result, "Errors that differ")[2:]] == [
        ["grep", "exit 1", "1 → 3"],
        ["make", "exit 2", "0 → 1"],
        ["make", "timeout", "1 → 0"],
    ]
    assert [cells(row) for row in table_of(result, "Phases that differ")[2:]] == [
        ["plan", "ok → failed", "500 ms → 800 ms"],
        ["new", "- → ok", "- → 90 ms"],
    ]
    document = call("show", "--compare", directory, other, "--json").json
    assert document["errors"][0] == {"tool": "grep", "error": "exit 1", "calls": [1, 3]}
    assert document["phases"] == [
        {"phase": "plan", "success": [True, False], "duration_ms": [500, 800]},
        {"phase": "new", "success": [None, True], "duration_ms": [None, 90]},
    ]


@pytest.mark.parametrize(("more", "said"), [(0, "phases\n"), (1, "phases by as much as a table shows\n")])
def test_comparison_says_that_nothing_differs(call: Call, directory: Path, more: int, said: str) -> None:
    other = directory.with_name("two")
    for path, took in ((directory, 60_000), (other, 60_000 + more)):
        with Collector(path.name, path.parent) as collector:
            collector.record_phase_duration("plan", took, True)
    out = call("show", "--compare", directory, other).out
    assert out.endswith(f"\n\nnothing differs in tools, errors, models and {said}")
    assert "that differ" not in out


# --- Help ---------------------------------------------------------------------------------------------

RECORDS = sorted(record.commands)


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS), *(("record", name) for name in RECORDS)], ids=" ".join
)
def test_help_fits_80_columns(call: Call, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(*command, "--help").out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [
        line for line in lines if line.endswith("...") and "COMMAND" not in line and "[S" not in line
    ] == []
    assert not any("<=x" in line or "x>=" in line for line in lines if "SECONDS" not in line)


def test_example_in_several_lines_is_one_command() -> None:
    [example] = [kind.example for kind in KINDS if kind.command == "startup"]
    lines = record.commands["startup"].get_help(click.Context(record.commands["startup"])).splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("Example:"))
    assert lines[start + 1].endswith(" \\")
    assert shlex.split("\n".join(lines[start + 1 :]).replace("\\\n", "")) == [
        "m31a-mp",
        "record",
        *shlex.split(example),
    ]


def test_help_of_record_says_what_each_command_is_for(call: Call) -> None:
    out = call("record", "--help").out
    assert "  completion      Record that a phase was completed.\n" in out
    assert "  phase           Record that PHASE was entered, or that it ended.\n" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("1.5", "'1.5' is not a whole number"),
        ("many", "'many' is not a whole number"),
        ("-1", "-1 is less than 0"),
        (str(1 << 63), f"{1 << 63} is more than {(1 << 63) - 1}"),
    ],
)
def test_wrong_number_is_told_in_a_sentence(call: Call, directory: Path, given: str, said: str) -> None:
    result = call("record", "--session", directory, "tool", "make", "--ok", "--duration-ms", given)
    assert result.status == 2
    assert result.err == (
        f"m31a-mp: Invalid value for '--duration-ms': {said}\nhint: m31a-mp record tool --help\n"
    )


# --- Messages -----------------------------------------------------------------------------------------


def test_session_of_the_variable_is_said_to_be_of_it(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = directory / "none" / "q"
    monkeypatch.setenv("M31A_MP_SESSION", str(gone))
    for command in ("show", "watch", "verify", "compact"):
        message = f"m31a-mp: there is no session in {gone}, which M31A_MP_SESSION names\n"
        assert call(command).err.startswith(message)
        assert "M31A_MP_SESSION" not in call(command, directory / "other").err
    fill_with_two_of_all(directory)
    monkeypatch.setenv("M31A_MP_SESSION", str(directory.parent))
    message = f"m31a-mp: {directory.parent}, which M31A_MP_SESSION names, is no session; it holds a session\n"
    assert call("show").err.startswith(message)


def test_hints_of_record_can_be_followed(call: Call, directory: Path, tmp_path: Path) -> None:
    fill_with_two_of_all(tmp_path / "sessions" / "unrelated")
    tool = ("tool", "x", "--ok", "--duration-ms", "1")
    named = "m31a-mp record --session sessions/NAME tool ...\n"
    assert call("record", *tool).err.endswith(f"\nhint: set M31A_MP_SESSION, or: {named}")
    result = call("record", "--session", "/", *tool)
    assert result.status == 2
    assert result.err.startswith("m31a-mp: / cannot be a session: its name '' must be")
    assert result.err.endswith(named)
    (tmp_path / "file").touch()
    assert " ls " not in call("record", "--session", "file/x", *tool).err
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "x").touch()
    assert call("record", "--session", "place/x", *tool).err.endswith(": m31a-mp ls place\n")
    wrong = call("record", "--session", directory, "tool", "", "--ok", "--duration-ms", "1")
    assert wrong.err.endswith("\nhint: m31a-mp record tool --help\n")


# --- Running calls ------------------------------------------------------------------------------------


def test_running_calls_of_which_only_a_file_tells_are_said_to_be_uncertain(
    call: Call, directory: Path
) -> None:
    with Collector(directory.name, directory.parent) as collector:
        collector.record_tool_started("make", "1")
        assert "cannot be seen" not in call("show", directory).out
    for shown in (directory, directory / "metrics.json"):
        result = call("show", shown)
        assert cells(table_of(result, "Running")[2])[0] == "make"
        assert (
            "running, as far as the files tell: 1 call, whose process cannot be seen from here" in result.out
        )


@pytest.mark.parametrize("milliseconds", [[1386], [1360, 1386], [1386] * 50, [1000, 1951, 1999]])
def test_no_quantile_is_shown_above_the_maximum(call: Call, directory: Path, milliseconds: list[int]) -> None:
    with Collector(directory.name, directory.parent) as collector:
        for each in milliseconds:
            collector.record_tool_call("make", True, each)
    *_, p50, p95, most, _ = [float(cell.split()[0]) for cell in call("show", directory).row("make")]
    assert p50 <= p95 <= most


def test_calls_of_unknown_duration_have_none_in_any_row(call: Call, directory: Path) -> None:
    with Collector(directory.name, directory.parent) as collector:
        for name in ("make", "lint"):
            collector.record_tool_started(name, f"1.1.1.{UUID}.run.{name}@host")  # of another boot
    rows = [cells(line) for line in table_of(call("show", directory), "Tools") if "─" not in line]
    assert rows[0][-1] == "interrupted"
    assert [row[0] for row in rows[1:]] == ["make", "lint", "in all"]
    for row in rows[1:]:
        assert [cell for cell in row if cell.endswith("ms")] == []
