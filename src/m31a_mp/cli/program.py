"""The program around the commands: the list of commands, the report of errors, the exit status."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from contextlib import suppress

import click

from m31a_mp import __version__
from m31a_mp.cli import CANNOT_START, SIGNAL_BASE
from m31a_mp.cli.arguments import GuessingGroup
from m31a_mp.cli.naming import NAME, NOT_DONE, USE_OTHER_RELEASE, TroubleError, shell_words
from m31a_mp.cli.quick import COMPLETION
from m31a_mp.cli.streams import prepare
from m31a_mp.errors import (
    DamagedMetricsError,
    GatheredSessionError,
    JournalLockedError,
    MetricsError,
    SessionOwnedError,
    UnsupportedVersionError,
)
from m31a_mp.system.log import listening, shown

# The modules that write to stdout, besides click and rich.
_WRITERS = {__name__, "m31a_mp.cli.tables", "m31a_mp.cli.watch", "m31a_mp.cli.screen", "m31a_mp.cli.report"}

_COMMANDS = {
    "run": "Run a command inside a session, and record the call.",
    "record": "Record one tool call, model use, phase, or anything else.",
    "show": "Show the metrics of sessions.",
    "watch": "Show a session live.",
    "report": "Write a page about a session, or about two side by side.",
    "ls": "List the sessions in a directory.",
    "compact": "Merge the records of a session that its owner did not close.",
    "verify": "Check all files of a session.",
    "share": "Share a session with other machines.",
    "gather": "Gather the sites of a session into a directory.",
    "export": "Give the metrics of a session to Prometheus or OpenTelemetry.",
    "serve": "Serve the metrics of the running sessions to Prometheus.",
}

_EPILOG = """\
\b
Example, in two terminals:
  m31a-mp run --session sessions/demo -- pytest -q
  m31a-mp watch sessions/demo

\b
Exit status:
  0      done, and all is well
  1      done, but input is damaged: set aside (compact),
         found (verify), or unreadable (ls, compact)
  2      wrong usage (run: 125)
  3      not done: there is no such session, its owner lives,
         a file is damaged or of a newer version
  125    run could not start the command; or a package of an extra is missing
  126    run: the command cannot be executed
  127    run: there is no such command
  128+N  signal N ended it; run: signal N ended the command
  Any other status of run is the command's own.

A session is named by its directory, or by the environment variable
M31A_MP_SESSION, which run sets for its command. Without either, show, watch,
report, verify, share and export take the session in ./sessions that was used
last.
"""


class _Commands(GuessingGroup):
    """The commands. Each is imported when it is needed, because `run` must start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # the signature of click
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"m31a_mp.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101  # for mypy
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(NAME, cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=NAME)
def program() -> None:
    """Metrics of a session, recorded by many processes at once: tool calls, model use, phases."""


def start(arguments: list[str]) -> int:
    """Run a command, and report an error on stderr in one line and a hint.

    Args:
        arguments: The arguments after the program's name.

    Returns:
        The exit status.
    """
    prepare()
    gc.enable()  # some commands run for days
    try:
        if instruction := os.environ.get(COMPLETION):  # a shell asks for completions
            from click.shell_completion import shell_complete

            return shell_complete(program, {}, NAME, COMPLETION, instruction)
        with listening(lambda message, arguments: tell(message % arguments)):
            status = program.main(arguments or ["--help"], prog_name=NAME, standalone_mode=False)
        if sys.stdout:
            sys.stdout.flush()
    except BaseException as error:
        return failed(error, arguments)
    return int(status or 0)


def failed(error: BaseException, arguments: list[str]) -> int:
    """Report an error on stderr in one line and a hint.

    Args:
        error: The error that ended a command.
        arguments: The arguments after the program's name.

    Returns:
        The exit status.
    """
    is_run = arguments[:1] == ["run"]  # other statuses of run are those of the command
    if isinstance(error, KeyboardInterrupt):
        with suppress(OSError):
            click.echo(err=True)  # a new line after ^C, as click does before it converts this to Abort
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return SIGNAL_BASE + getattr(error.__cause__, "signal_number", signal.SIGINT)
    if isinstance(error, (BrokenPipeError, SystemExit)):  # click and rich convert a broken pipe to SystemExit
        forget_output()
        return SIGNAL_BASE + signal.SIGPIPE
    if isinstance(error, TroubleError):
        status = error.status
        _tell(str(error), error.hint)
    elif isinstance(error, click.ClickException):
        status = error.exit_code
        _tell(error.format_message(), _usage_hint(error))
    elif isinstance(error, Exception):
        status = NOT_DONE
        what = "the output cannot be written: " if _is_of_output(error) else ""
        forget_output()
        _tell(what + _message(error), _hint(error))
    else:
        raise error
    return CANNOT_START if is_run else status


def tell(message: str) -> None:
    """Write a message to stderr, in one line. A broken stderr is ignored."""
    with suppress(OSError):
        click.echo(f"{NAME}: {shown(message)}", err=True)


def forget_output() -> None:
    """Discard buffered output that cannot be written: the interpreter would try again at its end."""
    if sys.stdout is sys.__stdout__ and sys.stdout:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _is_of_output(error: Exception) -> bool:
    """Whether writing the output failed: the error names no file, and comes from a module that writes."""
    if not isinstance(error, OSError) or error.filename:
        return False
    import traceback

    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals["__name__"]
    return module.partition(".")[0] in {"click", "rich"} or module in _WRITERS


def _tell(message: str, hint: str) -> None:
    tell(message)
    if hint:
        with suppress(OSError):
            click.echo(f"hint: {shown(hint)}", err=True)


def _usage_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return f"{ctx.command_path if ctx else NAME} --help"


def _message(error: Exception) -> str:
    if isinstance(error, SessionOwnedError):
        return str(error).partition("; ")[0]  # the rest is advice for programmers
    if isinstance(error, UnsupportedVersionError):
        return f"{error.path} {error.reason}"
    if isinstance(error, DamagedMetricsError):
        return f"{error.path} cannot be used: {error.reason}"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, MetricsError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (MetricsError, ValueError)):
        return str(error)
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {os.path.basename(place.filename)}:{place.lineno}: {error}"


def _hint(error: Exception) -> str:
    directory = shell_words(os.path.dirname(error.path)) if isinstance(error, MetricsError) else ""
    hints: dict[type[Exception], str] = {
        SessionOwnedError: f"stop that process first; to look meanwhile: {NAME} show {directory}",
        UnsupportedVersionError: USE_OTHER_RELEASE,
        DamagedMetricsError: "restore it from a copy, or set it aside and start again from zero: "
        f"{NAME} compact --rebuild {directory}",
        JournalLockedError: "try again, or stop the process that holds it",
        GatheredSessionError: f"to bring it up to date: {NAME} gather --help",
        FileNotFoundError: f"{NAME} ls DIRECTORY lists the sessions there",
        PermissionError: "run this as a user who has that permission",
        OSError: "try again when that is fixed",
        MetricsError: f"{NAME} --help",
        ValueError: f"{NAME} --help",
    }
    for kind, hint in hints.items():
        if isinstance(error, kind):
            return hint
    return "this is a bug in this program; please report it with this line"
