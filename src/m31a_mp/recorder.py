"""What records into a session: `Recorder`, and how a process gets one."""

from __future__ import annotations

import os

from m31a_mp import timing
from m31a_mp._recording import Recording
from m31a_mp.kinds import checks
from m31a_mp.segments.staging import staging
from m31a_mp.session.paths import Session
from m31a_mp.system.log import warn
from m31a_mp.timing import Stopwatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from subprocess import CompletedProcess
    from types import TracebackType
    from typing import Any, ParamSpec, Self, TypeVar

    from m31a_mp.model import SessionMetrics
    from m31a_mp.plan import PlanOutcome

    P = ParamSpec("P")
    R = TypeVar("R")

SESSION_VARIABLE = "M31A_MP_SESSION"
"""The environment variable that names the session's directory to child processes."""

DURABILITY_VARIABLE = "M31A_MP_DURABILITY"
"""The environment variable that holds the durability of the records of child processes."""

PROCESS = "process"
DISK = "disk"


class Recorder(Recording):
    """Records into a session that another process owns. Made by `attach`, `from_env` or unpickling.

    A `record_*` method takes about a microsecond. When it has returned, its record survives the death of
    any process. It never waits for another process, and raises nothing but `TypeError` and `ValueError`
    for wrong arguments, of which nothing is recorded then. Threads, signal handlers, finalizers and forked
    children may all use the same object.

    Names and phases are strings of 1 to 4096 bytes of UTF-8; counts and durations are ints from 0 to
    2**63 - 1; a bool is not an int. NumPy's integers, bools and floats are taken for what they are.
    """

    def __init__(self, session: Session | None, durability: str = PROCESS) -> None:
        """Not for users: `session` is where to record, None records nothing."""
        if durability not in {PROCESS, DISK}:
            raise ValueError(f"durability must be {PROCESS!r} or {DISK!r}, not {durability!r}")
        self._session = session
        self._durability = durability
        self._told = False
        if session:
            self._staging = staging(session)
            self._put = self._staging.put_durably if durability == DISK else self._staging.put

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._session is not None

    @property
    def session_id(self) -> str | None:
        """The id of the session that it records into; None if it records nothing."""
        return self._session.id if self._session else None

    @property
    def directory(self) -> str | None:
        """The session's directory, absolute, whether it exists yet or not; None if it records nothing."""
        return self._session.root if self._session else None

    @classmethod
    def from_env(cls) -> Recorder:
        """The recorder for the session in this process's environment, put there by `env()` of its parent.

        Returns:
            A recorder; without a session in the environment one that records nothing, so that a tool can
            be run by itself.

        Raises:
            ValueError: What the environment names cannot be a session's directory.
            FileNotFoundError: It is relative, and there is no working directory any more.
        """
        directory = os.environ.get(SESSION_VARIABLE)
        if not directory:
            return Recorder(None)
        sessions_dir, session_id = os.path.split(os.path.abspath(directory))
        durability = os.environ.get(DURABILITY_VARIABLE) or PROCESS
        return Recorder(Session.named(session_id, sessions_dir), durability)

    def env(self) -> dict[str, str]:
        """What to add to the environment of a child process, for its `Recorder.from_env()`."""
        return {
            SESSION_VARIABLE: self._session.root if self._session else "",
            DURABILITY_VARIABLE: self._durability,
        }

    def tool_call(self, name: str) -> Stopwatch:
        """Measure a block, and record it as a call of a tool: `with recorder.tool_call("bash"):`.

        `async with` does the same. It has failed if an exception leaves the block, which goes on its way, or
        if the block says so: `with recorder.tool_call("bash") as call: call.success = False`. The error is
        the class of the exception, or what the block says, which is a failure, too:
        `call.error = "timeout"`.

        Args:
            name: The tool.
        """
        name = checks.check_name("name", name)

        return Stopwatch(
            lambda call: self.record_tool_started(name, call),
            lambda success, duration_ms, error, call: self.record_tool_call(
                name, success, duration_ms, error, call
            ),
        )

    def tool(self, name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Measure each call of a function, and record it as one of a tool: `@recorder.tool("bash")`.

        Coroutine functions too, from their first step to their last. A generator function is a `TypeError`.

        Args:
            name: The tool.
        """
        if callable(name):
            raise TypeError('tool() takes the name of the tool: @recorder.tool("NAME")')
        name = checks.check_name("name", name)
        return lambda function: timing.measuring(lambda: self.tool_call(name), function)

    def phase(self, phase: str) -> Stopwatch:
        """Record that the workflow enters a phase, and after the block its duration and outcome.

        As `tool_call`: `with recorder.phase("plan"):`, also `async with`; an exception is a failure.
        """
        phase = checks.check_name("phase", phase)
        return Stopwatch(
            lambda _: self.record_phase_transition(phase),
            lambda success, duration_ms, *_: self.record_phase_duration(phase, duration_ms, success),
        )

    def run(
        self, command: Any, *, tool: str, env: Mapping[Any, Any] | None = None, **options: Any
    ) -> CompletedProcess[Any]:
        """Run a command as `subprocess.run` does, and record it as a call of a tool.

        It has succeeded if its status is 0; else the error is `exit 1`, `SIGKILL`, `timeout`, or the class of
        an exception. The command finds the session in its environment.

        Args:
            command: The program and its arguments.
            tool: The tool's name.
            env: The environment of the command, where it is not that of this process.
            options: What else `subprocess.run` takes, such as `check`, `timeout` and `capture_output`.

        Returns:
            What `subprocess.run` returns. It also raises the same; then the call is recorded as a failure.
        """
        given = os.environ if env is None else env
        # Names may be bytes. The session's would be there twice, and which of them counts is chance.
        environment = {os.fsdecode(name): value for name, value in given.items()} | self.env()
        return timing.run(self.tool_call(tool), command, environment, options)

    def snapshot(self) -> SessionMetrics:
        """The metrics of the session now, with every record whose call returned before, in any process.

        Reads the files and changes nothing; whatever the other processes do, it does not wait for them. Only
        where the journal seems to be damaged is it looked at again under its lock, for 5 seconds at most: it
        may be an append in progress.

        Returns:
            A copy of its own, the caller's to change. Empty if nothing is recorded here; if there is no
            session at all, yet or any more, a warning in the log says so, once.

        Raises:
            DamagedMetricsError: `metrics.json` is not valid.
            OSError: A file could not be read.
        """
        if self._session is None:
            from m31a_mp.model import SessionMetrics

            return SessionMetrics("")
        from m31a_mp.inspection.snapshot import fold_everything
        from m31a_mp.model import has_records

        totals = fold_everything(self._session).totals
        for reason, count in self._staging.untold_drops().items():
            totals.dropped[reason] = totals.dropped.get(reason, 0) + count
        metrics = totals.to_metrics(self._session.id)
        if not (has_records(metrics) or self._told or self._session.is_there()):
            self._told = warn("there is no session in %s: its snapshot is empty", self._session.root)
        return metrics

    def recent_plan_outcomes(self, n: int = 0) -> list[PlanOutcome]:
        """The latest outcomes of tasks of a plan, the oldest of them first.

        Args:
            n: How many at most; 0 or less: all that are kept, which are 1,000.

        Raises:
            TypeError: `n` is no int.
            DamagedMetricsError, OSError: As `snapshot`.
        """
        if checks.as_int(n) is None:
            raise TypeError(f"n must be an int, not {checks.kind(n)}")
        outcomes = self.snapshot().plan_outcomes
        return outcomes[-n:] if n > 0 else outcomes

    def current_session_cost(self) -> float:
        """What the session cost so far; at least that, where the cost of an interaction is not known.

        Raises:
            DamagedMetricsError, OSError: As `snapshot`.
        """
        return self.snapshot().totals.cost

    def flush(self) -> None:
        """Hand what this process recorded to the journal.

        There is no need to: the owner finds it, and it is safe where it is.

        Raises:
            JournalLockedError: Another process held the journal's lock for 5 seconds.
            OSError: The journal could not be written.
        """
        if self._session is not None:
            self._staging.hand_over()

    def bring_out(self) -> None:
        """Not for users: before a process ends, hand over what no other process can find.

        That is nothing, unless somebody removed the session's directory, or records were dropped.

        Raises:
            JournalLockedError, OSError: As `flush`.
        """
        if self._session is not None:
            self._staging.hand_over_hidden()

    def stop(self) -> None:
        """Hand over what this process recorded and give back its shared memory. Never raises.

        Recording goes on to work, and makes new shared memory.
        """
        if self._session is None:
            return
        try:
            self._staging.close()
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
        # Of a collector too: whoever unpickles it is a worker in the same session.
        return Recorder, (self._session, self._durability)

    def __repr__(self) -> str:
        where = self._session.root if self._session else "disabled"
        return f"<{type(self).__name__} {where}>"


def attach(session_id: str, sessions_dir: str | os.PathLike[str], *, durability: str = PROCESS) -> Recorder:
    """Record into a session that another process owns, or will own.

    Args:
        session_id: The session's id.
        sessions_dir: The directory of the sessions, as its owner gave it.
        durability: What a record survives when its call has returned; see `Collector`.

    Returns:
        A recorder. Nothing is touched before its first record.

    Raises:
        ValueError: The id is not one path component of at most 200 bytes.
        FileNotFoundError: `sessions_dir` is relative, and there is no working directory any more.
    """
    return Recorder(Session.named(session_id, sessions_dir), durability)
