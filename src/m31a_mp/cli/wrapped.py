"""Run a command inside a session. The command runs, and keeps its status, whatever is wrong with the session.

    find the session  ->  own it, or attach  ->  run the command (keeper.py)  ->  record  ->  merge

To import what merging needs takes five times as long as starting Python. The command runs meanwhile.

Each step except the command may fail. The result is reported once, when it is known: whether the call is
recorded, whether it is merged, and why not.
"""

from __future__ import annotations

import mmap
import os
import sys

from m31a_mp.cli import SIGNAL_BASE
from m31a_mp.cli.keeper import BlockedSignals, owns, run_recorded
from m31a_mp.errors import DamagedMetricsError, SessionOwnedError, UnsupportedVersionError
from m31a_mp.recorder import DISK, DURABILITY_VARIABLE, PROCESS, Recorder, attach
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import is_held
from m31a_mp.system.log import DROPPED, NOT_FLUSHED, NOT_SHARED, listening, reason_of, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_BYTES = 255  # the limit of file systems for the name of a command


def run_in_session(  # noqa: PLR0913  # most of them by name
    command: list[str],
    find: Callable[[], Session],
    *,
    say: Callable[[str], None],
    opened: Callable[[Recorder], None] | None = None,
    tool: str | None = None,
    phase: str | None = None,
) -> int:
    """Run a command, record the call in a session, and merge the session if it has no other owner.

    Args:
        command: The command and its arguments.
        find: Returns the session. If it raises, the call is not recorded.
        say: Called with a message about each problem. It must not raise.
        opened: Called before the command runs, if the session has no problem by then.
        tool: The name of the recorded call; None: the command's name.
        phase: The phase that the command carries out; None without one.

    Returns:
        The exit status in the convention of shells; `INTERRUPTED` if SIGINT ended the command: the caller
        must then call `end_as`.

    Raises:
        OSError: The system refuses another process. Nothing was run.
    """
    held = BlockedSignals()
    heard = _Heard()
    with listening(heard):
        outcome = _Outcome(heard, say, has_phase=phase is not None)
        recorder = _open(find, outcome)
        place = _place(recorder)
        if opened and not outcome.trouble:
            opened(recorder)
        if signal_number := held.ended_by():
            outcome.say_nothing()
            status = SIGNAL_BASE + signal_number
        else:
            name = tool or _name_of(command[0])
            status = run_recorded(
                recorder,
                command,
                tool=name,
                phase=phase,
                held=held,
                complain=say,
                recorded=lambda error: outcome.recorded(recorder, error),
                meanwhile=_import_for_the_merge if owns(recorder) else lambda: None,
            )
        try:
            _close(recorder, outcome)
        except SessionOwnedError:
            pass  # the new owner merges the session
        except Exception as error:
            outcome.trouble = _why(error)
        outcome.closed(is_there=place is not None and place == _place(recorder))
    return status


def tell(program: str, message: str) -> None:
    """Write a message to stderr, in one line, if possible.

    `sys.stderr` is not used: it would retry a failed write when the interpreter ends, and change the status.
    """
    if sys.stderr is None:
        return  # stderr is closed: another file may have its number
    try:
        os.write(2, f"{program}: {shown(message)}\n".encode(sys.stderr.encoding, errors="backslashreplace"))
    except OSError:
        pass


_UNMERGED = "this call is recorded, but not merged into metrics.json"


class _Heard:
    """Collects the warnings of the library until the result of the call is known.

    Attributes:
        dropped: The reason of a dropped record; None without one.
        unmerged: The reason why the merge at the end failed; None if it did not.
        others: The other warnings.
    """

    def __init__(self) -> None:
        self.dropped: str | None = None
        self.unmerged: str | None = None
        self.others: list[str] = []

    def __call__(self, message: str, arguments: tuple[object, ...]) -> None:
        if message == DROPPED:
            self.dropped = reason_of(arguments[-1])
        elif message == NOT_FLUSHED:
            self.unmerged = _why(arguments[-1])
        elif message != NOT_SHARED:  # the last attempt succeeds, or another warning says how to share
            self.others.append(message % arguments)


class _Outcome:
    """The outcome of the call, reported once: by the process that waits for the command, or that merges.

    Attributes:
        trouble: The reason why the session cannot be owned and merged; None without one.
    """

    def __init__(self, heard: _Heard, say: Callable[[str], None], *, has_phase: bool) -> None:
        self.trouble: str | None = None
        self._lost = "not all of this call is recorded" if has_phase else "this call is not recorded"
        self._heard = heard
        self._say = say
        # Shared by the two processes: whether something was told, and whether the call is recorded.
        self._told = mmap.mmap(-1, 2)

    def say(self, message: str) -> None:
        """Report a message that does not depend on the outcome."""
        self._say(message)

    def say_nothing(self) -> None:
        """Suppress the report: no call was made."""
        self._told[0] = 1

    def recorded(self, recorder: Recorder, error: Exception | None) -> None:
        """Report the result of the records, and `error`, the first exception of one."""
        heard = self._heard
        self._told[1] = recorder.enabled and not error and heard.dropped is None
        if not recorder.enabled:
            self._tell(f"this call is not recorded: {self.trouble}")
        elif error or heard.dropped is not None:
            self._tell(f"{self._lost}: {_why(error) if error else heard.dropped}")
        elif heard.others:
            self._tell(heard.others[0])
        elif self.trouble:
            self._tell(f"{_UNMERGED}: {self.trouble}")

    def closed(self, *, is_there: bool) -> None:
        """Report the result of the merge, unless something was reported before.

        Args:
            is_there: Whether the session's directory is still the one that the call was recorded into.
        """
        if self._told[0]:
            return
        self.trouble = self._heard.unmerged or self.trouble
        if self.trouble:
            is_known = is_there and self._told[1]
            told = _UNMERGED if is_known else "the session is not merged into metrics.json"
            self._tell(f"{told}: {self.trouble}")
        elif self._heard.others:
            self._tell(self._heard.others[0])

    def _tell(self, message: str) -> None:
        self._told[0] = 1
        self._say(message)


def _open(find: Callable[[], Session], outcome: _Outcome) -> Recorder:
    """Become the owner of the session, or attach to it. Without a session, record nothing."""
    durability = os.environ.get(DURABILITY_VARIABLE) or PROCESS
    if durability not in {PROCESS, DISK}:
        known = f"neither {PROCESS} nor {DISK}"
        outcome.say(f"{DURABILITY_VARIABLE} is {known}, but {durability!r}; using {PROCESS}")
        durability = PROCESS
    try:
        session = find()
    except Exception as error:
        outcome.trouble = _why(error) if _has_working_directory() else "there is no working directory"
        return Recorder(None)
    try:
        # Do not try to take the lease of a session with an owner: a collector would wait for the lease.
        if not is_held(session.owner_lock):
            from m31a_mp.collector import LateCollector  # only an owner needs this

            return LateCollector(session.id, session.sessions_dir, durability=durability)
    except SessionOwnedError:
        pass
    except Exception as error:
        outcome.trouble = _why(error)
    return attach(session.id, os.path.dirname(session.root), durability=durability)


def _close(recorder: Recorder, outcome: _Outcome) -> None:
    """Merge the session, unless it has another owner, or could not be opened before."""
    recorder.stop()
    if owns(recorder) or outcome.trouble or not recorder.directory:
        return
    sessions_dir, session_id = os.path.split(recorder.directory)
    session = Session.named(session_id, sessions_dir)
    if session.exists() and not is_held(session.owner_lock):
        from m31a_mp.metrics.compactor import compact

        compact(sessions_dir, session_id)


def _place(recorder: Recorder) -> int | None:
    """Return the inode of the session's directory; None if there is none."""
    try:
        return os.lstat(recorder.directory).st_ino if recorder.directory else None
    except OSError:
        return None


def _import_for_the_merge() -> None:
    try:
        from m31a_mp.metrics.beginning import import_compactor

        import_compactor()
    except Exception:  # noqa: S110  # the merge says so, if it is so then, too
        pass


def _why(error: object) -> str:
    if isinstance(error, UnsupportedVersionError):
        return f"{error.path} {error.reason}"
    if isinstance(error, DamagedMetricsError):
        return f"{error.path} cannot be used: {error.reason}"
    is_told = str(error) and not isinstance(error, AttributeError | LookupError | NameError | TypeError)
    return reason_of(error) if is_told else repr(error)


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _name_of(command: str) -> str:
    name = os.path.basename(command) or command
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="replace")
