"""`m31a-mp run`: a command inside a session."""

from __future__ import annotations

import os
from contextlib import suppress

import click

from m31a_mp.checks import check_name
from m31a_mp.child import SIGNAL_BASE, Held, run_recorded
from m31a_mp.cli.naming import TroubleError, complete_file, fresh, named, session_option
from m31a_mp.cli.program import tell
from m31a_mp.collector import Collector
from m31a_mp.compactor import compact
from m31a_mp.errors import MetricsError, SessionOwnedError
from m31a_mp.recorder import DURABILITY_VARIABLE, PROCESS, Recorder, attach
from m31a_mp.session import Session
from m31a_mp.status import owner_of

_NAME_BYTES = 255  # what a file system allows a command

_EPILOG = """\
\b
Examples:
  m31a-mp run --session sessions/demo -- pytest -q
  m31a-mp run --session sessions/demo --tool lint --phase verify -- ruff check .

The command has this program's streams and terminal. Signals are handed on to
it, and the exit status is the command's: 128+N if signal N ended it, 127 if
there is no such command, 126 if it cannot be executed; 125 is this program's
own, when the command was not started.

The call is recorded even if this program is killed (kill -9) before the
command ends: a second process waits with it. Only who kills both loses it.

A session that nobody owns is owned for as long as the command runs, and merged
into metrics.json then. Whatever is wrong with a session, the command runs.
"""


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
@click.option("--phase", metavar="PHASE", callback=_name, help="The command is this phase: record that, too.")
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
    held = Held()
    session = named(directory, "m31a-mp run --session") if directory else fresh()
    if not directory:
        tell(f"recording into {os.path.relpath(session.directory)}")
    recorder = _open(session)
    try:
        if signal_number := held.ended_by():
            return SIGNAL_BASE + signal_number
        return run_recorded(
            recorder,
            session,
            list(command_line),
            tool=tool or _tool(command_line[0]),
            phase=phase,
            held=held,
            complain=tell,
        )
    finally:
        _close(recorder, session)


def _open(session: Session) -> Recorder:
    """Become the owner of the session, or else attach to it."""
    durability = os.environ.get(DURABILITY_VARIABLE) or PROCESS
    try:
        # Known to be owned, it need not be asked for: that would wait for an owner who is about to stop.
        if not owner_of(session):
            return Collector(session.id, session.sessions_dir, durability=durability)
    except SessionOwnedError:
        pass
    except (MetricsError, OSError) as error:
        tell(f"this call waits for the session's next owner to count it: {error}")
    except ValueError as error:
        raise TroubleError(str(error), f"unset {DURABILITY_VARIABLE}") from None
    return attach(session.id, session.sessions_dir, durability=durability)


def _close(recorder: Recorder, session: Session) -> None:
    """Merge, unless somebody else is there to do it."""
    recorder.stop()
    if not isinstance(recorder, Collector) and session.exists() and not owner_of(session):
        with suppress(MetricsError, OSError):  # told when it was opened; it waits for the next owner
            compact(session.sessions_dir, session.id)


def _tool(command: str) -> str:
    return os.fsencode(os.path.basename(command) or command)[:_NAME_BYTES].decode(errors="replace")
