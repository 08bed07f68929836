"""`m31a-mp report`: write a page about a session, or about two side by side."""

from __future__ import annotations

import os
import sys

import click

from m31a_mp.cli.arguments import complete_file, sessions_argument
from m31a_mp.cli.extras import needing
from m31a_mp.cli.found import Found
from m31a_mp.cli.naming import TroubleError, shell_words
from m31a_mp.cli.output import STDOUT, checked, writing
from m31a_mp.cli.program import tell
from m31a_mp.cli.showing import find, without_repeats
from m31a_mp.metrics.merge import merge
from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.system import files
from m31a_mp.system.log import shown

_USUAL = "report.html"
_NEEDED = "jinja2>=3.1.4"

_EPILOG = """\
\b
Examples:
  m31a-mp report sessions/demo
  m31a-mp report sessions/demo -o demo.html
  m31a-mp report sessions/before sessions/after -o change.html
  m31a-mp report sessions/demo -o - | gzip > demo.html.gz

The page is one file without anything to load: it can be mailed. Two sessions
stand side by side, more are added up. Works while the session runs, and also
if it was not closed. Changes nothing in the session.

Needs the package jinja2, which the extra `report` brings.
"""


@click.command("report", epilog=_EPILOG)
@sessions_argument
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=complete_file,
    help=f"Write to FILE, and replace it if it is there; - is stdout. By default a new {_USUAL}.",
)
def command(directories: tuple[str, ...], output: str | None) -> int:
    """Write a page of HTML: what was done when, tools, models, phases, failures."""
    if output != STDOUT:
        path = _checked(output)  # before the work
    named = directories or [os.environ.get(SESSION_VARIABLE)]
    found, notes = without_repeats([find(directory, "m31a-mp report") for directory in named])
    for note in notes:
        tell(note)
    page = _page(found).encode()
    if output != STDOUT:
        with writing(path):
            files.hand_out(path, page)  # another report may go to the same file at the same time
            files.delete_handed_out(path)
        of = "" if directories else f" about {shown(found[0].directory)}"
        click.echo(f"{shell_words(output or _USUAL)}: {-(-len(page) // 1024):,} KiB{of}")
    elif sys.stdout:
        sys.stdout.buffer.write(page)
    return 0


def _page(found: list[Found]) -> str:
    report = needing("m31a_mp.exports.report", _NEEDED)
    subjects = [
        report.Subject(one.name, one.metrics, str(one.status.state) if one.status else "") for one in found
    ]
    if len(subjects) <= report.MAX_SESSIONS:
        return str(report.html(subjects))
    whole = report.Subject(f"the sum of {len(subjects)} sessions", merge(*(one.metrics for one in found)))
    return str(report.html([whole], parts=subjects))


def _checked(output: str | None) -> str:
    """Return the path of the file to write."""
    path = checked(_USUAL if output is None else output)
    if output is None and os.path.exists(path):
        raise TroubleError(f"{_USUAL} is there already", f"to replace it: -o {_USUAL}")
    return path
