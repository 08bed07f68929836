"""What the owner of a session holds: it records like everybody, and merges what everybody recorded."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from m31a_mp import ending
from m31a_mp.errors import SessionOwnedError
from m31a_mp.metrics import compactor
from m31a_mp.metrics.compactor import Compaction
from m31a_mp.model import SessionMetrics
from m31a_mp.recorder import PROCESS, Recorder
from m31a_mp.refresh import Refresher, check_interval
from m31a_mp.session.lease import Lease, owning, still_owned
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from m31a_mp.system.log import logger, warn
from m31a_mp.system.turn import Turn


class Collector(Recorder):
    """The owner of a session: records like everybody, and merges what everybody recorded.

    Only one may live per session. In a forked child the inherited object is a `Recorder`. A program that ends
    without `stop()` merges and gives the session up at its end, if that is quick.
    """

    def __init__(
        self,
        session_id: str,
        sessions_dir: str | os.PathLike[str],
        enabled: bool = True,
        *,
        durability: str = PROCESS,
        flush_interval: float | None = None,
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
            flush_interval: Every so many seconds, a daemon thread of this process flushes, so that
                `metrics.json` is never older. It ends with `stop()`. None: there is no such thread.

        Raises:
            ValueError: The id is not of that form, `durability` is none, or `flush_interval` is not finite
                and above 0.
            SessionOwnedError: The session has a living owner; says which process.
            DamagedMetricsError: There is a `metrics.json` that is not valid; nothing was touched.
            OSError: The directory could not be made, read or written.
        """
        session = Session.named(session_id, sessions_dir)
        super().__init__(session if enabled else None, durability)
        interval = None if flush_interval is None else check_interval("flush_interval", flush_interval)
        self._session_id = session.id
        self._pid = os.getpid()
        self._started = time.time_ns()
        self._lease: Lease | None = None
        self._refresher: Refresher | None = None
        self._is_durable = False
        self._turn = Turn("a call that merges", session.root)
        if enabled:
            session.make()
            try:
                self._compact(session)
                ending.opened(session, self, self._started)
                if interval:
                    self._refresher = Refresher(self._refresh, interval)
            except BaseException:
                if self._lease:
                    self._lease.release()
                raise

    @property
    def session_id(self) -> str:
        """The id that it was made with, also if it is disabled."""
        return self._session_id

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

            In all cases the records stay where they are, and the next flush that succeeds merges them.
        """
        if self._session is None:
            return
        session = self._session
        unreadable = self._turn.take(lambda: self._flush_in_turn(session))
        for error in unreadable:
            raise error

    def _refresh(self) -> None:
        session = self._session
        # A flush takes up again after stop(), this does not: the session may be another's by then.
        unreadable = self._turn.take(lambda: self._flush_in_turn(session) if session and self._lease else [])
        for error in unreadable:
            raise error

    def stop(self) -> None:
        """Flush, log one summary line, give back the lease. Once more is harmless; never raises.

        What is recorded afterwards is staged as a worker's would be, and the next flush, owner or
        `compact()` counts it. Called by a signal handler in the middle of another call of this object, it
        takes effect when that ends. It waits for the journal's lock as long as `flush()` does.
        """
        if self._refresher:
            self._refresher.end()
        session = self._session
        if session is None or self._turn.later(self.stop) or self._staging.journal.turn.later(self.stop):
            return
        self._turn.take(lambda: self._stop_owning(session) if self._is_owner() else Recorder.stop(self))
        if self._refresher:
            self._refresher.join()

    def _stop_owning(self, session: Session) -> None:
        try:
            # What is let go of before the compaction is drained and deleted by it: one wait for the lock.
            self._staging.retire_idle()
            self._staging.hand_over_hidden()
            metrics = self._compact(session).metrics
            if log := logger():
                log.info(
                    "session %s: %d tool calls, %d model interactions, %d phases",
                    session.id,
                    sum(tool.call_count for tool in metrics.tools),
                    sum(llm.interaction_count for llm in metrics.llms),
                    len(metrics.phases),
                )
        except Exception as error:
            warn("the last flush of session %s failed: %s", session.id, error)
        finally:
            # In this order: an exception of a signal handler in between leaves it for the next stop().
            if self._lease:
                self._lease.release()
            self._lease = None
            ending.closed(session)

    def end(self, deadline: float) -> None:
        """Not for users: at the program's end, merge and give the session up, if that is quick.

        Args:
            deadline: Until when, by `time.monotonic()`.

        Raises:
            TimeoutError, MetricsError, OSError: That did not work; this process still owns the session.
        """
        if self._session is None or not self._owns():
            return
        if self._refresher:
            self._refresher.end()
        # A daemon thread may be in the middle of a flush, and go on with it for ever.
        self._turn.take(lambda: self._end(deadline), max(0.0, deadline - time.monotonic()))

    def _end(self, deadline: float) -> None:
        if self._session and self._lease and self._owns():
            ending.merge(self._session, self._lease, self._started, deadline)
            self._lease.release()
            self._lease = None

    def _flush_in_turn(self, session: Session) -> list[OSError]:
        self._staging.hand_over_hidden()
        if self._is_owner():
            return self._compact(session).unreadable
        if os.getpid() == self._pid:
            with suppress(SessionOwnedError):
                return owning(session, lambda: self._compact_once(session), timeout=0.0).unreadable
        super().flush()
        return []

    def _compact(self, session: Session) -> Compaction:
        """Compact as the owner. Where somebody removed `owner.lock`, become it again, if nobody else has."""
        if not self._owns():
            session.make()
            lease, self._lease = self._lease, Lease.take(session)
            self._is_durable = False  # others may have owned it in between
            if lease:
                lease.release()
        is_durable, self._is_durable = self._is_durable, False  # until this one has succeeded
        compaction = files.operation(
            lambda: compactor.compact_session(session, self._owns, self._started, is_durable=is_durable)
        )
        self._is_durable = True
        return compaction

    def _compact_once(self, session: Session) -> Compaction:
        return files.operation(
            lambda: compactor.compact_session(session, lambda: still_owned(session), self._started)
        )

    def _is_owner(self) -> bool:
        """Whether this is the owner, which a forked child is not; perhaps it has to take the lease again."""
        return self._lease is not None and os.getpid() == self._pid

    def _owns(self) -> bool:
        return self._lease is not None and self._lease.held
