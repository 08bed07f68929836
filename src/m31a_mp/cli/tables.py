"""A session as tables for people, and as JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from m31a_mp.cli.layout import Cell, Column, Table, cut
from m31a_mp.cli.naming import shell_words
from m31a_mp.inspection.status import LiveWriter, Owner, State, Status
from m31a_mp.kinds.catalog import TABLES
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.metrics import rejected
from m31a_mp.model import LLMMetric, PhaseMetric, SessionMetrics, ToolMetric, format_time, has_records
from m31a_mp.system.log import shown
from m31a_mp.system.process import describe, name_and_state

JSON_VERSION = 1
"""The version of the JSON forms. New keys may come without a new one; none goes or changes its meaning."""

# In a pipe a table is as wide as it needs to be.
_PIPE_COLUMNS = 10_000
_STATE_STYLES = {State.RUNNING: "green", State.NOT_CLOSED: "yellow", State.FINISHED: ""}
_NAME_CELLS = 200  # of a name in running text; an id has no more
_VALUE_CELLS = 40  # of a field of a single happening
_HAPPENINGS_SHOWN = 10


def console(*, stderr: bool = False) -> Console:
    """A console that leaves text as it is: no guessing at numbers, no markup."""
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = bool(stream) and stream.isatty()
    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if is_terminal else _PIPE_COLUMNS,
    )


# --- JSON ---------------------------------------------------------------------------------------------


def print_json(document: dict[str, Any], *, in_one_line: bool = False) -> None:
    """Print a document on stdout."""
    option = orjson.OPT_APPEND_NEWLINE | (0 if in_one_line else orjson.OPT_INDENT_2)
    document = {"version": JSON_VERSION} | document
    try:
        data = orjson.dumps(document, option=option)
    except TypeError:  # a path that is not UTF-8
        data = orjson.dumps(_as_text(document), option=option)
    if sys.stdout:
        sys.stdout.write(data.decode())
        sys.stdout.flush()


def _as_text(value: Any) -> Any:
    """The same JSON, with the names of files that are not UTF-8 as text."""
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return rejected.shown(value) if isinstance(value, str) else value


def status_json(status: Status) -> dict[str, Any]:
    """A session."""
    return {
        "session": str(status.directory),
        "state": str(status.state),
        "owner": _owner_json(status.owner),
        "writers": [
            {"writer": w.writer, "pid": w.pid, "segments": w.segments, "bytes": w.size, "staged": w.staged}
            for w in status.writers
        ],
        "unmerged": status.unmerged,
        "totals": totals(status.metrics),
        "metrics": status.metrics.to_json(),
    }


def file_json(path: str, metrics: SessionMetrics) -> dict[str, Any]:
    """A file of metrics, of which nothing else is known."""
    return {
        "session": path,
        "state": None,
        "owner": None,
        "writers": [],
        "unmerged": 0,
        "totals": totals(metrics),
        "metrics": metrics.to_json(),
    }


def row_json(status: Status) -> dict[str, Any]:
    """A session among others."""
    return {
        "session": str(status.directory),
        "state": str(status.state),
        "owner": _owner_json(status.owner),
        "started_at": format_time(status.metrics.started_at),
        "updated_at": format_time(status.metrics.updated_at),
        "unmerged": status.unmerged,
        "totals": totals(status.metrics),
        "error": None,
    }


def totals(metrics: SessionMetrics) -> dict[str, int | float]:
    """The sums over all entries."""
    return {
        "tool_calls": sum(tool.call_count for tool in metrics.tools),
        "tool_failures": sum(tool.fail_count for tool in metrics.tools),
        "llm_interactions": sum(llm.interaction_count for llm in metrics.llms),
        "prompt_tokens": sum(llm.prompt_tokens for llm in metrics.llms),
        "completion_tokens": sum(llm.completion_tokens for llm in metrics.llms),
        "total_tokens": sum(llm.total_tokens for llm in metrics.llms),
        "cost": sum(llm.cost for llm in metrics.llms),
        "phases": len(metrics.phases),
        "dropped": sum(metrics.dropped.values()),
        "rejected": metrics.rejected,
    }


def _owner_json(owner: Owner | None) -> dict[str, Any] | None:
    return {"pid": owner.pid, "started_at": owner.started_at} if owner else None


# --- Tables -------------------------------------------------------------------------------------------
#
# Where not all columns have room, those of rank 0 stay, and the others come in the order of their rank.

_TOOLS = (
    Column("tool", is_right=False, may_be_cut=True),
    Column("calls", 1),
    Column("ok", 6),
    Column("failed", 2),
    Column("success rate", 5, short="success"),
    Column("average", 3),
    Column("total", 4),
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
_WRITERS = (
    Column("process"),
    Column("command", 3, is_right=False, may_be_cut=True),
    Column("state", 2, is_right=False),
    Column("segments", 5),
    Column("size", 4),
    Column("records staged", 1, short="staged"),
)
_SESSIONS = (
    Column("session", is_right=False, may_be_cut=True),
    Column("state", is_right=False),
    Column("owner", 7, is_right=False),
    Column("age", 8),
    Column("last record", 3, short="last"),
    Column("calls", 1),
    Column("failed", 2),
    Column("tokens", 5),
    Column("cost", 4),
    Column("unmerged", 6),
)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A session among others that cannot be read.

    Attributes:
        name: Its id.
        state: In a word or two, why.
        reason: In a sentence, why.
    """

    name: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """Texts and tables, each table with an empty line before it; and notes at the end."""

    parts: Sequence[Text | Table]
    notes: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for i, part in enumerate(self.parts):
            if i and isinstance(part, Table):
                yield ""
            yield part
        notes = [Text(note) for note in self.notes]
        if hidden := self._hidden(options.max_width):
            notes.append(Text(f"no room for: {hidden}", "dim"))
        if notes:
            yield ""
            yield from notes

    def _hidden(self, width: int) -> str:
        hidden = [(part.title, part.hidden(width)) for part in self.parts if isinstance(part, Table)]
        return "; ".join(
            ", ".join(columns) + (f" ({title})" if title else "") for title, columns in hidden if columns
        )


def status_view(status: Status) -> View:
    """A session as tables."""
    directory = shown(str(status.directory))
    head = Text.assemble((directory, "bold"), ": ", _state(status.state))
    if status.owner:
        head.append(f", owned by {_who(status.owner.pid)}")
    parts = [head, *_metrics_view(status.metrics)]
    if status.writers:
        parts.append(_live_table(status.writers))
    notes = []
    if status.unmerged:
        notes.append(
            f"{_count(status.unmerged, 'record')} of these not in metrics.json yet{_merge_note(status)}"
        )
    notes += _loss_notes(status.metrics, f"; see m31a-mp verify {shell_words(str(status.directory))}")
    return View(parts, notes)


def file_view(path: str, metrics: SessionMetrics) -> View:
    """A file of metrics as tables."""
    head = Text(f"{shown(path)}: session {cut(shown(metrics.session_id), _NAME_CELLS)}", "bold")
    return View([head, *_metrics_view(metrics)], _loss_notes(metrics, ""))


def list_view(rows: Iterable[Status | Unreadable]) -> View:
    """Sessions, one a line; of those that cannot be read the reasons below."""
    table = Table("", _SESSIONS)
    notes = []
    for row in rows:
        if isinstance(row, Unreadable):
            unknown = ["-"] * (len(_SESSIONS) - 2)
            table.rows.append([shown(row.name), (row.state, "bold red"), *unknown])
            notes.append(f"{shown(row.name)}: {shown(row.reason)}")
            continue
        sums = totals(row.metrics)
        table.rows.append(
            [
                shown(row.directory.name),
                _state(row.state),
                (str(row.owner.pid) if row.owner.pid else "not seen") if row.owner else "-",
                _ago(row.metrics.started_at),
                _ago(row.metrics.updated_at),
                f"{sums['tool_calls']:,}",
                _bad(sums["tool_failures"]),
                f"{sums['total_tokens']:,}",
                _cost(sums["cost"]),
                f"{row.unmerged:,}" if row.unmerged else "-",
            ]
        )
    return View([table], notes)


def _metrics_view(metrics: SessionMetrics) -> list[Text | Table]:
    ago = f"last record {_ago(metrics.updated_at)} ago"
    latest = ago if has_records(metrics) else "nothing is recorded yet"
    started = f"{metrics.started_at:%Y-%m-%d %H:%M:%S} UTC, {_ago(metrics.started_at)} ago"
    views: list[Text | Table] = [Text(f"started {started}; {latest}")]
    if metrics.tools:
        views.append(_tool_table(metrics.tools))
    if metrics.llms:
        views.append(_llm_table(metrics.llms, totals(metrics)))
    if metrics.phases:
        views.append(_phase_table(metrics.phases))
    lists = (table for table in TABLES.values() if isinstance(table, Happenings))
    views += [_happenings_table(table, metrics) for table in lists if getattr(metrics, table.name)]
    return views


def _tool_table(tools: list[ToolMetric]) -> Table:
    table = Table("Tools", _TOOLS)
    for tool in tools:
        rate = f"{100 * tool.success_count / tool.call_count:.1f} %" if tool.call_count else "-"
        table.rows.append(
            [
                shown(tool.name),
                f"{tool.call_count:,}",
                f"{tool.success_count:,}",
                _bad(tool.fail_count),
                rate,
                duration(tool.avg_duration_ms),
                duration(tool.total_duration_ms),
            ]
        )
    return table


def _llm_table(llms: list[LLMMetric], sums: dict[str, int | float]) -> Table:
    table = Table("Model use", _MODEL_USE)
    for llm in llms:
        numbers = (llm.interaction_count, llm.prompt_tokens, llm.completion_tokens, llm.total_tokens)
        table.rows.append([shown(llm.phase), *(f"{number:,}" for number in numbers), _cost(llm.cost)])
    keys = ("llm_interactions", "prompt_tokens", "completion_tokens", "total_tokens")
    table.total = ["in all", *(f"{sums[key]:,}" for key in keys), _cost(sums["cost"])]
    return table


def _phase_table(phases: list[PhaseMetric]) -> Table:
    table = Table("Phases", _PHASES)
    for phase in phases:
        is_known = phase.success or phase.duration_ms  # nobody says so before it has ended
        outcome: Cell = "ok" if phase.success else ("failed", "red")
        table.rows.append(
            [
                shown(phase.phase),
                outcome if is_known else "-",
                duration(phase.duration_ms) if is_known else "-",
                f"{phase.transition_count:,}",
                f"{phase.heal_trigger_count:,}",
                f"{phase.bisect_trigger_count:,}",
            ]
        )
    return table


def _happenings_table(happenings: Happenings, metrics: SessionMetrics) -> Table:
    """The latest of them; their columns are those of the declaration."""
    items, count = getattr(metrics, happenings.name), getattr(metrics, happenings.count)
    title = happenings.name.replace("_", " ").capitalize()
    if count > _HAPPENINGS_SHOWN:
        title += f", the latest {_HAPPENINGS_SHOWN} of {count:,}"
    names = [
        Column(name.replace("_", " "), i, is_right=False, may_be_cut=not i)
        for i, name in enumerate(happenings.fields)
    ]
    table = Table(title, (*names, Column("ago", len(names))))
    for item in items[-_HAPPENINGS_SHOWN:]:
        first, *others = (shown(str(getattr(item, name))) for name in happenings.fields)
        table.rows.append([first, *(cut(value, _VALUE_CELLS) for value in others), _ago(item.timestamp)])
    return table


def _live_table(writers: list[LiveWriter]) -> Table:
    table = Table("Live writers", _WRITERS)
    for writer in writers:
        size = f"{writer.size // 1024:,} KiB"
        command, state = (name_and_state(writer.pid) if writer.pid else None) or ("-", "-")
        table.rows.append(
            [
                str(writer.pid or "not seen"),
                shown(command),
                (state, "yellow") if state == "stopped" else state,
                f"{writer.segments:,}",
                size,
                f"{writer.staged:,}",
            ]
        )
    return table


def _loss_notes(metrics: SessionMetrics, hint: str) -> list[str]:
    notes = []
    if metrics.rejected:
        notes.append(f"{_count(metrics.rejected, 'piece')} of damaged or invalid input set aside{hint}")
    if metrics.dropped:
        reasons = ", ".join(
            f"{cut(shown(reason), _NAME_CELLS)} {count:,}" for reason, count in metrics.dropped.items()
        )
        notes.append(f"{_count(sum(metrics.dropped.values()), 'record')} dropped and not counted: {reasons}")
    return notes


def _merge_note(status: Status) -> str:
    if status.owner:
        return "; its owner merges them"
    return f"; to merge them: m31a-mp compact {shell_words(str(status.directory))}"


def _who(pid: int | None) -> str:
    return shown(describe(pid)) if pid else "a process that is not seen from here"


def _state(state: State) -> tuple[str, str]:
    return str(state), _STATE_STYLES.get(state, "")


def _bad(count: float) -> Cell:
    return (f"{count:,}", "red") if count else "0"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _cost(cost: float) -> str:
    return f"{cost:,.4f}" if cost >= 0.0001 or not cost else f"{cost:.2g}"  # noqa: PLR2004  # what 4 places show


def _ago(time: datetime) -> str:
    seconds = max(datetime.now(UTC) - time, timedelta()) // timedelta(seconds=1)
    return f"{seconds} s" if seconds < 60 else duration(seconds * 1000)  # noqa: PLR2004  # as in every clock


def duration(milliseconds: float) -> str:
    """A duration for people: two units at most."""
    if milliseconds < 1000:  # noqa: PLR2004  # as in every clock
        whole = isinstance(milliseconds, int) or milliseconds.is_integer()
        return f"{milliseconds:.0f} ms" if whole else f"{milliseconds:.1f} ms"
    if milliseconds < 60_000:  # noqa: PLR2004
        return f"{milliseconds / 1000:.1f} s"
    minutes, seconds = divmod(int(milliseconds) // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
