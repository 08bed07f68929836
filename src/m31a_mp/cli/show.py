"""`m31a-mp show`: show the metrics of sessions."""

from __future__ import annotations

import os

import click

from m31a_mp.cli import tables
from m31a_mp.cli.arguments import json_option, sessions_argument
from m31a_mp.cli.comparison import comparison_json
from m31a_mp.cli.entries import Choice
from m31a_mp.cli.found import Found
from m31a_mp.cli.naming import TroubleError, existing_or_latest
from m31a_mp.cli.options import choice_options
from m31a_mp.cli.stores import from_option, gathered_in, telling_what_is_shared
from m31a_mp.errors import DamagedMetricsError, UnsupportedVersionError
from m31a_mp.inspection.status import status
from m31a_mp.metrics.file import read_file
from m31a_mp.metrics.merge import merge
from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.system.log import shown

_EPILOG = """\
\b
Examples:
  m31a-mp show sessions/demo
  m31a-mp show sessions/demo --sort p95 --top 20
  m31a-mp show sessions/demo --json | jq .totals
  m31a-mp show sessions/a sessions/b sessions/c
  m31a-mp show --compare sessions/before sessions/after
  m31a-mp show /elsewhere/metrics.json
  m31a-mp show demo --from redis://cache

Works while the session runs, and also if it was not closed. Counts every
record, merged or not. Also shows a bare metrics.json of any program. Shows
several sessions as their sum, and each in a line. Changes nothing.

On a narrow terminal, columns are left out and names are cut; the last line
lists the missing columns. A pipe gets all columns, and --json has full names.
"""


@click.command("show", epilog=_EPILOG)
@sessions_argument
@from_option
@choice_options
@click.option("--compare", is_flag=True, help="Show how the second session differs from the first.")
@json_option
def command(
    directories: tuple[str, ...], choice: Choice, *, url: str | None, compare: bool, as_json: bool
) -> int:
    """Show the metrics of a session: tools, model use, phases, live writers."""
    if compare and len(directories) != 2:  # noqa: PLR2004  # before and after
        raise click.UsageError("--compare takes two sessions")
    if compare and choice.sort:
        raise click.UsageError("--compare has an order of its own, the largest differences first: no --sort")
    # Do not read the variable by click, which would split it at spaces for several sessions.
    named = directories or [os.environ.get(SESSION_VARIABLE)]
    found = [_gather(one, url) if url else find(one) for one in named]
    if compare:
        _show_comparison(found, choice, as_json=as_json)
    elif len(found) > 1:
        _show_sum(found, choice, as_json=as_json)
    elif as_json:
        tables.print_json(found[0].json())
    else:
        tables.console().print(found[0].view(choice))
    return 0


def find(directory: str | None) -> Found:
    """Return a session by its directory, or a file of metrics; by default the session that was used last."""
    if not directory or not os.path.isfile(directory):
        looked = status(existing_or_latest(directory, "m31a-mp show"))
        return Found(looked.directory, looked.metrics, looked)
    path = os.path.abspath(directory)
    try:
        return Found(path, read_file(path))
    except UnsupportedVersionError:
        raise  # a newer version is not damage
    except DamagedMetricsError as error:
        raise TroubleError(str(error), "name a session's directory, or a metrics.json") from None


def _gather(named: str | None, url: str) -> Found:
    session_id, gathering = gathered_in(named, url)
    try:
        with telling_what_is_shared(url):
            return Found(session_id, gathering.look(), store=gathering.url)
    finally:
        gathering.close()


def _show_sum(named: list[Found], choice: Choice, *, as_json: bool) -> None:
    """Show the sum of sessions. A session that was named several times counts once."""
    found, notes = without_repeats(named)
    whole = merge(*(one.metrics for one in found))
    if as_json:
        sums = {"totals": tables.totals(whole), "metrics": whole.to_json()}
        tables.print_json({"sessions": [one.json() for one in found]} | sums)
    else:
        rows = [(one.label, one.metrics) for one in found]
        tables.console().print(tables.sum_view(rows, whole, choice, notes))


def without_repeats(named: list[Found]) -> tuple[list[Found], list[str]]:
    """Return each session once, and a sentence on each that was named several times."""
    same: dict[str, list[Found]] = {}
    for one in named:
        same.setdefault(one.directory, []).append(one)
    notes = [
        f"{shown(first.label)} was named {_times(1 + len(others))} and counts once"
        for first, *others in same.values()
        if others
    ]
    return [first for first, *_ in same.values()], notes


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"  # noqa: PLR2004


def _show_comparison(found: list[Found], choice: Choice, *, as_json: bool) -> None:
    before, after = (one.metrics for one in found)
    if as_json:
        sessions = [{"session": one.name, "totals": tables.totals(one.metrics)} for one in found]
        tables.print_json({"sessions": sessions} | comparison_json(before, after))
    else:
        names = [one.label for one in found]
        tables.console().print(tables.comparison_view(names, before, after, choice))
