"""`m31a-mp compact`: the records that an owner left, into metrics.json."""

from __future__ import annotations

import click

from m31a_mp.cli import outcome, tables
from m31a_mp.cli.naming import existing, json_option, session_argument
from m31a_mp.cli.program import tell
from m31a_mp.cli.progress import reading_progress
from m31a_mp.metrics.compactor import Compaction, compact
from m31a_mp.session.paths import Session

_EPILOG = """\
\b
Examples:
  m31a-mp compact sessions/demo
  m31a-mp compact --rebuild sessions/demo

Nothing has to be done for a session that was not closed: its next owner does the same.
The exit status is 1 if something could not be read or was set aside.
"""


@click.command("compact", epilog=_EPILOG)
@session_argument
@click.option(
    "--rebuild",
    is_flag=True,
    help="If metrics.json is damaged, set it aside and start anew from the records not merged yet.",
)
@json_option
def command(directory: str | None, rebuild: bool, as_json: bool) -> int:
    """Merge what an owner left that did not close the session. Refused while an owner lives."""
    session = existing(directory, "m31a-mp compact")
    with reading_progress(session, "merging"):
        done = compact(session.sessions_dir, session.id, rebuild=rebuild)
    if as_json:
        tables.print_json(_json(session, done))
    else:
        for line in outcome.lines(session.root, done):
            click.echo(line)
    for error in done.unreadable:
        tell(f"left for the next time: {error}")
    return outcome.status(done)


def _json(session: Session, done: Compaction) -> dict[str, object]:
    return {
        "session": session.root,
        "records": done.records,
        "rejected": [{"file": r.file, "offset": r.offset, "reason": r.reason} for r in done.rejected],
        "unreadable": [str(error) for error in done.unreadable],
        "totals": tables.totals(done.metrics),
    }
