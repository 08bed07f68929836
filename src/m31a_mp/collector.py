"""What users hold: `Collector`, the owner of a session, and `Recorder`, everybody else in it."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from m31a_mp import compactor, durable, events
from m31a_mp.compactor import Compaction
from m31a_mp.errors import InterruptedCallError
from m31a_mp.events import Names
from m31a_mp.journal import Journal
from m31a_mp.model import INT64_MAX, SessionMetrics, Usage
from m31a_mp.session import Lease, Session
from m31a_mp.writer import staging

_log = logging.getLogger("m31a_mp")

SESSION_VARIABLE = "M31A_MP_SESSION"
"""The environment variable that names the session's directory to child processes."""

DURABILITY_VARIABLE = "M31A_MP_DURABILITY"
"""The environment variable that holds the durability of the records of child processes."""

PROCESS = "process"
DISK = "disk"

_TOOL = Names("name")
_PHASE = Names("phase")


class Recorder:
    """Records into a session that another process owns. Made by `attach`, `from_env` or unpickling.

    A `record_*` method takes about a microsecond. When it has returned, its record survives the death of
    any process. It never waits for another process, and raises nothing but `TypeError` and `ValueError`
    for wrong arguments, of which nothing is recorded then. Threads, signal handlers, finalizers and forked
    children may all use the same object.

    Names and phases are strings of 1 to 4096 bytes of UTF-8; counts and durations are ints from 0 to
    2**63 - 1; a bool is not an int.
    """

    def __init__(self, session: Session | None, durability: str = PROCESS) -> None:
        """Not for users: `session` is where to record, None records nothing."""
        if durability not in {PROCESS, DISK}:
            raise ValueError(f"durability must be {PROCESS!r} or {DISK!r}, not {durability!r}")
        self._session = session
        self._durability = durability
        if session:
            stage = staging(session)
            self._put = stage.put_durably if durability == DISK else stage.put

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._session is not None

    @classmethod
    def from_env(cls) -> Recorder:
        """The recorder for the session in this process's environment, put there by `env()` of its parent.

        Returns:
            A recorder; without a session in the environment one that records nothing, so that a tool can
            be run by itself.

        Raises:
            ValueError: What the environment names cannot be a session's directory.
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
            SESSION_VARIABLE: str(self._session.directory) if self._session else "",
            DURABILITY_VARIABLE: self._durability,
        }

    def record_tool_call(self, name: str, success: bool, duration_ms: int) -> None:
        """Record a completed tool call.

        Args:
            name: The tool.
            success: Whether it did what it should.
            duration_ms: How long it took, in milliseconds.
        """
        if self._session is None:
            return
        if type(name) is not str:
            name = events.check_name("name", name)
        if success is not True and success is not False:
            events.check_bool("success", success)
        if type(duration_ms) is not int or not 0 <= duration_ms <= INT64_MAX:
            duration_ms = events.check_int("duration_ms", duration_ms)
        outcome = "true" if success else "false"
        self._put("tool_call", f'{_TOOL[name]},"success":{outcome},"duration_ms":{duration_ms}')

    def record_llm_interaction(self, phase: str, usage: Usage | None, cost: float) -> None:
        """Record an interaction with a language model.

        Args:
            phase: The workflow phase that it belongs to.
            usage: Its tokens, taken as they are; None makes the call a no-op.
            cost: What it cost: finite and not negative, in the currency of your choice.
        """
        if self._session is None or usage is None:
            return
        phase = events.check_name("phase", phase)
        usage = events.check_usage(usage)
        cost = events.check_cost("cost", cost)
        self._put(
            "llm_interaction",
            f'{_PHASE[phase]},"prompt_tokens":{usage.prompt_tokens:d}'
            f',"completion_tokens":{usage.completion_tokens:d},"total_tokens":{usage.total_tokens:d}'
            f',"cost":{cost!r}',
        )

    def record_phase_transition(self, phase: str) -> None:
        """Record that the workflow entered a phase."""
        self._record_phase("phase_transition", phase)

    def record_phase_duration(self, phase: str, duration_ms: int, success: bool) -> None:
        """Record how long a phase took, and its outcome. The latest call wins; durations do not add up.

        Args:
            phase: The phase.
            duration_ms: How long it took, in milliseconds.
            success: Whether it succeeded.
        """
        if self._session is None:
            return
        phase = events.check_name("phase", phase)
        duration_ms = events.check_int("duration_ms", duration_ms)
        success = events.check_bool("success", success)
        outcome = "true" if success else "false"
        self._put("phase_duration", f'{_PHASE[phase]},"duration_ms":{duration_ms},"success":{outcome}')

    def record_heal_trigger(self, phase: str) -> None:
        """Record that self-healing was triggered in a phase."""
        self._record_phase("heal_trigger", phase)

    def record_bisect_trigger(self, phase: str) -> None:
        """Record that a bisection was triggered in a phase."""
        self._record_phase("bisect_trigger", phase)

    def _record_phase(self, event: str, phase: str) -> None:
        if self._session is not None:
            self._put(event, _PHASE[events.check_name("phase", phase)])

    def snapshot(self) -> SessionMetrics:
        """The metrics of the session now, with every record whose call returned before, in any process.

        Reads the files and changes nothing; whatever the other processes do, it does not wait for them.

        Returns:
            A copy of its own, the caller's to change. Empty if nothing is recorded here.

        Raises:
            DamagedMetricsError: `metrics.json` is not valid.
            OSError: A file could not be read.
        """
        if self._session is None:
            return SessionMetrics("")
        return compactor.look(self._session, time.time_ns()).totals.to_metrics(self._session.id)

    def flush(self) -> None:
        """Hand what this process recorded to the journal.

        There is no need to: the owner finds it, and it is safe where it is.

        Raises:
            JournalLockedError: Another process held the journal's lock for 5 seconds.
            OSError: The journal could not be written.
        """
        if self._session is not None:
            staging(self._session).hand_over()

    def stop(self) -> None:
        """Hand over what this process recorded and give back its shared memory. Never raises.

        Recording goes on to work, and makes new shared memory.
        """
        if self._session is None:
            return
        try:
            staging(self._session).close()
        except Exception as error:
            _log.warning("records stay staged in %s: %s", self._session.directory, error)

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
        where = str(self._session.directory) if self._session else "disabled"
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
    """
    return Recorder(Session.named(session_id, sessions_dir), durability)


class Collector(Recorder):
    """The owner of a session: records like everybody, and merges what everybody recorded.

    Only one may live per session. In a forked child the inherited object is a `Recorder`.
    """

    def __init__(
        self,
        session_id: str,
        sessions_dir: str | os.PathLike[str],
        enabled: bool = True,
        *,
        durability: str = PROCESS,
    ) -> None:
        """Open a session. One that exists is resumed, with whatever a crash left of it.

        Args:
            session_id: One path component: not empty, `.` or `..`, without separators and NUL, at most
                200 bytes of UTF-8.
            sessions_dir: The directory of all sessions; made if it does not exist.
            enabled: If false, every method is a no-op and the disk is not touched.
            durability: What a record survives when its call has returned. `"process"`: the death of every
                process, in a microsecond. `"disk"`: a power cut too, at the price of an fsync and a wait
                for the journal's lock, which threads share. Processes that get the session from this
                object or from its `env()` do the same.

        Raises:
            ValueError: The id is not of that form, or `durability` is none.
            SessionOwnedError: The session has a living owner; says which process.
            DamagedMetricsError: There is a `metrics.json` that is not valid; nothing was touched.
            OSError: The directory could not be made, read or written.
        """
        session = Session.named(session_id, sessions_dir)
        super().__init__(session if enabled else None, durability)
        self.session_id = session.id
        self._pid = os.getpid()
        self._started = time.time_ns()
        self._lease: Lease | None = None
        self._is_durable = False
        self._compacting = self._stop_wanted = False
        self._reset_turns()
        if enabled:
            session.make()
            self._lease = Lease.take(session)
            try:
                self._compact(session)
            except BaseException:
                self._lease.release()
                raise
            _collectors.add(self)

    def snapshot(self) -> SessionMetrics:
        """See `Recorder.snapshot`."""
        return super().snapshot() if self.enabled else SessionMetrics(self.session_id)

    def flush(self) -> None:
        """Merge everything recorded so far, by any process, into `metrics.json`.

        When it returns, the file contains every record whose call returned before, and survives a power
        cut. In a forked child: hand over what the child recorded. After `stop()`: merge, unless somebody
        else owns the session by now.

        Raises:
            JournalLockedError: Another process held the journal's lock for 5 seconds; says which.
            DamagedMetricsError: `metrics.json` is not valid any more.
            InterruptedCallError: Called by a signal handler that interrupted `flush()`, or a record that
                was just being handed over.
            OSError: The disk is full, or fails.

            In all cases nothing is lost, and the next flush does it.
        """
        if self._session is None:
            return
        with self._exclusive():
            unreadable = self._flush_in_turn(self._session)
        for error in unreadable:
            raise error

    def stop(self) -> None:
        """Flush, log one summary line, give back the lease. Once more is harmless; never raises.

        What is recorded afterwards is staged as a worker's would be, and the next flush, owner or
        `compact()` counts it. Called by a signal handler in the middle of another call of this object, it
        takes effect when that ends.
        """
        if self._session is None or Journal(self._session).when_released(self.stop):
            return
        try:
            with self._exclusive():
                if self._owns():
                    self._stop_owning(self._session)
                else:
                    super().stop()
        except InterruptedCallError:
            self._stop_wanted = True

    def _stop_owning(self, session: Session) -> None:
        try:
            super().stop()
            metrics = self._compact(session).metrics
            _log.info(
                "session %s: %d tool calls, %d model interactions, %d phases",
                session.id,
                sum(tool.call_count for tool in metrics.tools),
                sum(llm.interaction_count for llm in metrics.llms),
                len(metrics.phases),
            )
        except Exception as error:
            _log.warning("the last flush of session %s failed, nothing is lost: %s", session.id, error)
        finally:
            lease, self._lease = self._lease, None
            if lease:
                lease.release()

    def _flush_in_turn(self, session: Session) -> list[OSError]:
        staging(session).tell_drops()
        if self._owns():
            return self._compact(session).unreadable
        if os.getpid() == self._pid and (lease := Lease.take_if_free(session)):
            with lease:
                self._is_durable = False  # others may have owned it in between
                return self._compact(session).unreadable
        super().flush()
        return []

    def _compact(self, session: Session) -> Compaction:
        is_durable, self._is_durable = self._is_durable, False  # until this one has succeeded
        with durable.operation():
            compaction = compactor.compact_session(session, self._started, is_durable=is_durable)
        self._is_durable = True
        return compaction

    def _owns(self) -> bool:
        return self._lease is not None and self._lease.held  # not in a forked child

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Threads take turns. A signal handler cannot wait for the very call that it interrupted.
        with self._turn:
            if self._compacting:
                raise InterruptedCallError(
                    "a signal handler called flush() in the middle of flush(); call it later",
                    self._session.directory if self._session else "",
                )
            self._compacting = True
            try:
                yield
            finally:
                self._compacting = False
                if self._stop_wanted:
                    self._stop_wanted = False
                    self.stop()

    def _reset_turns(self) -> None:
        self._turn = threading.RLock()
        self._compacting = False
        self._stop_wanted = False


_collectors: weakref.WeakSet[Collector] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for collector in list(_collectors):
        collector._reset_turns()  # noqa: SLF001  # the module's own class


os.register_at_fork(after_in_child=_after_fork_in_child)
