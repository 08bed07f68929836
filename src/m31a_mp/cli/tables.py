"""What a session looks like: as tables for people, as JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from m31a_mp.cli.naming import shown
from m31a_mp.model import LLMMetric, PhaseMetric, SessionMetrics, ToolMetric, format_time
from m31a_mp.process import describe
from m31a_mp.status import LiveWriter, Owner, State, Status

JSON_VERSION = 1
"""Of the JSON forms. New keys may come without a new version; none goes or changes its meaning."""

# In a pipe a table is as wide as it needs to be.
_PIPE_COLUMNS = 10_000
_STATE_STYLES = {State.RUNNING: "green", State.NOT_CLOSED: "yellow", State.FINISHED: ""}


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
    if sys.stdout:
        sys.stdout.write(orjson.dumps({"version": JSON_VERSION} | document, option=option).decode())
        sys.stdout.flush()


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
    """What it all adds up to."""
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


def status_view(status: Status) -> RenderableType:
    """A session as tables."""
    head = Text.assemble(
        (shown(str(status.directory)), "bold"), ": ", (str(status.state), _STATE_STYLES[status.state])
    )
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
    notes += _loss_notes(status.metrics, f"; see m31a-mp verify {shown(str(status.directory))}")
    return _spaced(parts, notes)


def file_view(path: str, metrics: SessionMetrics) -> RenderableType:
    """A file of metrics as tables."""
    head = Text(f"{shown(path)}: session {shown(metrics.session_id)}", "bold")
    return _spaced([head, *_metrics_view(metrics)], _loss_notes(metrics, ""))


def _spaced(parts: list[RenderableType], notes: list[str]) -> RenderableType:
    """Each table with an empty line before it; the notes together."""
    lines: list[RenderableType] = []
    for part in parts:
        lines += ["", part] if isinstance(part, Table) else [part]
    return Group(*lines, *([""] if notes else []), *(Text(note) for note in notes))


def list_view(rows: Iterable[Status | tuple[str, str]]) -> RenderableType:
    """Sessions, one a line; of one that cannot be read its name and the reason."""
    columns = (
        "session",
        "state",
        "owner",
        "age",
        "last record",
        "calls",
        "failed",
        "tokens",
        "cost",
        "unmerged",
    )
    table = _table(None, columns, left=3)
    for row in rows:
        if isinstance(row, tuple):
            table.add_row(shown(row[0]), Text("damaged", "bold red"), Text(shown(row[1])))
            continue
        sums = totals(row.metrics)
        table.add_row(
            shown(row.directory.name),
            Text(str(row.state), _STATE_STYLES[row.state]),
            (str(row.owner.pid) if row.owner.pid else "not seen") if row.owner else "-",
            _ago(row.metrics.started_at),
            _ago(row.metrics.updated_at),
            f"{sums['tool_calls']:,}",
            _bad(sums["tool_failures"]),
            f"{sums['total_tokens']:,}",
            _cost(sums["cost"]),
            f"{row.unmerged:,}" if row.unmerged else "-",
        )
    return table


def _metrics_view(metrics: SessionMetrics) -> list[RenderableType]:
    has_records = bool(metrics.tools or metrics.llms or metrics.phases)
    latest = f"last record {_ago(metrics.updated_at)} ago" if has_records else "nothing is recorded yet"
    started = f"{metrics.started_at:%Y-%m-%d %H:%M:%S} UTC, {_ago(metrics.started_at)} ago"
    views: list[RenderableType] = [Text(f"started {started}; {latest}")]
    if metrics.tools:
        views.append(_tool_table(metrics.tools))
    if metrics.llms:
        views.append(_llm_table(metrics.llms, totals(metrics)))
    if metrics.phases:
        views.append(_phase_table(metrics.phases))
    return views


def _tool_table(tools: list[ToolMetric]) -> Table:
    table = _table("Tools", ("tool", "calls", "ok", "failed", "success rate", "average", "total"))
    for tool in tools:
        rate = f"{100 * tool.success_count / tool.call_count:.1f} %" if tool.call_count else "-"
        table.add_row(
            shown(tool.name),
            f"{tool.call_count:,}",
            f"{tool.success_count:,}",
            _bad(tool.fail_count),
            rate,
            duration(tool.avg_duration_ms),
            duration(tool.total_duration_ms),
        )
    return table


def _llm_table(llms: list[LLMMetric], sums: dict[str, int | float]) -> Table:
    columns = ("phase", "interactions", "prompt tokens", "completion tokens", "total tokens", "cost")
    table = _table("Model use", columns)
    for llm in llms:
        numbers = (llm.interaction_count, llm.prompt_tokens, llm.completion_tokens, llm.total_tokens)
        table.add_row(shown(llm.phase), *(f"{number:,}" for number in numbers), _cost(llm.cost))
    table.add_section()
    keys = ("llm_interactions", "prompt_tokens", "completion_tokens", "total_tokens")
    table.add_row("in all", *(f"{sums[key]:,}" for key in keys), _cost(sums["cost"]), style="bold")
    return table


def _phase_table(phases: list[PhaseMetric]) -> Table:
    table = _table("Phases", ("phase", "outcome", "duration", "entered", "heals", "bisects"), left=2)
    for phase in phases:
        is_known = phase.success or phase.duration_ms  # nobody says so before it has ended
        table.add_row(
            shown(phase.phase),
            Text("ok" if phase.success else "failed", "" if phase.success else "red") if is_known else "-",
            duration(phase.duration_ms) if is_known else "-",
            f"{phase.transition_count:,}",
            f"{phase.heal_trigger_count:,}",
            f"{phase.bisect_trigger_count:,}",
        )
    return table


def _live_table(writers: list[LiveWriter]) -> Table:
    table = _table("Live writers", ("process", "segments", "size", "records staged"))
    for writer in writers:
        size = f"{writer.size // 1024:,} KiB"
        table.add_row(_who(writer.pid), f"{writer.segments:,}", size, f"{writer.staged:,}")
    return table


def _table(title: str | None, columns: Iterable[str], *, left: int = 1) -> Table:
    table = Table(
        title=title,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title_justify="left",
        title_style="bold",
        header_style="dim",
    )
    for i, column in enumerate(columns):
        is_name = i == 0
        table.add_column(
            column, justify="left" if i < left else "right", overflow="fold" if is_name else "ellipsis"
        )
    return table


def _loss_notes(metrics: SessionMetrics, hint: str) -> list[str]:
    notes = []
    if metrics.rejected:
        notes.append(f"{_count(metrics.rejected, 'piece')} of damaged or invalid input set aside{hint}")
    if metrics.dropped:
        reasons = ", ".join(f"{shown(reason)} {count:,}" for reason, count in metrics.dropped.items())
        notes.append(f"{_count(sum(metrics.dropped.values()), 'record')} dropped and not counted: {reasons}")
    return notes


def _merge_note(status: Status) -> str:
    if status.owner:
        return "; its owner merges them"
    return f"; to merge them: m31a-mp compact {shown(str(status.directory))}"


def _who(pid: int | None) -> str:
    return shown(describe(pid)) if pid else "a process that is not seen from here"


def _bad(count: float) -> Text:
    return Text(f"{count:,}", "red" if count else "")


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
