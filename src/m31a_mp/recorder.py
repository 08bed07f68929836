"""The recorder: `Recorder` records into a session; `attach` makes one."""

from __future__ import annotations

import os

from m31a_mp import timing
from m31a_mp._recording import _NAME, Recording
from m31a_mp.kinds import checks
from m31a_mp.segments.staging import staging
from m31a_mp.session.paths import Session
from m31a_mp.system.log import warn
from m31a_mp.system.turn import IMPORTS
from m31a_mp.timing import Stopwatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from subprocess import CompletedProcess
    from types import TracebackType
    from typing import Any, ParamSpec, Self, TypeVar

    from m31a_mp.inspection.snapshot import Looks
    from m31a_mp.model import SessionMetrics
    from m31a_mp.plan import PlanOutcome
    from m31a_mp.sharing.keeper import Kept

    P = ParamSpec("P")
    R = TypeVar("R")

SESSION_VARIABLE = "M31A_MP_SESSION"
"""The environment variable that names the session's directory to child processes."""

DURABILITY_VARIABLE = "M31A_MP_DURABILITY"
"""The environment variable that holds the durability of the records of child processes."""

SHARE_VARIABLE = "M31A_MP_SHARE"
"""The environment variable that names the store in which sites share their sessions."""

PROCESS = "process"
DISK = "disk"


def _do_nothing(*_: object) -> None:
    pass


class Recorder(Recording):
    """Records into a session that another process owns. Made by `attach`, `from_env` or unpickling.

    A `record_*` method takes about a microsecond. When it has returned, its record survives the death of
    any process. A method never waits for another process, and raises only `TypeError` and `ValueError` for
    wrong arguments; nothing is recorded then. Threads, signal handlers, finalizers and forked children may
    all use the same object.

    Names and phases are strings of 1 to 4096 bytes of UTF-8. Counts and durations are ints from 0 to
    2**63 - 1, and a bool is not an int. NumPy's integers, bools and floats are accepted, too.
    """

    def __init__(self, session: Session | None, durability: str = PROCESS) -> None:
        """Make a recorder for a session; None records nothing. Not for users."""
        if durability not in {PROCESS, DISK}:
            raise ValueError(f"durability must be {PROCESS!r} or {DISK!r}, not {durability!r}")
        self._session = session
        self._durability = durability
        self._share: str | None = None
        self._keeper: Kept | None = None
        self._told = False
        self._looks: Looks | None = None
        if session:
            self._staging = staging(session)
            self._put = self._staging.put_durably if durability == DISK else self._staging.put

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._session is not None

    @property
    def session_id(self) -> str | None:
        """The id of the session; None if nothing is recorded."""
        return self._session.id if self._session else None

    @property
    def directory(self) -> str | None:
        """The absolute path of the session's directory, which may not exist; None if nothing is recorded."""
        return self._session.root if self._session else None

    @classmethod
    def from_env(cls) -> Recorder:
        """Make a recorder for the session in the environment, which the parent passed with `env()`.

        Returns:
            A recorder. Without a session in the environment, it records nothing, so that a tool also runs
            on its own.

        Raises:
            ValueError: The path in the environment cannot be a session's directory.
            FileNotFoundError: The path is relative, and the working directory does not exist any more.
        """
        directory = os.environ.get(SESSION_VARIABLE)
        if not directory:
            return Recorder(None)
        sessions_dir, session_id = os.path.split(os.path.abspath(directory))
        durability = os.environ.get(DURABILITY_VARIABLE) or PROCESS
        return Recorder(Session.named(session_id, sessions_dir), durability)._sharing(None)  # noqa: SLF001

    def env(self) -> dict[str, str]:
        """Return the variables that a child process needs for `Recorder.from_env()`.

        One of them is the URL of the store that the session is shared in, with its password.
        """
        return {
            SESSION_VARIABLE: self._session.root if self._session else "",
            DURABILITY_VARIABLE: self._durability,
        } | ({SHARE_VARIABLE: self._share} if self._share else {})

    def _sharing(self, share: str | os.PathLike[str] | None) -> Self:
        """Have this process share the session while no other one owns it."""
        if share is not None or os.environ.get(SHARE_VARIABLE):
            from m31a_mp.sharing.keeper import keeping
            from m31a_mp.sharing.store import store_url

            self._share = store_url(share, os.environ.get(SHARE_VARIABLE))
            if self._session and self._share:
                self._keeper = keeping(self._session, self._share)
        return self

    def tool_call(self, name: str) -> Stopwatch:
        """Measure a block, and record it as a call of a tool: `with recorder.tool_call("bash"):`.

        `async with` does the same. The call has failed if an exception leaves the block, or if the block says
        so: `with recorder.tool_call("bash") as call: call.success = False`. Exceptions are not swallowed. The
        error is the class of the exception, or the name that the block sets, which also makes the call a
        failure: `call.error = "timeout"`.

        Args:
            name: The tool.
        """
        if type(name) is not str or name not in _NAME:  # the names of this process that were right
            name = checks.check_name("name", name)
        if self._session is None:
            return Stopwatch(name, _do_nothing, _do_nothing)
        return Stopwatch(name, self._put_tool_started, self._put_tool_call)

    def tool(self, name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Measure each call of a function, and record it as a tool call: `@recorder.tool("bash")`.

        Coroutine functions are measured from their first step to their last. Generator functions raise
        `TypeError`.

        Args:
            name: The tool.
        """
        if callable(name):
            raise TypeError('tool() takes the name of the tool: @recorder.tool("NAME")')
        name = checks.check_name("name", name)
        return lambda function: timing.measuring(lambda: self.tool_call(name), function)

    def phase(self, phase: str) -> Stopwatch:
        """Record that the workflow enters a phase, and after the block its duration and outcome.

        Use it like `tool_call`: `with recorder.phase("plan"):` or `async with`. An exception is a failure.
        """
        phase = checks.check_name("phase", phase)
        return Stopwatch(
            phase,
            lambda phase, _: self.record_phase_transition(phase),
            lambda phase, success, duration_ms, *_: self.record_phase_duration(phase, duration_ms, success),
        )

    def run(
        self, command: Any, *, tool: str, env: Mapping[Any, Any] | None = None, **options: Any
    ) -> CompletedProcess[Any]:
        """Run a command with `subprocess.run`, and record it as a call of a tool.

        The call has succeeded if the status is 0. Otherwise the error is `exit 1`, `SIGKILL`, `timeout`, or
        the class of an exception. The command finds the session in its environment.

        Args:
            command: The program and its arguments.
            tool: The tool's name.
            env: The environment of the command; None: the environment of this process.
            options: Other arguments of `subprocess.run`, for instance `check`, `timeout`, `capture_output`.

        Returns:
            The result of `subprocess.run`. Exceptions of `subprocess.run` are recorded as failures and
            raised.
        """
        given = os.environ if env is None else env
        # Names may be bytes. Without decoding, a variable could be there twice, and either could win.
        environment = {os.fsdecode(name): value for name, value in given.items()} | self.env()
        return timing.run(self.tool_call(tool), command, environment, options)

    def snapshot(self) -> SessionMetrics:
        """Return the current metrics, with every record whose call returned before, in any process.

        A snapshot reads files and changes nothing. It does not wait for other processes, with one exception:
        if the journal seems damaged, which may be a running append, it is read again under its lock. The wait
        for the lock takes at most 5 seconds.

        Returns:
            A new object, which the caller may change. It is empty if this object records nothing. If there
            is no session, yet or any more, the log has one warning.

        Raises:
            DamagedMetricsError: `metrics.json` is not valid.
            InterruptedCallError: The caller is a signal handler that interrupted the import for a first merge
                or look.
            OSError: A file could not be read.
        """
        if self._session is None:
            from m31a_mp.model import SessionMetrics

            return SessionMetrics("")
        session = self._session
        looks = self._looks or IMPORTS.take(lambda: _new_looks(session))
        self._looks = looks
        from m31a_mp.model import has_records

        metrics = looks.look(lambda fold: fold.totals.to_metrics(session.id))
        for reason, count in self._staging.untold_drops().items():
            metrics.dropped[reason] = min(metrics.dropped.get(reason, 0) + count, checks.INT64_MAX)
        if not (has_records(metrics) or self._told or self._session.is_there()):
            self._told = warn("there is no session in %s: its snapshot is empty", self._session.root)
        return metrics

    def recent_plan_outcomes(self, n: int = 0) -> list[PlanOutcome]:
        """Return the latest outcomes of tasks of a plan, oldest first.

        Args:
            n: The most outcomes to return; 0 or less: all kept ones, up to 1,000.

        Raises:
            TypeError: `n` is not an int.
            DamagedMetricsError, OSError: See `snapshot`.
        """
        if checks.as_int(n) is None:
            raise TypeError(f"n must be an int, not {checks.kind(n)}")
        outcomes = self.snapshot().plan_outcomes
        return outcomes[-n:] if n > 0 else outcomes

    def current_session_cost(self) -> float:
        """Return the cost of the session so far; a lower bound if the cost of any interaction is unknown.

        Raises:
            DamagedMetricsError, OSError: See `snapshot`.
        """
        return self.snapshot().totals.cost

    def flush(self) -> None:
        """Move the records of this process to the journal.

        This is not necessary: the records are safe in their segments, and the owner finds them.

        Raises:
            JournalLockedError: Another process held the journal's lock for 5 seconds.
            OSError: The journal could not be written.
        """
        if self._session is not None:
            self._staging.hand_over()

    def bring_out(self) -> None:
        """Move to the journal what no other process can find, before a process ends. Not for users.

        This does nothing unless the session's directory was removed, or records were dropped.

        Raises:
            JournalLockedError, OSError: See `flush`.
        """
        if self._session is not None:
            self._staging.hand_over_hidden()

    def stop(self) -> None:
        """Move the records of this process to the journal, and delete its segments. Never raises.

        Recording still works afterwards, and makes new segments.
        """
        self._stop_within(None)

    def _stop_within(self, seconds: float | None) -> None:
        """Stop, and wait so long for the journal's lock; None: as long as usual."""
        if self._session is None:
            return
        try:
            self._staging.close(timeout=seconds)
            if self._keeper:
                self._keeper.share_now()
        except Exception as error:
            warn("records of %s are not handed over to its journal: %s", self._session.root, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __reduce__(self) -> tuple[object, ...]:
        # A pickled collector becomes a recorder, too: the receiving process is a worker in the same session.
        return Recorder, (self._session, self._durability)

    def __repr__(self) -> str:
        where = self._session.root if self._session else "disabled"
        return f"<{type(self).__name__} {where}>"


def _new_looks(session: Session) -> Looks:
    from m31a_mp.kinds import json  # noqa: F401  # first: it imports orjson safely
    from m31a_mp.inspection.snapshot import Looks  # isort: skip

    return Looks(session)


def attach(
    session_id: str,
    sessions_dir: str | os.PathLike[str],
    *,
    durability: str = PROCESS,
    share: str | os.PathLike[str] | None = None,
) -> Recorder:
    """Record into a session that another process owns, or will own.

    Args:
        session_id: The session's id.
        sessions_dir: The directory of the sessions, the same as the owner's.
        durability: The failure that a record survives when its call has returned; see `Collector`.
        share: The store in which the session is shared with other machines; see `Collector`. While the
            session has no owner, one of the processes that attach like this merges and shares it once a
            second, in a daemon thread. If it dies, another one goes on. None: as `M31A_MP_SHARE` says.

    Returns:
        A recorder. Without `share`, it accesses no files before its first record.

    Raises:
        ValueError: The id is not one path component of at most 200 bytes, or `share` names no store.
        FileNotFoundError: `sessions_dir` is relative, and the working directory does not exist any more.
        ImportError: `share` names a server, and the package `redis` is not installed.
    """
    return Recorder(Session.named(session_id, sessions_dir), durability)._sharing(share)  # noqa: SLF001
