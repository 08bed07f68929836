"""How a session is named on the command line, and how names are shown."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.session import Session
from m31a_mp.status import is_session, sessions_in

DEFAULT_SESSIONS = "sessions"
"""Where `run` makes a session when none is named, and where `ls` looks."""

USE_OTHER_RELEASE = "use the release that wrote it, or a later one"
"""What helps with a file of a newer version."""

Function = TypeVar("Function", bound=Callable[..., Any])


class TroubleError(click.ClickException):
    """Something that cannot be done, and what helps."""

    def __init__(self, message: str, hint: str, status: int = 3) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def session_argument(function: Function) -> Function:
    """The session as a positional argument: for the commands that look."""
    return click.argument("directory", metavar="[SESSION]", envvar=SESSION_VARIABLE, required=False)(function)


def session_option(function: Function) -> Function:
    """The session as an option: for the commands that record."""
    return click.option(
        "--session",
        "directory",
        metavar="DIR",
        envvar=SESSION_VARIABLE,
        help=f"The session's directory; made if it does not exist. By default ${SESSION_VARIABLE}.",
    )(function)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; the README has the form.")


def named(directory: str | None, example: str) -> Session:
    """The session that was named, whether it exists or not.

    Args:
        directory: Its directory, if one was given.
        example: How a command with one looks, up to it.
    """
    if not directory:
        raise TroubleError("no session is named", f"{example} {_some_session()}", status=2)
    sessions_dir, session_id = os.path.split(os.path.realpath(directory))
    try:
        return Session.named(session_id, sessions_dir)
    except ValueError as error:
        raise TroubleError(str(error), f"{example} {_some_session()}", status=2) from None


def existing(directory: str | None, example: str) -> Session:
    """The session that was named and exists."""
    session = named(directory, example)
    if not is_session(session):
        raise TroubleError(
            f"there is no session in {session.directory}",
            f"m31a-mp ls {session.sessions_dir}",
        )
    return session


def fresh() -> Session:
    """A session that does not exist yet, named by the time."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return Session.named(name, DEFAULT_SESSIONS)


def shown(text: str) -> str:
    """Text of others, fit for a terminal: in one line, and nothing in it that would steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shell_words(*words: str) -> str:
    """Words as a shell takes them, fit for a terminal; for commands that a hint tells."""
    return " ".join(shlex.quote(shown(word)) for word in words)


def _some_session() -> str:
    """For an example: the session that was used last, as far as one is near."""
    try:
        found = sessions_in(DEFAULT_SESSIONS)
        newest = max(found, key=lambda session: session.directory.stat().st_mtime_ns)
    except (OSError, ValueError):
        return f"{DEFAULT_SESSIONS}/NAME"
    return os.path.relpath(newest.directory)
