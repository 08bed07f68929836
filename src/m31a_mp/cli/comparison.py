"""Two sessions side by side: what differs, the larger differences first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.text import Text

from m31a_mp.cli.cells import cost, duration, part
from m31a_mp.cli.entries import Choice, quantile
from m31a_mp.cli.layout import Column, Table
from m31a_mp.model import ModelMetric, SessionMetrics, ToolMetric
from m31a_mp.system.log import shown

_TOOLS = (
    Column("tool", is_right=False, may_be_cut=True),
    Column("calls", 1),
    Column("failed", 2),
    Column("p50", 4),
    Column("p95", 3),
    Column("total time", 5),
)
_MODELS = (
    Column("model", is_right=False, may_be_cut=True),
    Column("interactions", 2, short="calls"),
    Column("tokens", 1),
    Column("cost", 3),
    Column("p50", 5),
    Column("p95", 4),
)
_SUMS = (Column("", is_right=False), Column("before"), Column("after"), Column("change", 1))

_TOOL_NUMBERS = ("call_count", "fail_count", "total_duration_ms")
_MODEL_NUMBERS = ("interaction_count", "total_tokens", "cost", "unknown_cost_count", "total_duration_ms")


def comparison_views(before: SessionMetrics, after: SessionMetrics, choice: Choice) -> list[Text | Table]:
    """The sums of two sessions, and what differs in their tools and models.

    Args:
        before: The one session.
        after: The other one.
        choice: How many rows of each table at most.
    """
    tools, models = _tool_table(before, after, choice), _model_table(before, after, choice)
    return [_sums(before, after), *(table for table in (tools, models) if table.rows)]


def comparison_json(before: SessionMetrics, after: SessionMetrics) -> dict[str, Any]:
    """The same as JSON: each number as it was before, and after."""
    return {
        "tools": [
            {"name": name, **_pairs(one, two, _TOOL_NUMBERS)}
            for name, one, two in _differing(before.tools, after.tools, ToolMetric, lambda tool: tool.name)
        ],
        "models": [
            {"model": name, **_pairs(one, two, _MODEL_NUMBERS)}
            for name, one, two in _differing(before.models, after.models, ModelMetric, lambda m: m.model)
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
        "interactions": (one.llm_interactions, two.llm_interactions),
        "tokens": (one.total_tokens, two.total_tokens),
    }
    for name, (left, right) in rows.items():
        table.rows.append([name, f"{left:,}", f"{right:,}", _change(left, right)])
    rate = [part(sums.tool_failures, sums.tool_calls) for sums in (one, two)]
    table.rows.insert(2, ["failure rate", *rate, ""])
    is_exact = not (one.unknown_cost_count or two.unknown_cost_count)
    costs = [cost(sums.cost, sums.unknown_cost_count, sums.llm_interactions) for sums in (one, two)]
    table.rows.append(["cost", *costs, _change(one.cost, two.cost) if is_exact else "not known"])
    return table


def _tool_table(before: SessionMetrics, after: SessionMetrics, choice: Choice) -> Table:
    found = _differing(before.tools, after.tools, ToolMetric, lambda tool: tool.name)
    table = Table(
        "Tools that differ", _TOOLS, more=choice.rest(found, "tool that differs", "tools that differ")
    )
    for name, one, two in found[: choice.top]:
        table.rows.append(
            [
                shown(name),
                _both(f"{one.call_count:,}", f"{two.call_count:,}"),
                _both(part(one.fail_count, one.call_count), part(two.fail_count, two.call_count)),
                *_quantiles(one, two),
                _both(duration(one.total_duration_ms), duration(two.total_duration_ms)),
            ]
        )
    return table


def _model_table(before: SessionMetrics, after: SessionMetrics, choice: Choice) -> Table:
    found = _differing(before.models, after.models, ModelMetric, lambda model: model.model)
    table = Table(
        "Models that differ", _MODELS, more=choice.rest(found, "model that differs", "models that differ")
    )
    for name, one, two in found[: choice.top]:
        costs = (cost(m.cost, m.unknown_cost_count, m.interaction_count) for m in (one, two))
        table.rows.append(
            [
                shown(name),
                _both(f"{one.interaction_count:,}", f"{two.interaction_count:,}"),
                _both(f"{one.total_tokens:,}", f"{two.total_tokens:,}"),
                _both(*costs),
                *_quantiles(one, two),
            ]
        )
    return table


def _differing(
    before: Sequence[Any], after: Sequence[Any], make: Callable[[str], Any], name_of: Callable[[Any], str]
) -> list[tuple[str, Any, Any]]:
    """The entries that are not the same in both, those with the largest differences first.

    The difference is that of the time they took; where it is the same, of how often they were used.
    """
    old, new = ({name_of(entry): entry for entry in entries} for entries in (before, after))
    both = [(name, old.get(name) or make(name), new.get(name) or make(name)) for name in old | new]
    differing = [item for item in both if item[1] != item[2]]
    return sorted(differing, key=lambda item: (_difference(item[1], item[2]), item[0]))


def _difference(one: Any, two: Any) -> tuple[float, ...]:
    names = ("total_duration_ms", "cost", "call_count", "interaction_count", "fail_count")
    return tuple(-abs(getattr(two, name, 0) - getattr(one, name, 0)) for name in names)


def _quantiles(one: Any, two: Any) -> list[str]:
    return [_both(quantile(one, q), quantile(two, q)) for q in (0.5, 0.95)]


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _change(before: float, after: float) -> str:
    if before == after:
        return "-"
    return f"{100 * (after - before) / before:+.1f} %" if before else "new"
