"""A session as tables for people, and as JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from m31a_mp.cli.activity import Activity
from m31a_mp.cli.comparison import comparison_views
from m31a_mp.cli.entries import Choice, metrics_views
from m31a_mp.cli.layout import Cell, Column, Line, Table, bad, cut
from m31a_mp.cli.naming import path_word
from m31a_mp.inspection.status import LiveWriter, Owner, State, Status
from m31a_mp.metrics import rejected
from m31a_mp.model import SessionMetrics, SiteMetric, format_time
from m31a_mp.system.log import shown
from m31a_mp.system.process import describe, name_and_state
from m31a_mp.wording import ago, cost, count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

JSON_VERSION = 1
"""The version of the JSON forms. Without a new version, keys may be added, but not removed or changed."""

# In a pipe, a table is as wide as its content.
_PIPE_COLUMNS = 10_000
_COLOUR_VARIABLES = {"FORCE_COLOR", "TTY_COMPATIBLE"}
_STATE_STYLES = {State.RUNNING: "green", State.NOT_CLOSED: "yellow", State.FINISHED: ""}
_ID_CELLS = 8  # enough to tell sites apart
_NOTES = 10  # the most sites with problems that are told one by one
_SILENT_SHARES = 3  # that many signs of life are missing
_NAME_CELLS = 200  # the most cells of a name in running text; an id has no more


def console(*, stderr: bool = False) -> Console:
    """Make a console that prints text unchanged, without highlighting or markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    is_terminal = bool(stream) and stream.isatty()
    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if is_terminal else _PIPE_COLUMNS,
    )


ALL = Choice()
"""All entries, in the order of their first records."""

# --- JSON ---------------------------------------------------------------------------------------------


def print_json(document: dict[str, Any], *, in_one_line: bool = False) -> None:
    """Print a document to stdout, in UTF-8 whatever the locale: other encodings are no JSON."""
    option = orjson.OPT_APPEND_NEWLINE | (0 if in_one_line else orjson.OPT_INDENT_2)
    document = {"version": JSON_VERSION} | document
    try:
        data = orjson.dumps(document, option=option)
    except TypeError:  # a path that is not UTF-8
        data = orjson.dumps(_as_text(document), option=option)
    if sys.stdout:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _as_text(value: Any) -> Any:
    """Return the same JSON, with file names that are not UTF-8 escaped."""
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return rejected.shown(value) if isinstance(value, str) else value


def status_json(status: Status) -> dict[str, Any]:
    """Return the JSON of a session."""
    return {
        "session": status.directory,
        "state": str(status.state),
        "owner": _owner_json(status.owner),
        "writers": [
            {"writer": w.writer, "pid": w.pid, "segments": w.segments, "bytes": w.size, "staged": w.staged}
            for w in status.writers
        ],
        "unmerged": _unmerged(status),
        "unshared": _unshared_json(status),
        "totals": totals(status.metrics),
        "metrics": status.metrics.to_json(),
    }


def file_json(path: str, metrics: SessionMetrics) -> dict[str, Any]:
    """Return the JSON of a file of metrics, with the keys of a session."""
    return {
        "session": path,
        "state": None,
        "owner": None,
        "writers": [],
        "unmerged": 0,
        "unshared": None,
        "totals": totals(metrics),
        "metrics": metrics.to_json(),
    }


def row_json(status: Status) -> dict[str, Any]:
    """Return the JSON of a session in a list."""
    return {
        "session": status.directory,
        "state": str(status.state),
        "owner": _owner_json(status.owner),
        "started_at": format_time(status.metrics.started_at),
        "updated_at": format_time(status.metrics.updated_at),
        "unmerged": _unmerged(status),
        "unshared": _unshared_json(status),
        "totals": totals(status.metrics),
        "error": None,
    }


def gathered_json(row: Gathered) -> dict[str, Any]:
    """Return the JSON of a gathered session in a list."""
    metrics = row.metrics
    problems = [site.problem for site in metrics.sites if site.problem] if metrics else [row.reason]
    known = metrics if metrics and _is_counted(metrics) else None
    return {
        "session": row.name,
        "sites": len(metrics.sites) if metrics else None,
        "started_at": format_time(known.started_at) if known else None,
        "updated_at": format_time(known.updated_at) if known else None,
        "totals": totals(known) if known else None,
        "error": "; ".join(problems) or None,
    }


def _unshared_json(status: Status) -> dict[str, str] | None:
    if not status.unshared:
        return None
    reason = "; ".join(told.reason for told in status.unshared)
    return {"since": format_time(min(told.since for told in status.unshared)), "reason": reason}


def _unmerged(status: Status) -> int:
    """Count what `metrics.json` does not have yet."""
    return status.unmerged + status.interrupted


def totals(metrics: SessionMetrics) -> dict[str, int | float]:
    """Return the sums over all entries."""
    sums = metrics.totals
    return {
        "tool_calls": sums.tool_calls,
        "tool_failures": sums.tool_failures,
        "interrupted": sums.interrupted,
        "running": len(metrics.running),
        "llm_interactions": sums.llm_interactions,
        "prompt_tokens": sums.prompt_tokens,
        "completion_tokens": sums.completion_tokens,
        "total_tokens": sums.total_tokens,
        "cost": sums.cost,
        "unknown_cost_count": sums.unknown_cost_count,
        "phases": len(metrics.phases),
        "dropped": sums.dropped,
        "rejected": metrics.rejected,
    }


def _owner_json(owner: Owner | None) -> dict[str, Any] | None:
    return {"pid": owner.pid, "started_at": owner.started_at} if owner else None


# --- Tables -------------------------------------------------------------------------------------------
#
# Without room for all columns, those of rank 0 stay, and others are added in the order of their ranks.

_WRITERS = (
    Column("process"),
    Column("command", 3, is_right=False, may_be_cut=True),
    Column("state", 2, is_right=False),
    Column("segments", 5),
    Column("size", 4),
    Column("records staged", 1, short="staged"),
)
_SUMMED = (
    Column("session", is_right=False, may_be_cut=True),
    Column("calls", 1),
    Column("failed", 2),
    Column("interactions", 5),
    Column("tokens", 4),
    Column("cost", 3),
)
_SITES = (
    Column("site", 2, is_right=False),
    Column("host", is_right=False, may_be_cut=True),
    Column("last share", 1, short="last", is_right=False),
    Column("records", 3),
    Column("calls", 4),
    Column("interactions", 5),
    Column("dropped", 6),
    Column("rejected", 7),
    Column("sites", 8),
)
_GATHERED = (
    Column("session", is_right=False, may_be_cut=True),
    Column("sites", 2),
    Column("age", 8),
    Column("last record", 4, short="last"),
    Column("running", 5),
    Column("calls", 1),
    Column("failed", 3),
    Column("tokens", 7),
    Column("cost", 6),
)
_SESSIONS = (
    Column("session", is_right=False, may_be_cut=True),
    Column("state", is_right=False),
    Column("owner", 8, is_right=False),
    Column("age", 9),
    Column("last record", 4, short="last"),
    Column("running", 2),
    Column("calls", 1),
    Column("failed", 3),
    Column("tokens", 6),
    Column("cost", 5),
    Column("unmerged", 7),
)


class Unreadable(NamedTuple):
    """A session in a list that cannot be read.

    Attributes:
        name: The session's id.
        state: The reason in a word or two.
        reason: The reason in a sentence.
    """

    name: str
    state: str
    reason: str


class Gathered(NamedTuple):
    """A gathered session in a list.

    Attributes:
        name: The session's id.
        metrics: The sum of its sites; None if the store did not tell its states.
        reason: Why it did not; empty if it did.
    """

    name: str
    metrics: SessionMetrics | None
    reason: str = ""


class View(NamedTuple):
    """Texts and tables, with an empty line before and after each table, and notes at the end."""

    parts: Sequence[Line | Table | Activity]
    notes: Sequence[str]

    def lines(self, width: int) -> Iterator[Line]:
        """Yield the lines for a width in cells."""
        above: Line | Table | Activity | None = None
        for part in self.parts:
            if above is not None and not (isinstance(above, Line) and isinstance(part, Line)):
                yield Line()
            yield from [part] if isinstance(part, Line) else part.lines(width)
            above = part
        more = [part.more for part in self.parts if isinstance(part, Table) and part.more]
        notes = [Line(note) for note in (*more, *self.notes)]
        if hidden := self._hidden(width):
            notes.append(Line((f"no room for: {hidden}", "dim")))
        if notes:
            yield Line()
            yield from notes

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(options.max_width)

    def print(self) -> None:
        """Print to stdout: in colours to a terminal, and to what asks for them as rich understands it."""
        wants_colours = sys.stdout and (sys.stdout.isatty() or os.environ.keys() & _COLOUR_VARIABLES)
        if wants_colours:
            console().print(self)
        elif sys.stdout:
            sys.stdout.writelines(f"{line}\n" for line in self.lines(_PIPE_COLUMNS))
            sys.stdout.flush()

    def _hidden(self, width: int) -> str:
        hidden = [(part.title, part.hidden(width)) for part in self.parts if isinstance(part, Table)]
        return "; ".join(
            ", ".join(columns) + (f" ({title})" if title else "") for title, columns in hidden if columns
        )


def status_view(status: Status, choice: Choice = ALL) -> View:
    """Return a session as tables."""
    directory = shown(status.directory)
    owned = f", owned by {_who(status.owner.pid)}" if status.owner else ""
    head = Line((directory, "bold"), ": ", _state(status.state), owned)
    is_running = status.state is State.RUNNING
    parts = [
        head,
        *_sites(status.metrics, choice),
        *metrics_views(status.metrics, choice, is_running=is_running),
    ]
    if status.writers:
        parts.append(_live_table(status.writers, choice))
    notes = []
    new = {"record": status.unmerged, "interrupted call": status.interrupted}
    if unmerged := " and ".join(count(number, noun) for noun, number in new.items() if number):
        notes += _unmerged_notes(unmerged, status)
    if not is_running:
        notes += _running_notes(status.metrics)
    notes += _unshared_notes(status)
    notes += _loss_notes(status.metrics, f"m31a-mp verify {path_word(status.directory)}")
    return View(parts, notes)


def file_view(path: str, metrics: SessionMetrics, choice: Choice = ALL) -> View:
    """Return a file of metrics as tables."""
    head = Line((f"{shown(path)}: session {cut(shown(metrics.session_id), _NAME_CELLS)}", "bold"))
    notes = [*_running_notes(metrics), *_loss_notes(metrics)]
    return View([head, *_sites(metrics, choice), *metrics_views(metrics, choice)], notes)


def gathered_view(session_id: str, store: str, metrics: SessionMetrics, choice: Choice = ALL) -> View:
    """Return a session that was gathered from sites as tables."""
    head = Line((f"session {cut(shown(session_id), _NAME_CELLS)}", "bold"), f", gathered from {shown(store)}")
    parts = [head, *_sites(metrics, choice), *metrics_views(metrics, choice, is_running=_is_alive(metrics))]
    return View(parts, [*_site_notes(metrics), *_loss_notes(metrics)])


def gathered_list_view(sessions: Sequence[Gathered]) -> View:
    """Return gathered sessions, one per line, and below what is wrong with them and their sites."""
    table, notes = Table("", _GATHERED), []
    for row in sessions:
        metrics = row.metrics
        sites: Cell = f"{len(metrics.sites):,}" if metrics else "-"
        sums: list[Cell] = ["-"] * (len(_GATHERED) - 2)
        if metrics and _is_counted(metrics):
            sums = _gathered_sums(metrics)
        style = "red" if has_trouble(row) else ""
        table.rows.append([(shown(row.name), style), sites, *sums])
        told = _site_notes(metrics) if metrics else [shown(row.reason)]
        notes += [f"{shown(row.name)}: {note}" for note in told]
    return View([table], notes)


def has_trouble(row: Gathered) -> bool:
    """Whether a session, or any site of it, could not be counted as it should."""
    return row.metrics is None or any(site.problem for site in row.metrics.sites)


def _is_counted(metrics: SessionMetrics) -> bool:
    """Whether any site is counted. Otherwise the sums are not zero, but not known."""
    return any(site.number for site in metrics.sites)


def _gathered_sums(metrics: SessionMetrics) -> list[Cell]:
    sums = totals(metrics)
    return [
        ago(metrics.started_at),
        ago(metrics.updated_at),
        f"{sums['running']:,}" if sums["running"] else "-",
        f"{sums['tool_calls']:,}",
        bad(sums["tool_failures"]),
        f"{sums['total_tokens']:,}",
        cost(sums["cost"], int(sums["unknown_cost_count"]), int(sums["llm_interactions"])),
    ]


def _sites(metrics: SessionMetrics, choice: Choice) -> list[Table]:
    """Return the table of the sites, if the session was gathered. Those with problems come first."""
    if not metrics.sites:
        return []
    has_below = any(site.sites for site in metrics.sites)  # most sites are no gathered sessions themselves
    columns = _SITES if has_below else _SITES[:-1]
    table = Table("Sites", columns, more=choice.rest(metrics.sites, "site"))
    in_order = sorted(metrics.sites, key=lambda site: (not site.problem, not _is_silent(site)))
    for site in in_order[: choice.top]:
        last: Cell = "-"
        counts: list[Cell] = ["-"] * 5  # of a site that is not counted, they are not known
        if site.number:
            counts = [
                "-" if site.records is None else f"{site.records:,}",
                f"{site.tool_calls:,}",
                f"{site.llm_interactions:,}",
                bad(site.dropped),
                bad(site.rejected),
            ]
            last = f"{ago(site.shared_at)} ago"
            if site.has_ended:
                last = f"ended {last}"
            elif _is_silent(site):
                last = (f"silent for {ago(site.shared_at)}", "yellow")
        table.rows.append(
            [
                (site.id[:_ID_CELLS], "red" if site.problem else ""),
                shown(site.host) or "-",
                last,
                *counts,
                f"{site.sites:,}" if site.sites else "-",
            ][: len(columns)]
        )
    return [table]


def _is_silent(site: SiteMetric) -> bool:
    """Whether a site that has not ended did not share for so long that it may be dead or cut off."""
    from m31a_mp.sharing.state import RENEW_SECONDS  # most sessions are not gathered

    since = (datetime.now(UTC) - site.shared_at).total_seconds()
    return not site.has_ended and since > _SILENT_SHARES * RENEW_SECONDS


def _is_alive(metrics: SessionMetrics) -> bool:
    return any(not site.has_ended and not _is_silent(site) for site in metrics.sites)


def _site_notes(metrics: SessionMetrics) -> list[str]:
    """Return a note on each site with a problem, and one on those that are silent."""
    told = [site for site in metrics.sites if site.problem]
    notes = [
        f"site {site.id[:_ID_CELLS]} ({shown(site.host) or 'host not known'}): {shown(site.problem)}"
        for site in told[:_NOTES]
    ]
    if len(told) > _NOTES:
        notes.append(f"and {count(len(told) - _NOTES, 'other site')} with problems")
    if silent := sum(map(_is_silent, metrics.sites)):
        notes.append(f"{count(silent, 'site')} did not share for a while: what is newer there is not counted")
    return notes


def _unshared_notes(status: Status) -> list[str]:
    return [f"not shared for {ago(told.since)}: {shown(told.reason)}" for told in status.unshared]


def sum_view(
    named: Sequence[tuple[str, SessionMetrics]], whole: SessionMetrics, choice: Choice, notes: Sequence[str]
) -> View:
    """Return several sessions, each in a line, and their sum as tables."""
    table = Table("Sessions", _SUMMED, more=choice.rest(named, "session"))
    for name, metrics in named[: choice.top]:
        table.rows.append([shown(name), *_sums_of(metrics)])
    table.total = ["in all", *_sums_of(whole)]
    head = Line((f"the sum of {count(len(named), 'session')}", "bold"))
    return View([head, table, *metrics_views(whole, choice)], [*notes, *_loss_notes(whole)])


def _sums_of(metrics: SessionMetrics) -> list[Cell]:
    sums = metrics.totals
    return [
        f"{sums.tool_calls:,}",
        bad(sums.tool_failures),
        f"{sums.llm_interactions:,}",
        f"{sums.total_tokens:,}",
        cost(sums.cost, sums.unknown_cost_count, sums.llm_interactions),
    ]


def comparison_view(
    names: Sequence[str], before: SessionMetrics, after: SessionMetrics, choice: Choice
) -> View:
    """Return two sessions side by side."""
    head = Line((" → ".join(map(shown, names)), "bold"))
    return View([head, *comparison_views(before, after, choice)], [])


def list_view(rows: Iterable[Status | Unreadable]) -> View:
    """Return sessions, one per line, and below the reasons for those that cannot be read."""
    table = Table("", _SESSIONS)
    notes = []
    for row in rows:
        if isinstance(row, Unreadable):
            unknown = ["-"] * (len(_SESSIONS) - 2)
            table.rows.append([shown(row.name), (row.state, "bold red"), *unknown])
            notes.append(f"{shown(row.name)}: {shown(row.reason)}")
            continue
        notes += [f"{shown(os.path.basename(row.directory))}: {note}" for note in _unshared_notes(row)]
        sums = totals(row.metrics)
        table.rows.append(
            [
                shown(os.path.basename(row.directory)),
                _state(row.state),
                (str(row.owner.pid) if row.owner.pid else "not seen") if row.owner else "-",
                ago(row.metrics.started_at),
                ago(row.metrics.updated_at),
                f"{sums['running']:,}" if sums["running"] else "-",
                f"{sums['tool_calls']:,}",
                bad(sums["tool_failures"]),
                f"{sums['total_tokens']:,}",
                cost(sums["cost"], int(sums["unknown_cost_count"]), int(sums["llm_interactions"])),
                f"{_unmerged(row):,}" if _unmerged(row) else "-",
            ]
        )
    return View([table], notes)


def _live_table(writers: list[LiveWriter], choice: Choice) -> Table:
    table = Table("Live writers", _WRITERS, more=choice.rest(writers, "live writer"))
    for writer in writers[: choice.top]:
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


def _running_notes(metrics: SessionMetrics) -> list[str]:
    """Return a note on running calls of which only a file tells."""
    if not metrics.running:
        return []
    calls = count(len(metrics.running), "call")
    return [f"running, as far as the files tell: {calls}, whose process cannot be seen from here"]


def _loss_notes(metrics: SessionMetrics, command: str = "") -> list[str]:
    """Return notes on what is lost. `command` shows what was set aside."""
    notes = []
    if interrupted := metrics.totals.interrupted:
        notes.append(f"{count(interrupted, 'call')} interrupted: the process died in the middle")
    if metrics.rejected:
        notes.append(f"{count(metrics.rejected, 'piece')} of damaged or invalid input set aside")
        if command:
            notes.append(f"to see it: {command}")
    if metrics.dropped:
        reasons = ", ".join(
            f"{cut(shown(reason), _NAME_CELLS)} {count:,}" for reason, count in metrics.dropped.items()
        )
        notes.append(f"{count(sum(metrics.dropped.values()), 'record')} dropped and not counted: {reasons}")
    return notes


def _unmerged_notes(unmerged: str, status: Status) -> list[str]:
    note = f"not in metrics.json yet: {unmerged}"
    if status.owner:
        return [f"{note}; its owner will merge"]
    return [note, f"to merge: m31a-mp compact {path_word(status.directory)}"]  # a line to be copied


def _who(pid: int | None) -> str:
    return shown(describe(pid)) if pid else "a process that is not seen from here"


def _state(state: State) -> tuple[str, str]:
    return str(state), _STATE_STYLES.get(state, "")
