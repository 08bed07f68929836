"""`m31a-mp run`: its options and help. `running` runs the command.

Change an option, then run `scripts/generate.py`: `quick` reads the options in `_options.py`.
"""

from __future__ import annotations

from functools import partial

import click

from m31a_mp.cli import running
from m31a_mp.cli.arguments import complete_file, session_option
from m31a_mp.cli.naming import DEFAULT_SESSIONS

_EPILOG = """\
\b
Examples:
  m31a-mp run --session sessions/demo -- pytest -q
  m31a-mp run --session sessions/demo --tool lint --phase verify -- \\
      ruff check .

The command has this program's streams and terminal. Signals are forwarded to
it, and the exit status is the command's: 128+N if signal N ended it, 127 if
there is no such command, 126 if it cannot be executed. The status is 125 if
this program could not start the command.

The call is recorded even if this program is killed (kill -9) before the
command ends: a second process waits with it. If that one is killed, nobody
knows how the command ends, and the call counts as interrupted.

If the session has no owner, this program owns it while the command runs, and
then merges it into metrics.json. The command runs whatever is wrong with the
session.
"""


@click.command(
    "run",
    epilog=_EPILOG,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
@click.option("--tool", metavar="NAME", help="Record the call as NAME; by default the command's name.")
@click.option("--phase", metavar="PHASE", help="Also record the command as this phase.")
@partial(session_option, otherwise=f", else a new one in ./{DEFAULT_SESSIONS}")
@click.argument(
    "command_line",
    metavar="COMMAND...",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    shell_complete=complete_file,
)
def command(tool: str | None, phase: str | None, directory: str | None, command_line: tuple[str, ...]) -> int:
    """Run a command inside a session, and record the call."""
    return running.run(list(command_line), directory=directory, tool=tool, phase=phase)
