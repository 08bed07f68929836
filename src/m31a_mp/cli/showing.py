"""Show the metrics of sessions, for `m31a-mp show`.

People wait for this program to start, so that nothing here imports click, or what only some looks need.
"""

from __future__ import annotations

import os

from m31a_mp.cli import tables
from m31a_mp.cli.comparison import comparison_json
from m31a_mp.cli.entries import Choice
from m31a_mp.cli.found import Found
from m31a_mp.cli.naming import TroubleError, existing_or_latest
from m31a_mp.errors import DamagedMetricsError, UnsupportedVersionError
from m31a_mp.inspection.status import status
from m31a_mp.metrics.file import read_file
from m31a_mp.metrics.merge import merge
from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.system.log import shown


def show(
    directories: tuple[str, ...], choice: Choice, *, url: str | None, compare: bool, as_json: bool
) -> None:
    """Show sessions: one, the sum of several, or the differences of two.

    Args:
        directories: The sessions' directories, or files of metrics; without any, the environment's session,
            or the one that was used last.
        choice: The entries to show, and their order.
        url: The store to gather the sessions in; None: they are on this machine.
        compare: Whether to show how the second of two sessions differs from the first.
        as_json: Whether to print JSON.

    Raises:
        TroubleError, MetricsError, OSError: A session cannot be shown.
    """
    # The variable is not split at spaces, as click would for several sessions.
    named = directories or [os.environ.get(SESSION_VARIABLE)]
    found = [_gather(one, url) if url else find(one) for one in named]
    if compare:
        _show_comparison(found, choice, as_json=as_json)
    elif len(found) > 1:
        _show_sum(found, choice, as_json=as_json)
    elif as_json:
        tables.print_json(found[0].json())
    else:
        found[0].view(choice).print()


def find(directory: str | None, example: str = "m31a-mp show") -> Found:
    """Return a session by its directory, or a file of metrics; by default the session that was used last.

    Args:
        directory: The directory or the file; None or empty if none was given.
        example: The command for a hint, up to the session.
    """
    if not directory or not os.path.isfile(directory):
        looked = status(existing_or_latest(directory, example))
        return Found(looked.directory, looked.metrics, looked)
    path = os.path.abspath(directory)
    try:
        return Found(path, read_file(path))
    except UnsupportedVersionError:
        raise  # a newer version is not damage
    except DamagedMetricsError as error:
        raise TroubleError(str(error), "name a session's directory, or a metrics.json") from None


def _gather(named: str | None, url: str) -> Found:
    from m31a_mp.cli.stores import gathered_in, telling_what_is_shared  # imports click, and the stores

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
        tables.sum_view(rows, whole, choice, notes).print()


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
        tables.comparison_view(names, before, after, choice).print()
