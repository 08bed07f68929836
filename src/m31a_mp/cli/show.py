"""`m31a-mp show`: what a session adds up to."""

from __future__ import annotations

import os

import click

from m31a_mp.cli import tables
from m31a_mp.cli.naming import TroubleError, existing_or_latest, json_option, session_argument
from m31a_mp.errors import DamagedMetricsError, UnsupportedVersionError
from m31a_mp.inspection.status import status
from m31a_mp.metrics.file import read_file

_EPILOG = """\
\b
Examples:
  m31a-mp show sessions/demo
  m31a-mp show sessions/demo --json | jq .totals
  m31a-mp show /elsewhere/metrics.json

Works while the session runs, also where nobody closed it, and counts every record in it,
merged or not. Also shows a bare metrics.json, whoever wrote it. Changes
nothing.

Where the terminal is narrow, columns are left out and names cut; the last line
says which columns. In a pipe all columns are there, and --json has the names
whole.
"""


@click.command("show", epilog=_EPILOG)
@session_argument
@json_option
def command(directory: str | None, as_json: bool) -> int:
    """Show what a session adds up to: tools, model use, phases, who is live."""
    if directory and os.path.isfile(directory):
        _show_file(os.path.abspath(directory), as_json=as_json)
        return 0
    found = status(existing_or_latest(directory, "m31a-mp show"))
    if as_json:
        tables.print_json(tables.status_json(found))
    else:
        tables.console().print(tables.status_view(found))
    return 0


def _show_file(path: str, *, as_json: bool) -> None:
    try:
        metrics = read_file(path)
    except UnsupportedVersionError:
        raise  # it is not damaged
    except DamagedMetricsError as error:
        raise TroubleError(str(error), "name a session's directory, or a metrics.json") from None
    if as_json:
        tables.print_json(tables.file_json(path, metrics))
    else:
        tables.console().print(tables.file_view(path, metrics))
