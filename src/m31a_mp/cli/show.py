"""`m31a-mp show`: show the metrics of sessions."""

from __future__ import annotations

import click

from m31a_mp.cli.arguments import json_option, sessions_argument
from m31a_mp.cli.entries import Choice
from m31a_mp.cli.options import choice_options
from m31a_mp.cli.showing import show
from m31a_mp.cli.stores import from_option

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
    show(directories, choice, url=url, compare=compare, as_json=as_json)
    return 0
