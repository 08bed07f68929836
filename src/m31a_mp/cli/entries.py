"""The metrics of a session as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from m31a_mp.cli.activity import Activity
from m31a_mp.cli.layout import Cell, Column, Line, Table, bad
from m31a_mp.kinds.catalog import TABLES
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.model import (
    EditStrategyMetric,
    ModelMetric,
    PhaseMetric,
    RunningCall,
    SessionMetrics,
    ToolMetric,
    has_records,
)
from m31a_mp.system.log import shown
from m31a_mp.wording import (
    FAILED,
    ago,
    cost,
    count,
    duration,
    has_ended,
    outcome,
    part,
    parts_of_tokens,
    quantile,
    start_of_program,
    title_of,
    value_of_field,
)

Entry = TypeVar("Entry")

_USUALLY_SHOWN = 10  # the default limit of happenings and of errors
# The ranks of a happening's fields; the default is 1. Without room for all, the highest are left out first.
_GIVES_WAY = {"success": 0, "error_type": 0, "description": 2, "files": 2}

# Without room for all columns, those of rank 0 stay, and others are added in the order of their ranks.
_TOOLS = (
    Column("tool", is_right=False, may_be_cut=True),
    Column("calls", 1),
    Column("ok", 9),
    Column("failed", 2),
    Column("success rate", 8, short="success"),
    Column("average", 5),
    Column("p50", 6),
    Column("p95", 3),
    Column("max", 7),
    Column("total", 4),
)
_INTERRUPTED = Column("interrupted", 2)  # only if a call was interrupted
_RUNNING = (
    Column("tool", is_right=False, may_be_cut=True),
    Column("for"),
    Column("process", 1),
    Column("machine", 2, is_right=False, may_be_cut=True),
)
ERRORS = (
    Column("tool", is_right=False, may_be_cut=True),
    Column("error", is_right=False, may_be_cut=True),
    Column("calls", 1),
)
"""The columns of a table of errors."""
_MODELS = (
    Column("model", is_right=False, may_be_cut=True),
    Column("interactions", 3, short="calls"),
    Column("new input", 4, short="new in"),
    Column("cache read", 6),
    Column("cache write", 7),
    Column("output", 5),
    Column("reasoning", 8),
    Column("total tokens", 2, short="tokens"),
    Column("p50", 10),
    Column("p95", 9),
    Column("cost", 1),
)
_MODEL_USE = (
    Column("phase", is_right=False, may_be_cut=True),
    Column("interactions", 3, short="calls"),
    Column("prompt tokens", 4, short="prompt"),
    Column("completion tokens", 5, short="completion"),
    Column("total tokens", 2, short="tokens"),
    Column("cost", 1),
)
_PHASES = (
    Column("phase", is_right=False, may_be_cut=True),
    Column("outcome", is_right=False),
    Column("duration", 1),
    Column("entered", 2),
    Column("heals", 3),
    Column("bisects", 4),
)
# Values that most sessions do not have. Their columns appear only if there is one.
_MORE_OF_PHASES: tuple[tuple[Column, Callable[[PhaseMetric], int], Callable[[int], Cell]], ...] = (
    (Column("healed", 5), lambda phase: phase.heal_success_count, "{:,}".format),
    (Column("not healed", 6), lambda phase: phase.heal_fail_count, bad),
    (Column("heal time", 7), lambda phase: phase.heal_duration_ms, duration),
    (Column("heal loops", 8), lambda phase: phase.heal_loop_count, bad),
    (Column("bisected", 9), lambda phase: phase.bisect_success_count, "{:,}".format),
    (Column("not bisected", 10), lambda phase: phase.bisect_fail_count, bad),
)
_STRATEGIES = (Column("strategy", is_right=False, may_be_cut=True), Column("edits", 1))


def _name_of(entry: Any) -> str:
    names = ("name", "model", "phase", "strategy")
    return str(next(getattr(entry, name) for name in names if hasattr(entry, name)))


def _calls_of(entry: Any) -> int:
    counts = ("call_count", "interaction_count", "transition_count", "count")
    return int(next(getattr(entry, name) for name in counts if hasattr(entry, name)))


def _quantile_of(entry: Any, q: float) -> float:
    is_of_many = isinstance(entry, ToolMetric | ModelMetric)
    return (entry.quantile(q) or 0.0) if is_of_many else _duration_of(entry, "")


def _duration_of(entry: Any, name: str) -> float:
    """Return a duration by its name. A phase has only one duration."""
    return getattr(entry, "duration_ms" if isinstance(entry, PhaseMetric) else name, 0) or 0


class Sort(NamedTuple):
    """A way to sort entries.

    Attributes:
        by: Returns the sort key of an entry, the same for all entries without a value.
        columns: The titles of the columns that show the value.
    """

    by: Callable[[Any], Any]
    columns: tuple[str, ...] = ()


SORTS: dict[str, Sort] = {
    "name": Sort(_name_of),
    "calls": Sort(lambda entry: -_calls_of(entry), ("calls", "interactions", "entered", "edits")),
    "failed": Sort(lambda entry: -getattr(entry, "fail_count", 0), ("failed",)),
    "p50": Sort(lambda entry: -_quantile_of(entry, 0.5), ("p50", "duration")),
    "p95": Sort(lambda entry: -_quantile_of(entry, 0.95), ("p95", "duration")),
    "max": Sort(lambda entry: -_duration_of(entry, "max_duration_ms"), ("max", "duration")),
    "total": Sort(lambda entry: -_duration_of(entry, "total_duration_ms"), ("total", "duration")),
    "tokens": Sort(lambda entry: -getattr(entry, "total_tokens", 0), ("total tokens",)),
    "cost": Sort(lambda entry: -getattr(entry, "cost", 0.0), ("cost",)),
}
"""The ways to sort entries. Equal entries stay in the order of their first records."""


class Choice(NamedTuple):
    """The user's choice of entries, and their order.

    Attributes:
        sort: A key of `SORTS`; None: the order of first records.
        top: The most entries of each table; None: all, but ten in tables that are not sorted.
    """

    sort: str | None = None
    top: int | None = None

    def of(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the chosen entries in order."""
        in_order = sorted(entries, key=SORTS[self.sort].by) if self.sort else list(entries)
        return in_order[: self.top]

    def ranked(self, columns: Sequence[Column]) -> list[Column]:
        """Return the columns with new ranks: the sorted column is the last to be left out."""
        sought = SORTS[self.sort].columns if self.sort else ()
        return [
            column._replace(rank=column.rank and (1 if column.title in sought else column.rank + 1))
            for column in columns
        ]

    def rest(self, entries: Sequence[object], noun: str, plural: str = "") -> str:
        """Return a text with the number of entries that are not shown; empty if all are shown."""
        left = len(entries[self.top :]) if self.top else 0
        return count(left, f"more {noun}", plural and f"more {plural}") if left else ""

    @property
    def latest(self) -> int:
        """The most happenings or errors to show."""
        return self.top or _USUALLY_SHOWN


def metrics_views(
    metrics: SessionMetrics, choice: Choice, *, is_running: bool = False
) -> list[Line | Table | Activity]:
    """Return the metrics as texts and tables; `is_running` says whether the session is running."""
    latest = (
        f"last record {ago(metrics.updated_at)} ago" if has_records(metrics) else "nothing is recorded yet"
    )
    started = f"{metrics.started_at:%Y-%m-%d %H:%M:%S} UTC, {ago(metrics.started_at)} ago"
    views: list[Line | Table | Activity] = [Line(f"started {started}; {latest}")]
    if phase := metrics.current_phase:
        since = f", entered {ago(phase.entered_at)} ago" if phase.entered_at else ""
        views.append(Line(f"{'in' if is_running else 'last in'} phase {shown(phase.phase)}{since}"))
    if metrics.startup:
        views.append(Line(start_of_program(metrics.startup)))
    if metrics.timeline and (activity := Activity(metrics.timeline)):
        views.append(activity)
    views += [table for table in _tables(metrics, choice) if table.rows]
    return views


def _tables(metrics: SessionMetrics, choice: Choice) -> Iterator[Table]:
    yield _running_table(metrics.running, choice)
    yield _tool_table(metrics, choice)
    yield _error_table(metrics.tools, choice)
    yield _model_table(metrics, choice)
    yield _llm_table(metrics, choice)
    yield _phase_table(metrics.phases, choice)
    yield _strategy_table(metrics.edit_strategies, choice)
    for table in TABLES.values():
        if isinstance(table, Happenings) and getattr(metrics, table.name):
            yield _happenings_table(table, metrics, choice)


def _running_table(running: list[RunningCall], choice: Choice) -> Table:
    """Make the table of running calls, longest first."""
    table = Table("Running", _RUNNING)
    if len(running) > choice.latest:
        table.remark = f", the longest {choice.latest} of {len(running):,}"
    for call in running[: choice.latest]:
        table.rows.append(
            [shown(call.name), ago(call.started_at), str(call.pid or "-"), shown(call.host) or "-"]
        )
    return table


def _tool_table(metrics: SessionMetrics, choice: Choice) -> Table:
    sums = metrics.totals
    columns = (*_TOOLS, _INTERRUPTED) if sums.interrupted else _TOOLS
    table = Table("Tools", choice.ranked(columns), more=choice.rest(metrics.tools, "tool"))
    for tool in choice.of(metrics.tools):
        is_timed = tool.call_count > tool.interrupted_count
        row = [
            shown(tool.name),
            f"{tool.call_count:,}",
            f"{tool.success_count:,}",
            bad(tool.fail_count),
            part(tool.success_count, tool.call_count),
            duration(tool.avg_duration_ms if is_timed else None),
            quantile(tool, 0.5),
            quantile(tool, 0.95),
            duration(tool.max_duration_ms),
            duration(tool.total_duration_ms if is_timed else None),
            bad(tool.interrupted_count),
        ]
        table.rows.append(row[: len(columns)])
    if len(metrics.tools) > 1:
        succeeded = sum(tool.success_count for tool in metrics.tools)
        took = sum(tool.total_duration_ms for tool in metrics.tools)
        longest = max((tool.max_duration_ms or 0 for tool in metrics.tools), default=0)
        timed = sums.tool_calls - sums.interrupted
        row = [
            "in all",
            f"{sums.tool_calls:,}",
            f"{succeeded:,}",
            bad(sums.tool_failures),
            part(succeeded, sums.tool_calls),
            duration(took / timed if timed > 0 else None),
            "",
            "",
            duration(longest if timed > 0 else None),
            duration(took if timed > 0 else None),
            bad(sums.interrupted),
        ]
        table.total = row[: len(columns)]
    return table


def _error_table(tools: list[ToolMetric], choice: Choice) -> Table:
    table = Table("Errors", ERRORS)
    errors = [(number, tool.name, error) for tool in tools for error, number in tool.errors.items()]
    errors.sort(key=lambda item: (-item[0], item[1:]))
    if len(errors) > choice.latest:
        table.remark = f", the most frequent {choice.latest} of {len(errors):,}"
    for number, tool, error in errors[: choice.latest]:
        table.rows.append([shown(tool), shown(error), f"{number:,}"])
    return table


def _model_table(metrics: SessionMetrics, choice: Choice) -> Table:
    table = Table("Models", choice.ranked(_MODELS), more=choice.rest(metrics.models, "model"))
    for model in choice.of(metrics.models):
        quantiles = quantile(model, 0.5), quantile(model, 0.95)
        table.rows.append([shown(model.model), *_use_of([model], quantiles)])
    if len(metrics.models) > 1:
        table.total = ["in all", *_use_of(metrics.models, ("", ""))]
    unnamed = metrics.totals.llm_interactions - sum(model.interaction_count for model in metrics.models)
    if metrics.models and unnamed > 0:
        table.remark = f"; {count(unnamed, 'interaction')} without one"
    return table


def _use_of(models: Sequence[ModelMetric], quantiles: Iterable[str]) -> list[Cell]:
    """Return the cells with the sums of interactions with some models."""
    interactions = sum(model.interaction_count for model in models)
    tokens = [sum(parts) for parts in zip(*map(parts_of_tokens, models), strict=True)]
    unknown = sum(model.unknown_cost_count for model in models)
    return [
        *(f"{number:,}" for number in (interactions, *tokens, sum(model.total_tokens for model in models))),
        *quantiles,
        cost(ExactSum([model.cost for model in models]).value(), unknown, interactions),
    ]


def _llm_table(metrics: SessionMetrics, choice: Choice) -> Table:
    more = choice.rest(metrics.llms, "phase with model use", "phases with model use")
    table = Table("Model use", choice.ranked(_MODEL_USE), more=more)
    for llm in choice.of(metrics.llms):
        numbers = (llm.interaction_count, llm.prompt_tokens, llm.completion_tokens, llm.total_tokens)
        table.rows.append(
            [
                shown(llm.phase),
                *(f"{number:,}" for number in numbers),
                cost(llm.cost, llm.unknown_cost_count, llm.interaction_count),
            ]
        )
    sums = metrics.totals
    counts = (sums.llm_interactions, sums.prompt_tokens, sums.completion_tokens, sums.total_tokens)
    table.total = [
        "in all",
        *(f"{number:,}" for number in counts),
        cost(sums.cost, sums.unknown_cost_count, sums.llm_interactions),
    ]
    return table


def _phase_table(all_phases: list[PhaseMetric], choice: Choice) -> Table:
    phases = choice.of(all_phases)
    more = [item for item in _MORE_OF_PHASES if any(item[1](phase) for phase in phases)]
    columns = (*_PHASES, *(column for column, _, _ in more))
    table = Table("Phases", choice.ranked(columns), more=choice.rest(all_phases, "phase"))
    for phase in phases:
        word = outcome(phase)
        table.rows.append(
            [
                shown(phase.phase),
                (word, "red") if word == FAILED else word,
                duration(phase.duration_ms if has_ended(phase) else None),
                f"{phase.transition_count:,}",
                f"{phase.heal_trigger_count:,}",
                f"{phase.bisect_trigger_count:,}",
                *(cell(value(phase)) for _, value, cell in more),
            ]
        )
    return table


def _strategy_table(strategies: list[EditStrategyMetric], choice: Choice) -> Table:
    more = choice.rest(strategies, "edit strategy", "edit strategies")
    table = Table("Edit strategies", choice.ranked(_STRATEGIES), more=more)
    table.rows += [[shown(strategy.strategy), f"{strategy.count:,}"] for strategy in choice.of(strategies)]
    return table


def _happenings_table(happenings: Happenings, metrics: SessionMetrics, choice: Choice) -> Table:
    """Make a table of the latest happenings. Columns of the declaration without any value are left out."""
    items, number = getattr(metrics, happenings.name), getattr(metrics, happenings.count)
    items = items[-choice.latest :]
    values = {
        name: [value_of_field(name, getattr(item, name)) for item in items]
        for name in (*happenings.fields, *happenings.derived)
    }
    values = {name: column for name, column in values.items() if any(value != "-" for value in column)}
    values["ago"] = [ago(item.timestamp) for item in items]
    first, *others = values
    ranked = [first, *sorted(others, key=lambda name: _GIVES_WAY.get(name, 1))]
    columns = [_happening_column(name, ranked.index(name), getattr(items[0], name, 0)) for name in values]
    table = Table(happenings.name.replace("_", " ").capitalize(), columns)
    if number > len(items):
        table.remark = f", the latest {len(items)} of {number:,}"
    table.rows += zip(*values.values(), strict=True)
    return table


def _happening_column(name: str, rank: int, value: Any) -> Column:
    """Make the column of a field by the type of its value: numbers are right-aligned, texts may be cut."""
    is_flag, is_number = isinstance(value, bool), isinstance(value, int)
    return Column(title_of(name), rank, is_right=is_number and not is_flag, may_be_cut=not is_number)
