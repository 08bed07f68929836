"""Compare two sessions side by side, the largest differences first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from m31a_mp.cli.entries import ERRORS, Choice
from m31a_mp.cli.layout import Column, Line, Table
from m31a_mp.model import ModelMetric, PhaseMetric, SessionMetrics, ToolMetric
from m31a_mp.system.log import shown
from m31a_mp.wording import change, cost, duration, has_ended, outcome, part, quantile

_TOOLS = (
    Column("tool", is_right=False, may_be_cut=True),
    Column("calls", 1),
    Column("failed", 2),
    Column("p50", 4),
    Column("p95", 3),
    Column("total time", 5),
)
_INTERRUPTED = Column("interrupted", 6)  # only if there are any
_MODELS = (
    Column("model", is_right=False, may_be_cut=True),
    Column("interactions", 2, short="calls"),
    Column("tokens", 1),
    Column("cost", 3),
    Column("p50", 5),
    Column("p95", 4),
)
_PHASES = (
    Column("phase", is_right=False, may_be_cut=True),
    Column("outcome", 1, is_right=False),
    Column("duration", 2),
)
_SUMS = (Column("", is_right=False), Column("before"), Column("after"), Column("change", 1))

_TOOL_NUMBERS = ("call_count", "fail_count", "interrupted_count", "total_duration_ms")
_MODEL_NUMBERS = ("interaction_count", "total_tokens", "cost", "unknown_cost_count", "total_duration_ms")


_Row = tuple[Sequence[str], Sequence[tuple[str, str]]]
"""The names, and the texts of each column: before and after."""


def comparison_views(before: SessionMetrics, after: SessionMetrics, choice: Choice) -> list[Line | Table]:
    """Return the sums of two sessions, and the differences in their tools, errors, models and phases.

    Args:
        before: The first session.
        after: The second session.
        choice: The limit of rows in each table.
    """
    sums = _sums(before, after)
    has_interrupted = bool(before.totals.interrupted or after.totals.interrupted)
    tools = _tools(before, after, has_interrupted=has_interrupted)
    tables = [
        _table("Tool", (*_TOOLS, _INTERRUPTED) if has_interrupted else _TOOLS, tools, choice),
        _table("Error", ERRORS, _errors(before, after), choice),
        _table("Model", _MODELS, _models(before, after), choice),
        _table("Phase", _PHASES, _phases(before, after), choice),
    ]
    views: list[Line | Table] = [sums, *(table for table in tables if table.rows)]
    if len(views) == 1 and all(one == two for _, one, two, _ in sums.rows):
        is_more_than_shown = any(comparison_json(before, after).values())
        much = " by as much as a table shows" if is_more_than_shown else ""
        views.append(Line(f"nothing differs in tools, errors, models and phases{much}"))
    return views


def comparison_json(before: SessionMetrics, after: SessionMetrics) -> dict[str, Any]:
    """Return the differences as JSON, with each number before and after."""
    return {
        "tools": [
            {"name": name, **_pairs(one, two, _TOOL_NUMBERS)}
            for name, one, two in _differing(before.tools, after.tools, ToolMetric, lambda tool: tool.name)
        ],
        "models": [
            {"model": name, **_pairs(one, two, _MODEL_NUMBERS)}
            for name, one, two in _differing(before.models, after.models, ModelMetric, lambda m: m.model)
        ],
        "errors": [
            {"tool": tool, "error": error, "calls": [one, two]}
            for tool, error, one, two in _differing_errors(before, after)
        ],
        "phases": [
            {
                "phase": name,
                "success": [phase.success if has_ended(phase) else None for phase in (one, two)],
                "duration_ms": [phase.duration_ms if has_ended(phase) else None for phase in (one, two)],
            }
            for name, one, two in _differing_phases(before, after)
        ],
    }


def _pairs(one: Any, two: Any, names: Sequence[str]) -> dict[str, Any]:
    numbers = {name: [getattr(one, name), getattr(two, name)] for name in names}
    quantiles = {f"p{100 * q:.0f}_ms": [one.quantile(q), two.quantile(q)] for q in (0.5, 0.95)}
    return numbers | quantiles


def _sums(before: SessionMetrics, after: SessionMetrics) -> Table:
    table = Table("In all", _SUMS)
    one, two = before.totals, after.totals
    rows = {
        "tool calls": (one.tool_calls, two.tool_calls),
        "of these failed": (one.tool_failures, two.tool_failures),
        "interrupted": (one.interrupted, two.interrupted),
        "interactions": (one.llm_interactions, two.llm_interactions),
        "tokens": (one.total_tokens, two.total_tokens),
    }
    for name, (left, right) in rows.items():
        table.rows.append([name, f"{left:,}", f"{right:,}", change(left, right)])
    if not (one.interrupted or two.interrupted):
        table.rows = [row for row in table.rows if row[0] != "interrupted"]
    rate = [part(sums.tool_failures, sums.tool_calls) for sums in (one, two)]
    table.rows.insert(2, ["failure rate", *rate, ""])
    is_exact = not (one.unknown_cost_count or two.unknown_cost_count)
    costs = [cost(sums.cost, sums.unknown_cost_count, sums.llm_interactions) for sums in (one, two)]
    table.rows.append(["cost", *costs, change(one.cost, two.cost) if is_exact else "not known"])
    return table


def _table(noun: str, columns: Sequence[Column], rows: Iterable[_Row], choice: Choice) -> Table:
    """Make a table of the rows in which a shown value differs."""
    differing = [(names, pairs) for names, pairs in rows if any(one != two for one, two in pairs)]
    more = choice.rest(differing, f"{noun.lower()} that differs", f"{noun.lower()}s that differ")
    table = Table(f"{noun}s that differ", columns, more=more)
    for names, pairs in differing[: choice.top]:
        table.rows.append([*map(shown, names), *(_both(*pair) for pair in pairs)])
    return table


def _tools(before: SessionMetrics, after: SessionMetrics, *, has_interrupted: bool) -> Iterator[_Row]:
    for name, one, two in _differing(before.tools, after.tools, ToolMetric, lambda tool: tool.name):
        values = [
            (f"{one.call_count:,}", f"{two.call_count:,}"),
            (part(one.fail_count, one.call_count), part(two.fail_count, two.call_count)),
            *_quantiles(one, two),
            (duration(one.total_duration_ms), duration(two.total_duration_ms)),
            (f"{one.interrupted_count:,}", f"{two.interrupted_count:,}"),
        ]
        yield [name], values if has_interrupted else values[:-1]


def _errors(before: SessionMetrics, after: SessionMetrics) -> Iterator[_Row]:
    for tool, error, one, two in _differing_errors(before, after):
        yield [tool, error], [(f"{one:,}", f"{two:,}")]


def _models(before: SessionMetrics, after: SessionMetrics) -> Iterator[_Row]:
    for name, one, two in _differing(before.models, after.models, ModelMetric, lambda model: model.model):
        yield (
            [name],
            [
                (f"{one.interaction_count:,}", f"{two.interaction_count:,}"),
                (f"{one.total_tokens:,}", f"{two.total_tokens:,}"),
                (_cost_of(one), _cost_of(two)),
                *_quantiles(one, two),
            ],
        )


def _phases(before: SessionMetrics, after: SessionMetrics) -> Iterator[_Row]:
    for name, one, two in _differing_phases(before, after):
        took = [duration(phase.duration_ms if has_ended(phase) else None) for phase in (one, two)]
        yield [name], [(outcome(one), outcome(two)), (took[0], took[1])]


def _cost_of(model: ModelMetric) -> str:
    return cost(model.cost, model.unknown_cost_count, model.interaction_count)


def _differing_errors(before: SessionMetrics, after: SessionMetrics) -> list[tuple[str, str, int, int]]:
    """List the errors of tools with different counts, the largest differences first."""
    old, new = (
        {(tool.name, error): number for tool in metrics.tools for error, number in tool.errors.items()}
        for metrics in (before, after)
    )
    both = [(*key, old.get(key, 0), new.get(key, 0)) for key in old | new]
    differing = [(tool, error, one, two) for tool, error, one, two in both if one != two]
    return sorted(differing, key=lambda item: (-abs(item[3] - item[2]), item[:2]))


def _differing_phases(
    before: SessionMetrics, after: SessionMetrics
) -> list[tuple[str, PhaseMetric, PhaseMetric]]:
    """List the phases with a different outcome or duration, the largest differences first."""
    found = _differing(before.phases, after.phases, PhaseMetric, lambda phase: phase.phase)
    return [
        (name, one, two)
        for name, one, two in found
        if (one.success, one.duration_ms) != (two.success, two.duration_ms)
    ]


def _differing(
    before: Sequence[Any], after: Sequence[Any], make: Callable[[str], Any], name_of: Callable[[Any], str]
) -> list[tuple[str, Any, Any]]:
    """List the entries that differ, the largest differences first.

    The difference of the total time decides; at equal times, the difference of the counts.
    """
    old, new = ({name_of(entry): entry for entry in entries} for entries in (before, after))
    both = [(name, old.get(name) or make(name), new.get(name) or make(name)) for name in old | new]
    differing = [item for item in both if item[1] != item[2]]
    return sorted(differing, key=lambda item: (_difference(item[1], item[2]), item[0]))


def _difference(one: Any, two: Any) -> tuple[float, ...]:
    names = ("total_duration_ms", "duration_ms", "cost", "call_count", "interaction_count", "fail_count")
    return tuple(-abs(getattr(two, name, 0) - getattr(one, name, 0)) for name in names)


def _quantiles(one: Any, two: Any) -> list[tuple[str, str]]:
    return [(quantile(one, q), quantile(two, q)) for q in (0.5, 0.95)]


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
