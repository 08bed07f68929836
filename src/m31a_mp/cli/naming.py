"""Find the session that the command line names, and format names for hints.

`record` and `run` need this and must start fast: no click here, and what only hints need is imported late.
"""

from __future__ import annotations

import os
import time

from m31a_mp.recorder import SESSION_VARIABLE
from m31a_mp.session.paths import Session
from m31a_mp.system.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "m31a-mp"

NOT_DONE = 3
"""The exit status if a command could not do its work."""

DEFAULT_SESSIONS = "sessions"
"""The directory in which `run` makes a session if none is named. `ls` lists it by default."""

USE_OTHER_RELEASE = "use the release that wrote it, or a later one"
"""The hint for a file of a newer version."""

USE_OTHER_USER = "run this as the user whose session it is: others may not read it"
"""The hint for files that may not be read."""


class TroubleError(Exception):
    """A command cannot do its work. The hint says what helps."""

    def __init__(self, message: str, hint: str, status: int = NOT_DONE) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


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


def recordable(directory: str | None, hint: Callable[[], str]) -> Session:
    """Return the named session, to record into it. It need not exist. A directory of sessions is refused.

    Args:
        directory: The session's directory; None or empty if none was given.
        hint: Returns a hint that shows how to name a session.
    """
    session = named(directory, hint)
    try:
        is_other = session.exists() and not session.is_there() and os.listdir(session.root)
    except OSError:
        return session  # the record says what is wrong
    if is_other and (error := _of_sessions(session, _by_the_variable(directory))):
        raise error
    return session


def existing(directory: str | None, example: str) -> Session:
    """Return the named session, which must exist.

    Args:
        directory: The session's directory; None or empty if none was given.
        example: The command for a hint, up to the session.
    """
    session = named(directory, lambda: f"{example} {_some_session()}")
    try:
        if session.is_there():
            return session
    except NotADirectoryError:
        pass  # a path through a file is no session either
    except PermissionError as error:
        raise TroubleError(f"{error.filename}: {error.strerror}", USE_OTHER_USER) from None
    raise _no_session(session, _by_the_variable(directory), example)


def existing_or_latest(directory: str | None, example: str) -> Session:
    """Return the named session, which must exist; without a name, the last used session in `./sessions`."""
    latest = None if directory else _last_used()
    if directory or latest:
        return latest or existing(directory, example)
    message = f"no session is named, and there is none in ./{DEFAULT_SESSIONS}"
    if os.path.isdir(DEFAULT_SESSIONS) and not os.access(DEFAULT_SESSIONS, os.R_OK | os.X_OK):
        message = f"no session is named, and ./{DEFAULT_SESSIONS} may not be read"
    if is_session_at(os.curdir):
        hint = f"{example} ."
    elif sessions_at(os.curdir):
        hint = f"{NAME} ls ."
    else:
        hint = f"this makes one: {NAME} run -- COMMAND"
    raise TroubleError(message, hint, status=2)


def sessions_elsewhere(sessions_dir: str, example: str) -> str:
    """Return a hint for a directory of sessions that is not there: where there are some, or what makes one.

    Args:
        sessions_dir: The directory.
        example: The command for the hint, up to a directory of sessions.
    """
    if is_session_at(os.curdir):
        return f"{NAME} show ."
    for place in (os.curdir, DEFAULT_SESSIONS):
        if sessions_at(place):
            return f"{example} {place}"
    is_usual = os.path.realpath(sessions_dir) == os.path.realpath(DEFAULT_SESSIONS)
    option = "" if is_usual else f"--session {path_word(os.path.join(sessions_dir, 'NAME'))} "
    return f"this makes a session there: {NAME} run {option}-- COMMAND"


def sessions_below(directory: str) -> str | None:
    """Return the command that lists the `sessions` in a directory; None if there are none."""
    below = os.path.join(directory, DEFAULT_SESSIONS)
    return f"{NAME} ls {path_word(below)}" if sessions_at(below) else None


def shared_at(directory: str) -> str | None:
    """Return the command that looks into a directory that is a store, or a session in one; otherwise None."""
    from m31a_mp.errors import StoreError
    from m31a_mp.sharing.directory import DirectoryStore

    store, session_id = os.path.split(os.path.realpath(directory))
    try:
        if DirectoryStore(directory).sessions():
            return f"{NAME} ls --from {path_word(directory)}"
        if DirectoryStore(store).headers(session_id):
            return f"{NAME} show {shell_words(session_id)} --from {path_word(store)}"
    except (StoreError, ValueError):  # ValueError: the name is not a valid session id
        pass
    return None


def is_session_at(directory: str) -> bool:
    """Whether a directory is a session."""
    try:
        sessions_dir, session_id = os.path.split(os.path.realpath(directory))
        return _is_session(Session.named(session_id, sessions_dir))
    except (OSError, ValueError):
        return False


def fresh() -> Session:
    """Return a new session, named by the time and the pid."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return Session.named(name, DEFAULT_SESSIONS)


def shell_words(*words: str) -> str:
    """Quote words for a shell, and escape them for a terminal; for commands in hints."""
    import shlex

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
    return _of_sessions(session, origin) or TroubleError(
        f"there is no session in {session.root}{origin.rstrip(',')}",
        _meant(session, session.sessions_dir, example),
    )


def _of_sessions(session: Session, origin: str) -> TroubleError | None:
    """Return an error for a directory of sessions that is taken for one; None if it has none."""
    inside = sessions_at(session.root)
    if not inside:
        return None
    holds = "it holds a session" if len(inside) == 1 else f"it holds {len(inside):,} sessions"
    return TroubleError(
        f"{session.root}{origin} is no session; {holds}", f"m31a-mp ls {path_word(session.root)}"
    )


def _meant(session: Session, parent: str, example: str) -> str:
    """Return a hint with the intended command, or with a command that shows more."""
    if is_session_at(parent):
        return f"{example} {path_word(parent)}"
    if other := sessions_below(session.root) or shared_at(session.root):
        return other
    beside, usual = sessions_at(parent), sessions_at(DEFAULT_SESSIONS)
    near = {other.id: other.root for other in [*beside, *usual]}
    import difflib

    if found := difflib.get_close_matches(session.id, near, n=1):
        return f"did you mean: {example} {path_word(near[found[0]])}"
    if beside or usual:
        return f"m31a-mp ls {path_word(parent if beside else os.path.abspath(DEFAULT_SESSIONS))}"
    return f"this makes one: m31a-mp run --session {path_word(session.root)} -- COMMAND"


def sessions_at(directory: str) -> list[Session]:
    """List the sessions in a directory; none if it cannot be listed. What may not be entered is left out."""
    from m31a_mp.inspection.status import sessions_in

    try:
        return [session for session in sessions_in(directory) if _is_session(session)]
    except (OSError, ValueError):  # ValueError: the path has a NUL
        return []


def _some_session() -> str:
    """Return a session for an example: the last used one in `./sessions`, or a placeholder."""
    session = _last_used()
    return path_word(session.root) if session else f"{DEFAULT_SESSIONS}/NAME"


def _last_used() -> Session | None:
    from m31a_mp.inspection.status import last_used

    return last_used(sessions_at(DEFAULT_SESSIONS))


def _is_session(session: Session) -> bool:
    from m31a_mp.inspection.status import is_session

    return is_session(session)
