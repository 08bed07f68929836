"""`m31a-mp verify`: check all files of a session."""

from __future__ import annotations

import click

from m31a_mp.cli import tables
from m31a_mp.cli.arguments import json_option, session_argument
from m31a_mp.cli.naming import existing_or_latest
from m31a_mp.cli.progress import reading_progress
from m31a_mp.inspection.verify import verify
from m31a_mp.system.log import shown

_EPILOG = """\
\b
Example:
  m31a-mp verify sessions/demo && echo all is well

Reads all files and changes nothing. Unmerged records are no finding: the next
owner merges them. The exit status is 1 if there are findings.
"""


@click.command("verify", epilog=_EPILOG)
@session_argument
@json_option
def command(directory: str | None, as_json: bool) -> int:
    """Check all files of a session."""
    session = existing_or_latest(directory, "m31a-mp verify")
    with reading_progress(session, "checking"):
        findings = verify(session.sessions_dir, session.id)
    if as_json:
        listed = [{"file": f.file, "offset": f.offset, "reason": f.reason} for f in findings]
        tables.print_json({"session": session.root, "findings": listed})
    else:
        noun = "finding" if len(findings) == 1 else "findings"
        found = f"{len(findings):,} {noun}" if findings else "all is well"
        click.echo(f"{shown(session.root)}: {found}")
        for finding in findings:
            click.echo(shown(str(finding)))
    return 1 if findings else 0
