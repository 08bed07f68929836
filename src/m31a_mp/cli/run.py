"""`m31a-mp run`: run a command inside a session."""

from __future__ import annotations

import click

from m31a_mp.cli.keeper import end_as
from m31a_mp.cli.naming import DEFAULT_SESSIONS, complete_file, fresh, named, session_option
from m31a_mp.cli.program import NAME
from m31a_mp.cli.wrapped import run_in_session, tell
from m31a_mp.kinds.checks import check_name
from m31a_mp.recorder import Recorder

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

_NAMED = f"m31a-mp run --session {DEFAULT_SESSIONS}/NAME -- COMMAND"


def _name(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        try:
            check_name(parameter.opts[0], value)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    return value


@click.command(
    "run",
    epilog=_EPILOG,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
@click.option(
    "--tool", metavar="NAME", callback=_name, help="Record the call as NAME; by default the command's name."
)
@click.option("--phase", metavar="PHASE", callback=_name, help="Also record the command as this phase.")
@session_option
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
    if not command_line[0]:
        raise click.UsageError("the COMMAND is empty")
    status = run_in_session(
        list(command_line),
        lambda: fresh() if directory is None else named(directory, lambda: _NAMED),
        say=_say,
        opened=_say_where if directory is None else None,
        tool=tool,
        phase=phase,
    )
    return end_as(status)


def _say(message: str) -> None:
    tell(NAME, message)


def _say_where(recorder: Recorder) -> None:
    _say(f"recording into {DEFAULT_SESSIONS}/{recorder.session_id}")
