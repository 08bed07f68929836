"""Find the session that the command line names, and format names for hints."""

from __future__ import annotations

import difflib
import os
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from m31a_mp.cli.outcome import NOT_DONE
from m31a_mp.inspection.status import is_session, last_used, sessions_in
from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.session.paths import Session
from m31a_mp.system.log import shown

DEFAULT_SESSIONS = "sessions"
"""The directory in which `run` makes a session if none is named. `ls` lists it by default."""

USE_OTHER_RELEASE = "use the release that wrote it, or a later one"
"""The hint for a file of a newer version."""

Function = TypeVar("Function", bound=Callable[..., Any])


class TroubleError(click.ClickException):
    """A command cannot do its work. The hint says what helps."""

    def __init__(self, message: str, hint: str, status: int = NOT_DONE) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


class GuessingGroup(click.Group):
    """A group of commands that suggests the nearest command for a mistyped name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if ctx.resilient_parsing or args[0] in known or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], known, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise click.UsageError(f"there is no command {args[0]!r}{guess}", ctx)


def complete_session(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Complete a session from its beginning. Without a match, the shell completes files.

    Both at once are not possible: the shell's completion of files replaces the given items.
    """
    parent, start = os.path.split(incomplete)
    places = [parent] + ([os.path.join(parent, DEFAULT_SESSIONS)] if _is_default(start) else [])
    names = [
        os.path.join(place, session.id)
        for place in places
        for session in _sessions(os.path.expanduser(place) or os.curdir)
        if session.id.isprintable()  # the shell reads one item per line
    ]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or complete_file(_, __, incomplete)


def complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Let the shell complete files."""
    return [CompletionItem(incomplete, type="file")]


def complete_directory(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Let the shell complete directories."""
    return [CompletionItem(incomplete, type="dir")]


def session_argument(function: Function) -> Function:
    """Add the session as a positional argument, for commands that inspect."""
    return click.argument(
        "directory",
        metavar="[SESSION]",
        envvar=SESSION_VARIABLE,
        required=False,
        shell_complete=complete_session,
    )(function)


def sessions_argument(function: Function) -> Function:
    """Add any number of sessions as positional arguments."""
    return click.argument(
        "directories",
        metavar="[SESSION]...",
        nargs=-1,
        required=False,
        shell_complete=complete_session,
    )(function)


def session_option(function: Function) -> Function:
    """Add the session as an option, for commands that record."""
    return click.option(
        "--session",
        "directory",
        metavar="DIR",
        envvar=SESSION_VARIABLE,
        shell_complete=complete_session,
        help=f"The session's directory; made if it does not exist. By default ${SESSION_VARIABLE}.",
    )(function)


def interval_option(text: str) -> Callable[[Function], Function]:
    """Return the option for seconds between two looks or merges."""
    return click.option(
        "--interval",
        type=click.FloatRange(0.05, 86400),
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        help=text,
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def named(directory: str | None, hint: Callable[[], str]) -> Session:
    """Return the named session, whether it exists or not.

    Args:
        directory: The session's directory; None or empty if none was given.
        hint: Returns a hint that shows how to name a session.
    """
    if not directory:
        raise TroubleError("no session is named", hint(), status=2)
    sessions_dir, session_id = os.path.split(os.path.realpath(directory))
    try:
        return Session.named(session_id, sessions_dir)
    except ValueError as error:
        reason = str(error).replace("session_id", "its name", 1)
        message = f"{directory}{_by_the_variable(directory)} cannot be a session: {reason}"
        raise TroubleError(message, hint(), status=2) from None


def existing(directory: str | None, example: str) -> Session:
    """Return the named session, which must exist.

    Args:
        directory: The session's directory; None or empty if none was given.
        example: The command for a hint, up to the session.
    """
    session = named(directory, lambda: f"{example} {_some_session()}")
    with suppress(NotADirectoryError):  # a path through a file is no session either
        if is_session(session):
            return session
    raise _no_session(session, _by_the_variable(directory), example)


def existing_or_latest(directory: str | None, example: str) -> Session:
    """Return the named session, which must exist; without a name, the last used session in `./sessions`."""
    latest = None if directory else last_used(_sessions(DEFAULT_SESSIONS))
    if not directory and not latest:
        message = f"no session is named, and there is none in ./{DEFAULT_SESSIONS}"
        raise TroubleError(message, "this makes one: m31a-mp run -- COMMAND", status=2)
    return latest or existing(directory, example)


def is_session_at(directory: str) -> bool:
    """Whether a directory is a session."""
    try:
        sessions_dir, session_id = os.path.split(os.path.realpath(directory))
        return is_session(Session.named(session_id, sessions_dir))
    except (OSError, ValueError):
        return False


def fresh() -> Session:
    """Return a new session, named by the time and the pid."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return Session.named(name, DEFAULT_SESSIONS)


def shell_words(*words: str) -> str:
    """Quote words for a shell, and escape them for a terminal; for commands in hints."""
    return " ".join(shlex.quote(shown(word)) for word in words)


def path_word(path: str) -> str:
    """Return a path for a command in a hint, relative if it is below the working directory."""
    near = os.path.relpath(path, os.path.realpath(os.curdir))
    return shell_words(path if near.startswith(os.pardir) else near)


def _by_the_variable(directory: str | None) -> str:
    """Return a text about the environment variable, if the name comes from it; otherwise empty."""
    return f", which {SESSION_VARIABLE} names," if directory == os.environ.get(SESSION_VARIABLE) else ""


def _no_session(session: Session, origin: str, example: str) -> TroubleError:
    """Return an error for a directory that is no session, with a guess at the intended one."""
    directory = session.root
    if inside := _sessions(directory):
        holds = "it holds a session" if len(inside) == 1 else f"it holds {len(inside):,} sessions"
        return TroubleError(
            f"{directory}{origin} is no session; {holds}", f"m31a-mp ls {path_word(directory)}"
        )
    parent = session.sessions_dir
    return TroubleError(
        f"there is no session in {directory}{origin.rstrip(',')}", _meant(session, parent, example)
    )


def _meant(session: Session, parent: str, example: str) -> str:
    """Return a hint with the intended command, or with a command that shows more."""
    if is_session_at(parent):
        return f"{example} {path_word(parent)}"
    beside, usual = _sessions(parent), _sessions(DEFAULT_SESSIONS)
    near = {other.id: other.root for other in [*beside, *usual]}
    if found := difflib.get_close_matches(session.id, near, n=1):
        return f"did you mean: {example} {path_word(near[found[0]])}"
    if beside or usual:
        return f"m31a-mp ls {path_word(parent if beside else os.path.abspath(DEFAULT_SESSIONS))}"
    return f"this makes one: m31a-mp run --session {path_word(session.root)} -- COMMAND"


def _sessions(directory: str) -> list[Session]:
    """List the sessions in a directory; none if it cannot be listed."""
    try:
        return sessions_in(directory)
    except (OSError, ValueError):  # ValueError: the path has a NUL
        return []


def _is_default(start: str) -> bool:
    return DEFAULT_SESSIONS.startswith(start)


def _some_session() -> str:
    """Return a session for an example: the last used one in `./sessions`, or a placeholder."""
    session = last_used(_sessions(DEFAULT_SESSIONS))
    return path_word(session.root) if session else f"{DEFAULT_SESSIONS}/NAME"
