"""`m31a-mp compact`: merge the records that an owner left into metrics.json."""

from __future__ import annotations

import click

from m31a_mp.cli import outcome, tables
from m31a_mp.cli.arguments import json_option, session_argument
from m31a_mp.cli.naming import existing
from m31a_mp.cli.program import tell
from m31a_mp.cli.progress import reading_progress
from m31a_mp.metrics.compactor import Compaction, compact
from m31a_mp.session.paths import Session

_EPILOG = """\
\b
Examples:
  m31a-mp compact sessions/demo
  m31a-mp compact --rebuild sessions/demo

A session that was not closed needs no action: its next owner does the same.
The exit status is 1 if input could not be read or was set aside.
"""


@click.command("compact", epilog=_EPILOG)
@session_argument
@click.option(
    "--rebuild",
    is_flag=True,
    help="If metrics.json is damaged, set it aside and start again from the unmerged records.",
)
@json_option
def command(directory: str | None, rebuild: bool, as_json: bool) -> int:
    """Merge the records of a session that its owner did not close. Refused while an owner lives."""
    session = existing(directory, "m31a-mp compact")
    with reading_progress(session, "merging"):
        done = compact(session.sessions_dir, session.id, rebuild=rebuild)
    if as_json:
        tables.print_json(_json(session, done))
    else:
        for line in outcome.lines(session.root, done):
            click.echo(line)
    for error in done.unreadable:
        tell(f"left for the next compaction: {error}")
    return outcome.status(done)


def _json(session: Session, done: Compaction) -> dict[str, object]:
    return {
        "session": session.root,
        "records": done.records,
        "interrupted": done.interrupted,
        "rejected": [{"file": r.file, "offset": r.offset, "reason": r.reason} for r in done.rejected],
        "unreadable": [str(error) for error in done.unreadable],
        "totals": tables.totals(done.metrics),
    }
