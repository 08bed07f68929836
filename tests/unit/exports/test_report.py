"""The page itself: what it says of the numbers, and that names are nothing but text."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m31a_mp import merge
from m31a_mp.exports import report
from m31a_mp.exports.report import Subject, html
from m31a_mp.exports.report_happenings import sites_table
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.model import (
    CancellationMetric,
    EditStrategyMetric,
    LLMMetric,
    ModelMetric,
    PhaseMetric,
    RunningCall,
    SessionMetrics,
    ToolMetric,
)
from m31a_mp.plan import PlanOutcome
from m31a_mp.system.log import shown

DASH = "\u2013"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
EMPTY = {"meta", "link", "rect", "line", "path"}  # elements without an end here
ISOLATES = re.compile("[\u2066-\u2069]")


class Reader(HTMLParser):
    """Reads a page: its elements, and the texts of cells by table and row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        if tag == "table":
            self._rows = self.tables[str(dict(attrs)["id"]).removeprefix("table-")] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in {"td", "th"}:
            self._rows[-1].append("")
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script", "svg"} & set(self._open):
            return
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data
        elif text := " ".join(data.split()):
            self.texts.append(text)

    def row(self, table: str, name: str) -> dict[str, str]:
        """The cells of the row of that name, by the titles of their columns."""
        titles, *rows = self.tables[table]
        [found] = [row for row in rows if row[0] == name]
        cells = [" ".join(cell.split()) for cell in found]
        return dict(zip(map(str.strip, titles), cells, strict=False))


def read(*sessions: SessionMetrics, state: str = "", parts: Sequence[Subject] = ()) -> Reader:
    subjects = [Subject(f"sessions/{metrics.session_id}", metrics, state) for metrics in sessions]
    return Reader(html(subjects, parts=parts, made_at=NOON))


def metrics(session_id: str = "s", **fields: Any) -> SessionMetrics:
    return SessionMetrics(session_id, NOON, NOON, **fields)


def tool(name: str, *durations: int, failed: int = 0, **fields: Any) -> ToolMetric:
    """A tool with calls of these durations."""
    made = Histogram()
    for duration in durations:
        made.add({duration: 1})
    count, total = len(durations), sum(durations)
    times = (min(durations, default=None), max(durations, default=None), made if durations else None)
    average = total / count if count else 0.0
    return ToolMetric(name, count, count - failed, failed, total, average, *times, **fields)


# --- Numbers ------------------------------------------------------------------------------------------


def test_row_of_a_tool_has_its_numbers() -> None:
    page = read(metrics(tools=[tool("grep", 10, 20, 30, 400, failed=1), tool("make", 5000)]))
    assert page.row("tools", "grep") == {
        "tool": "grep",
        "total time": "460 ms",
        "calls": "4",
        "failed": "1",
        "failure rate": "25.0 %",
        "average": "115 ms",
        "p50": "20 ms",
        "p95": "400 ms",
        "max": "400 ms",
        "": "",
    }
    assert [row[0] for row in page.tables["tools"]] == ["tool", "make", "grep", "in all"]
    assert page.row("tools", "in all")["calls"] == "5"
    assert page.row("tools", "in all")["max"] == "5.0 s"


def test_number_that_is_not_known_is_a_dash() -> None:
    page = read(metrics(tools=[ToolMetric("go", 3, 3, 0, 90, 30.0)], models=[ModelMetric("m", 1)]))
    row = page.row("tools", "go")
    assert (row["p50"], row["p95"], row["max"]) == (DASH, DASH, DASH)
    assert (row["failed"], row["total time"]) == ("0", "90 ms")
    assert "p50" not in page.tables["models"][0]


def test_quantiles_of_all_are_not_known_if_those_of_a_tool_are_not() -> None:
    page = read(metrics(tools=[ToolMetric("go", 3, 3, 0, 90, 30.0), tool("grep", 10)]))
    assert page.row("tools", "in all")["p50"] == DASH
    assert page.row("tools", "grep")["p50"] == "10 ms"


def test_interrupted_calls_have_no_duration_and_a_note() -> None:
    page = read(metrics(tools=[ToolMetric("make", 2, 0, 2, interrupted_count=2)]))
    row = page.row("tools", "make")
    assert (row["interrupted"], row["total time"], row["average"]) == ("2", DASH, DASH)
    assert page.row("failures", "make")["errors"] == "interrupted (2)"
    assert any(text.startswith("Interrupted: 2 calls ") for text in page.texts)


@pytest.mark.parametrize(
    ("unknown", "cost"), [(0, "0.5000"), (1, "at least 0.5000"), (2, "not known")], ids=str
)
def test_cost_says_what_it_lacks(unknown: int, cost: str) -> None:
    use = LLMMetric("plan", 900, 100, 1000, 0.0 if unknown == 2 else 0.5, 2, unknown)
    model = ModelMetric("m", 2, 900, 100, 1000, cost=use.cost, unknown_cost_count=unknown)
    page = read(metrics(llms=[use], models=[model]))
    assert page.row("model-use", "plan")["cost"] == cost
    assert page.row("models", "m")["cost"] == cost
    assert any("The cost of" in text for text in page.texts) == bool(unknown)


def test_failures_are_by_number_with_their_errors() -> None:
    page = read(
        metrics(
            tools=[
                tool("slow", 90_000, failed=1, errors={"timeout": 1}),
                tool("make", *range(10), failed=9, errors={f"exit {n}": 1 for n in range(1, 8)}),
                tool("fine", 1),
            ]
        )
    )
    assert [row[0] for row in page.tables["failures"]] == ["tool", "make", "slow"]
    errors = page.row("failures", "make")["errors"]
    assert (
        errors == "exit 1 (1), exit 2 (1), exit 3 (1), exit 4 (1), exit 5 (1), without a name (2), "
        "and 2 more errors"
    )


def test_losses_are_told_and_so_is_that_there_are_none() -> None:
    bad = read(metrics(tools=[tool("a", 1)], dropped={"no_space": 7}, rejected=2))
    assert "Dropped: 7 records (no space: 7). All numbers are lower bounds." in bad.texts
    assert any(text.startswith("Set aside: 2 damaged or invalid pieces") for text in bad.texts)
    good = read(metrics(tools=[tool("a", 1)]))
    assert "Nothing was dropped, set aside or interrupted." in good.texts
    assert not any("Nothing was" in text for text in bad.texts)


def test_session_without_records_is_said_to_have_none() -> None:
    page = read(metrics())
    assert "Nothing is recorded in this session yet." in page.texts
    assert page.tables == {}
    assert page.elements.count(("dt",)) == 0


def test_running_session_is_said_to_go_on() -> None:
    running = metrics(tools=[tool("a", 1)], running=[RunningCall("make", NOON, 7, "host")])
    page = read(running, state="running")
    assert any(text.startswith("The session is running: there may be more") for text in page.texts)
    assert any(text.startswith("Under way: 1 call") for text in page.texts)
    assert page.row("running", "make") == {
        "tool": "make",
        "since": "2026-11-23 12:00:00",
        "process": "7",
        "machine": "host",
    }


def test_happenings_are_the_latest_and_the_rest_is_counted() -> None:
    outcomes = [PlanOutcome(f"T{n}", "edit", "text", n != 70, 5, timestamp=NOON) for n in range(80)]
    page = read(metrics(plan_outcomes=outcomes, plan_outcome_count=1234))
    assert [row[0] for row in page.tables["plan-outcomes"]] == [
        "task",
        *(f"T{n}" for n in reversed(range(30, 80))),
    ]
    assert "the latest 50 of 1,234" in page.texts
    assert page.row("plan-outcomes", "T70")["success"] == "no"


def test_phase_that_has_not_ended_has_no_outcome() -> None:
    page = read(metrics(phases=[PhaseMetric("plan", transition_count=1), PhaseMetric("x", 5, ended_at=NOON)]))
    assert (page.row("phases", "plan")["outcome"], page.row("phases", "plan")["duration"]) == (DASH, DASH)
    assert page.row("phases", "x")["outcome"] == "failed"
    assert "heals" not in page.tables["phases"][0]


# --- Two sessions, and more -----------------------------------------------------------------------------


def test_two_sessions_stand_side_by_side() -> None:
    one = metrics("one", tools=[tool("grep", 10, 10), tool("gone", 7)], rejected=1)
    two = metrics("two", tools=[tool("grep", 30, failed=1)], phases=[PhaseMetric("new", 5, ended_at=NOON)])
    page = read(one, two)
    row = page.row("tools", "grep")
    titles = page.tables["tools"][0]
    assert titles[:3] == ["tool", "", "total time"]
    assert row["total time"].split(" ms") == ["20", "30", "+50.0 %"]
    assert row["calls"] == "21-50.0 %"
    assert page.row("tools", "gone")["calls"] == "10-100.0 %"
    assert page.row("tools", "gone")["p50"] == f"7 ms{DASH}"
    assert page.row("phases", "new")["outcome"] == f"A {DASH}B failed"
    assert sum(text.startswith("Set aside") for text in page.texts) == 1


def test_change_of_a_cost_that_is_not_known_is_not_told() -> None:
    uses = [LLMMetric("plan", 1, 1, 2, cost, 2, unknown) for cost, unknown in ((0.5, 1), (0.75, 0))]
    page = read(*(metrics(f"s{i}", llms=[use]) for i, use in enumerate(uses)))
    assert page.row("model-use", "plan")["cost"] == "at least 0.50000.7500change not known"


def test_sum_of_sessions_lists_its_parts() -> None:
    parts = [metrics(name, tools=[tool("grep", 10, failed=1)]) for name in ("a", "b", "c")]
    subjects = [Subject(f"sessions/{part.session_id}", part) for part in parts]
    page = read(merge(*parts), parts=subjects)
    assert [row[0] for row in page.tables["sessions"]] == [
        "session",
        "sessions/a",
        "sessions/b",
        "sessions/c",
    ]
    assert page.row("tools", "grep")["calls"] == "3"


@pytest.mark.parametrize("number", [0, 3])
def test_other_numbers_of_sessions_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"one session or of two side by side, not of {number}"):
        html([Subject("s", metrics())] * number)


# --- Names --------------------------------------------------------------------------------------------


def of_names(names: Sequence[str]) -> SessionMetrics:
    """A session in which everything that has a name has one of these."""
    a, b, c = names
    return metrics(
        a,
        tools=[tool(a, 5, failed=1, errors={b: 1}), tool(b, 5), tool(c, 5)],
        llms=[LLMMetric(b, 1, 1, 2, 0.5, 1)],
        models=[ModelMetric(c, 1)],
        phases=[PhaseMetric(a, 5, entered_at=NOON, ended_at=NOON)],
        edit_strategies=[EditStrategyMetric(b, 1)],
        plan_outcomes=[PlanOutcome(c, a, b, True, 1, files=(c,), error_type=a, timestamp=NOON)],
        cancellations=[CancellationMetric(a, b, NOON)],
        running=[RunningCall(c, NOON, 5, a)],
        dropped={b: 1},
    )


HARMLESS = read(of_names(["one", "two", "three"]), state="running")
hostile = st.text(min_size=1, max_size=7).filter(lambda name: name.strip() and name != "-") | st.sampled_from(
    [
        "</bdi>",
        "<script",
        "-->",
        "]]>",
        "&lt;",
        "'a=\"",
        "{{ 7 }}",
        "{% if",
        "\u202egpj.",
        "\x00",
        "\ud800",
        "\u05d0",
    ]
)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(hostile, min_size=3, max_size=3, unique=True))
def test_names_are_text_whatever_they_hold(names: list[str]) -> None:
    page = read(of_names(names), state="running")
    assert page.elements == HARMLESS.elements
    assert {row[0] for row in page.tables["tools"][1:4]} == {shown(name) for name in names}
    written = "".join(page.texts)
    assert ISOLATES.sub("", written).isprintable()


def test_names_that_would_turn_the_text_around_them_are_isolated() -> None:
    page = read(metrics(tools=[tool("x", 1, failed=1, errors={"\u05d0\u05d1": 1})]))
    assert page.row("failures", "x")["errors"] == "\u2068\u05d0\u05d1\u2069 (1)"


def test_long_name_is_cut_in_the_middle_and_a_blank_one_can_be_seen() -> None:
    long = "begin" + "x" * 1014 + "end"
    page = read(metrics(tools=[tool(long, 5), tool(" ", 5)]))
    [name, blank] = [row[0] for row in page.tables["tools"][1:3]]
    assert re.fullmatch("beginx+…x+end", name)
    assert len(name) == 80
    assert blank == '" "'


@pytest.mark.slow
def test_page_is_small_with_a_hundred_thousand_tools_and_counts_those_it_leaves_out() -> None:
    many = [ToolMetric(f"{n:06}" + "x" * 1018, 1, 0, 1, n, float(n)) for n in range(100_000)]
    text = html([Subject("s", metrics(tools=many))])
    page = Reader(text)
    assert len(text.encode()) < 300 * 1024
    assert len(page.tables["tools"]) == 1 + 100 + 1
    assert page.tables["tools"][1][0].startswith("099999")
    assert page.texts.count("and 99,900 more tools") == 2  # tools, and failures
    assert page.row("tools", "in all")["calls"] == "100,000"


# --- The page -----------------------------------------------------------------------------------------


def test_policy_allows_the_style_and_the_script_and_nothing_else() -> None:
    text = html([Subject("s", metrics(tools=[tool("a", 1)]))])
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    directives = dict(directive.split(maxsplit=1) for directive in policy.split("; "))

    def hash_of(element: str) -> str:
        [content] = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert directives == {
        "default-src": "'none'",
        "style-src": hash_of("style"),
        "script-src": hash_of("script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.search(r"\s(?:src|href|style|on\w+)=(?!\"#)", text)


def test_page_is_the_same_for_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[[], str] = lambda: html([Subject("s", of_names(["a", "b", "c"]))], made_at=NOON)  # noqa: E731
    first = make()
    monkeypatch.setattr(report, "__version__", "9.9")
    assert make() == first.replace("m31a_mp 0.1.0", "m31a_mp 9.9").replace("m31a-mp 0.1.0", "m31a-mp 9.9")


# --- Sites --------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A site as gathered metrics have it: any fields, the first one names it."""

    id: str
    host: str
    shared_at: datetime
    tool_calls: int
    has_ended: bool = False
    problem: str = ""


def test_sites_are_listed_with_all_their_fields_that_have_a_value() -> None:
    gathered: Any = SimpleNamespace(sites=[Site("a1", "<one>", NOON, 1200), Site("b2", "two", NOON, 3, True)])
    made = sites_table(gathered)
    assert [column.title for column in made.columns] == ["host", "shared at", "tool calls", "has ended"]
    assert [[cell.values[0].text for cell in row.cells] for row in made.rows] == [
        ["<one>", "2026-11-23 12:00:00", "1,200", "no"],
        ["two", "2026-11-23 12:00:00", "3", "yes"],
    ]
    assert [row.name.text for row in made.rows] == ["a1", "b2"]
    assert sites_table(metrics()).rows == []
