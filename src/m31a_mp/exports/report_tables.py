"""The tables of a report that compare: tools, failures, models, phases and edit strategies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from m31a_mp.exports.report_cells import (
    Column,
    Entries,
    Table,
    Value,
    milliseconds,
    number,
    table,
)
from m31a_mp.exports.report_durations import Axis, Distribution, axis_of, distribution
from m31a_mp.exports.report_names import in_text
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.model import (
    EditStrategyMetric,
    LLMMetric,
    ModelMetric,
    PhaseMetric,
    SessionMetrics,
    ToolMetric,
)
from m31a_mp.wording import (
    FAILED,
    cost,
    count,
    duration,
    has_ended,
    outcome,
    part,
    parts_of_tokens,
    quantile,
)

_LINES = "lines mark p50 and, dotted, p95"
_MAX_ERRORS = 5  # names of errors in one cell
_MAX_ERROR = 48  # characters of the name of an error

# --- Sums -------------------------------------------------------------------------------------------


def money(entry: LLMMetric | ModelMetric) -> Value:
    """Return the cost of interactions."""
    unknown, uses = entry.unknown_cost_count, entry.interaction_count
    is_known = bool(uses) and unknown < uses
    return Value(cost(entry.cost, unknown, uses), entry.cost if is_known else None, is_exact=not unknown)


def is_timed(tool: ToolMetric) -> bool:
    """Whether a tool has calls with a duration."""
    return tool.call_count > tool.interrupted_count


def sum_of(make: Callable[[str], Any], entries: Sequence[Any]) -> Any:
    """Return an entry with the sums over entries of one kind, of their histograms, too."""
    whole = make("")
    for field in dataclasses.fields(whole)[1:]:
        values = [getattr(entry, field.name) for entry in entries]
        known = [value for value in values if value is not None]
        if field.name.startswith(("min_", "max_")):
            value: Any = (min if field.name.startswith("min_") else max)(known, default=None)
        elif field.name == "durations":
            value = _sum_of_histograms(known)
        elif field.name == "cost":
            value = ExactSum(known).value()
        elif isinstance(getattr(whole, field.name), int):
            value = sum(known)
        else:
            continue
        setattr(whole, field.name, value)
    return whole


def _sum_of_histograms(histograms: Sequence[Histogram]) -> Histogram:
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def sum_of_tools(metrics: SessionMetrics) -> ToolMetric:
    """Return the sums over all tools; without quantiles if those of a tool are not known."""
    whole: ToolMetric = sum_of(ToolMetric, metrics.tools)
    timed = whole.call_count - whole.interrupted_count
    whole.avg_duration_ms = whole.total_duration_ms / timed if timed > 0 else 0.0
    if whole.durations and whole.durations.count != timed:
        whole.durations = None
    return whole


# --- Rows ---------------------------------------------------------------------------------------------


def rows_of(
    sessions: Sequence[SessionMetrics], name: str, make: Callable[[str], Any], *, by: tuple[str, ...]
) -> list[Entries]:
    """Return the entries of a list of `SessionMetrics`, side by side.

    Args:
        sessions: The sessions.
        name: The field of `SessionMetrics`.
        make: Makes an entry without records, for a session that has none of that name.
        by: The fields that the rows are sorted by, the largest first; empty: they stay in order.
    """
    key = dataclasses.fields(make(""))[0].name
    found = [{getattr(entry, key): entry for entry in getattr(one, name)} for one in sessions]
    names = dict.fromkeys(name for entries in found for name in entries)
    rows = [(name, [entries.get(name) or make(name) for entries in found]) for name in names]
    if by:
        rows.sort(key=lambda row: tuple(-max(getattr(one, field) for one in row[1]) for field in by))
    return rows


# --- Tools --------------------------------------------------------------------------------------------


def _rate(part_of: int, whole: int) -> Value:
    return Value(part(part_of, whole), part_of / whole if whole else None)


def _quantile(entry: ToolMetric | ModelMetric, q: float) -> Value:
    return Value(quantile(entry, q), entry.quantile(q))


def _errors(tool: ToolMetric) -> Value:
    """Return the most frequent errors in one text."""
    errors = sorted(tool.errors.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{in_text(name, _MAX_ERROR)} ({times:,})" for name, times in errors[:_MAX_ERRORS]]
    if tool.interrupted_count:
        texts.append(f"interrupted ({tool.interrupted_count:,})")
    unnamed = tool.fail_count - tool.interrupted_count - sum(tool.errors.values())
    if unnamed > 0:
        texts.append(f"without a name ({unnamed:,})")
    if len(errors) > _MAX_ERRORS:
        texts.append(f"and {count(len(errors) - _MAX_ERRORS, 'more error')}")
    return Value(", ".join(texts) or "-")


_TOOLS = (
    Column("total time", lambda t: milliseconds(t.total_duration_ms if is_timed(t) else None), has_bars=True),
    Column("calls", lambda t: number(t.call_count)),
    Column("failed", lambda t: number(t.fail_count, is_bad=True)),
    Column("failure rate", lambda t: _rate(t.fail_count, t.call_count)),
    Column("interrupted", lambda t: number(t.interrupted_count, is_bad=True), is_optional=True),
    Column("average", lambda t: milliseconds(t.avg_duration_ms if is_timed(t) else None)),
    Column("p50", lambda t: _quantile(t, 0.5)),
    Column("p95", lambda t: _quantile(t, 0.95)),
    Column("max", lambda t: milliseconds(t.max_duration_ms)),
)
_FAILURES = (
    Column("failed", lambda t: number(t.fail_count, is_bad=True), has_bars=True),
    Column("of calls", lambda t: number(t.call_count)),
    Column("failure rate", lambda t: _rate(t.fail_count, t.call_count)),
    Column("errors", _errors, is_text=True),
)


def tools_table(sessions: Sequence[SessionMetrics]) -> Table:
    """Make the table of tools, those that took longest first."""
    rows = rows_of(sessions, "tools", ToolMetric, by=("total_duration_ms", "call_count"))
    total = [sum_of_tools(metrics) for metrics in sessions]
    made = table("tools", "Tools", "tool", _TOOLS, rows, total=total, remark=f"by total time; {_LINES}")
    return _with_distributions(made, rows, total)


def failures_table(sessions: Sequence[SessionMetrics]) -> Table:
    """Make the table of tools that failed, the most failures first."""
    rows = rows_of(sessions, "tools", ToolMetric, by=("fail_count",))
    rows = [row for row in rows if any(tool.fail_count for tool in row[1])]
    return table("failures", "Failures", "tool", _FAILURES, rows, remark="by number of failures")


def _with_distributions(made: Table, rows: Sequence[Entries], total: Sequence[Any]) -> Table:
    """Add the distributions of durations, all on one axis."""
    shown_rows = rows[: len(made.rows)]
    axis = axis_of([one.durations for _, row in shown_rows for one in row if one.durations])
    if not axis.columns:
        return made
    with_drawings = [
        dataclasses.replace(row, distribution=_distribution(entries, axis))
        for row, (_, entries) in zip(made.rows, shown_rows, strict=True)
    ]
    is_all = len(rows) == len(shown_rows)  # the axis has no room for what others took
    sums = made.total and dataclasses.replace(
        made.total, distribution=_distribution(total, axis) if is_all else None
    )
    return dataclasses.replace(made, rows=with_drawings, total=sums, axis=axis)


def _distribution(entries: Sequence[Any], axis: Axis) -> Distribution | None:
    marks = []
    for entry in entries:
        known = {f"p{100 * q:.0f}": entry.quantile(q) for q in (0.5, 0.95)}
        marks.append({name: ms for name, ms in known.items() if ms is not None})
    titles = [
        f"p50 {quantile(entry, 0.5)}, p95 {quantile(entry, 0.95)}, max {duration(entry.max_duration_ms)}"
        for entry in entries
    ]
    return distribution([entry.durations for entry in entries], marks, axis, " / ".join(titles))


# --- Models -------------------------------------------------------------------------------------------

_MODELS = (
    Column("cost", money, has_bars=True),
    Column("interactions", lambda m: number(m.interaction_count)),
    Column("total tokens", lambda m: number(m.total_tokens)),
    Column("new input", lambda m: number(parts_of_tokens(m)[0])),
    Column("cache read", lambda m: number(parts_of_tokens(m)[1]), is_optional=True),
    Column("cache write", lambda m: number(parts_of_tokens(m)[2]), is_optional=True),
    Column("output", lambda m: number(parts_of_tokens(m)[3])),
    Column("reasoning", lambda m: number(parts_of_tokens(m)[4]), is_optional=True),
    Column("p50", lambda m: _quantile(m, 0.5), is_optional=True),
    Column("p95", lambda m: _quantile(m, 0.95), is_optional=True),
)
_MODEL_USE = (
    Column("cost", money, has_bars=True),
    Column("interactions", lambda m: number(m.interaction_count)),
    Column("total tokens", lambda m: number(m.total_tokens)),
    Column("prompt tokens", lambda m: number(m.prompt_tokens)),
    Column("completion tokens", lambda m: number(m.completion_tokens)),
    Column(
        "input was cut", lambda m: Value("yes" if m.truncated_input else "-"), is_text=True, is_optional=True
    ),
)


def models_table(sessions: Sequence[SessionMetrics]) -> Table:
    """Make the table of models, the most expensive first."""
    rows = rows_of(sessions, "models", ModelMetric, by=("cost", "total_tokens"))
    total = [sum_of(ModelMetric, metrics.models) for metrics in sessions]
    unnamed = [
        metrics.totals.llm_interactions - whole.interaction_count
        for metrics, whole in zip(sessions, total, strict=True)
    ]
    without = [f"{count(n, 'interaction')} without the name of a model" for n in unnamed if n > 0]
    remark = "; ".join(["by cost", _LINES, *without])
    made = table("models", "Models", "model", _MODELS, rows, total=total, remark=remark)
    return _with_distributions(made, rows, total)


def model_use_table(sessions: Sequence[SessionMetrics]) -> Table:
    """Make the table of model use by phase, the most expensive first."""
    rows = rows_of(sessions, "llms", LLMMetric, by=("cost", "total_tokens"))
    total = [sum_of(LLMMetric, metrics.llms) for metrics in sessions]
    title, nouns = "Model use by phase", "phases with model use"
    return table("model-use", title, "phase", _MODEL_USE, rows, total=total, remark="by cost", nouns=nouns)


# --- Phases -------------------------------------------------------------------------------------------

_PHASES = (
    Column("duration", lambda p: milliseconds(p.duration_ms if has_ended(p) else None), has_bars=True),
    Column("outcome", lambda p: Value(outcome(p), is_bad=outcome(p) == FAILED), is_text=True),
    Column("entered", lambda p: number(p.transition_count)),
    Column("heals", lambda p: number(p.heal_trigger_count), is_optional=True),
    Column("healed", lambda p: number(p.heal_success_count), is_optional=True),
    Column("not healed", lambda p: number(p.heal_fail_count, is_bad=True), is_optional=True),
    Column("heal time", lambda p: milliseconds(p.heal_duration_ms), is_optional=True),
    Column("heal loops", lambda p: number(p.heal_loop_count, is_bad=True), is_optional=True),
    Column("bisects", lambda p: number(p.bisect_trigger_count), is_optional=True),
    Column("bisected", lambda p: number(p.bisect_success_count), is_optional=True),
    Column("not bisected", lambda p: number(p.bisect_fail_count, is_bad=True), is_optional=True),
)
_STRATEGIES = (Column("edits", lambda s: number(s.count), has_bars=True),)


def phases_table(sessions: Sequence[SessionMetrics]) -> Table:
    """Make the table of phases, in the order in which they began."""
    rows = rows_of(sessions, "phases", PhaseMetric, by=())
    remark = "duration and outcome are those of the latest end"
    return table("phases", "Phases", "phase", _PHASES, rows, remark=remark)


def strategies_table(sessions: Sequence[SessionMetrics]) -> Table:
    """Make the table of edit strategies, the most used first."""
    rows = rows_of(sessions, "edit_strategies", EditStrategyMetric, by=("count",))
    title, nouns = "Edit strategies", "edit strategies"
    return table("edit-strategies", title, "edit strategy", _STRATEGIES, rows, nouns=nouns)


_PARTS = (
    Column("calls", lambda m: number(m.totals.tool_calls)),
    Column("failed", lambda m: number(m.totals.tool_failures, is_bad=True)),
    Column("interrupted", lambda m: number(m.totals.interrupted, is_bad=True), is_optional=True),
    Column("interactions", lambda m: number(m.totals.llm_interactions)),
    Column("tokens", lambda m: number(m.totals.total_tokens)),
    Column("cost", lambda m: money(sum_of(LLMMetric, m.llms)), has_bars=True),
    Column("dropped", lambda m: number(m.totals.dropped, is_bad=True), is_optional=True),
    Column("set aside", lambda m: number(m.rejected, is_bad=True), is_optional=True),
)


def parts_table(parts: Sequence[tuple[str, SessionMetrics]]) -> Table:
    """Make the table of the sessions that a report adds up."""
    return table("sessions", "Sessions", "session", _PARTS, [(name, [metrics]) for name, metrics in parts])
