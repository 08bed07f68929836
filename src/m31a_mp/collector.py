"""The collector: the recorder of a session's owner, which also merges the records of all processes."""

from __future__ import annotations

import os
import time

from m31a_mp import ending
from m31a_mp.errors import SessionOwnedError
from m31a_mp.metrics.beginning import Beginning, import_compactor
from m31a_mp.recorder import PROCESS, SHARE_VARIABLE, Recorder
from m31a_mp.session.lease import Lease, owning, still_owned
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from m31a_mp.system.log import NOT_FLUSHED, logger, warn, warn_of_loss
from m31a_mp.system.turn import IMPORTS, Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.exports.sender import Sender
    from m31a_mp.metrics.compactor import Merged
    from m31a_mp.metrics.file import Published
    from m31a_mp.model import SessionMetrics
    from m31a_mp.refresh import Refresher
    from m31a_mp.sharing.sharer import Sharer

# Functions import what merging needs when there is something to merge: that takes nearly five times as long
# as starting Python, and `model` alone as long as Python. What few owners need is imported late, too.
_SHARE_SECONDS = 5.0  # the longest wait of stop() for the store


class Collector(Recorder):
    """The owner of a session. A collector records like a `Recorder`, and merges the records of all processes.

    Only one may live per session. In a forked child, the inherited object acts as a `Recorder`. A program
    that ends without `stop()` merges and releases the session at its end, if that is quick.
    """

    def __init__(  # noqa: PLR0913  # most of them by name
        self,
        session_id: str,
        sessions_dir: str | os.PathLike[str],
        enabled: bool = True,
        *,
        durability: str = PROCESS,
        flush_interval: float | None = None,
        share: str | os.PathLike[str] | None = None,
        otlp: bool = False,
    ) -> None:
        """Open a session. An existing session is resumed, including records that a crash left behind.

        Args:
            session_id: One path component: not empty, `.` or `..`, without separators and NUL, at most
                200 bytes of UTF-8.
            sessions_dir: The directory of all sessions; made if it does not exist.
            enabled: If false, every method is a no-op and the disk is not touched.
            durability: The failure that a record survives when its call has returned. `"process"`: the death
                of every process; a call takes a microsecond. `"disk"`: a power cut, too; a call takes an
                fsync and waits for the journal's lock, and threads share both. Processes that get the
                session from this object or from its `env()` use the same durability.
            flush_interval: Seconds between flushes by a daemon thread of this process, which limit the age
                of `metrics.json`. The thread ends with `stop()`. None: no thread.
            share: The store in which this machine shares the session, so that `gather` can add up all of
                them: the URL of a Redis or Valkey server (`redis://`, `rediss://`, `unix://`, `valkey://`),
                `file:///DIRECTORY`, or the path of a directory. A daemon thread shares each new
                `metrics.json`. No call waits for it except `stop()`, for at most 5 seconds. None: as the
                environment variable `M31A_MP_SHARE` says; without it, nothing is shared.
            otlp: Whether a daemon thread of this process sends the metrics to OpenTelemetry after each flush.
                The variables OTEL_EXPORTER_OTLP_* say where and how. A receiver that is slow or gone costs
                one warning, and in `stop()` at most a second. Needs the extra `otlp`.

        Raises:
            ImportError: `otlp` is true, or `share` names a server, and the extra is not installed.
            ValueError: The id, `durability` or `share` is not valid, or `flush_interval` is not finite and
                above 0.
            SessionOwnedError: The session has a living owner; the error names the process.
            DamagedMetricsError: The existing `metrics.json` is not valid. Nothing was changed.
            OSError: The directory could not be made, read or written.
        """
        session = Session.named(session_id, sessions_dir)
        super().__init__(session if enabled else None, durability)
        interval = None
        if flush_interval is not None:
            from m31a_mp.refresh import check_interval

            interval = check_interval("flush_interval", flush_interval)
        self._session_id = session.id
        self._pid = os.getpid()
        self._lease: Lease | None = None
        self._refresher: Refresher | None = None
        self._sender: Sender | None = None
        self._published: Published | None = None
        self._turn = Turn("a call that merges", session.root)
        self._sharer: Sharer | None = None
        if share is not None or os.environ.get(SHARE_VARIABLE):
            from m31a_mp.sharing.store import store_url

            self._share = store_url(share, os.environ.get(SHARE_VARIABLE))
        make_sender = _sender_type() if enabled and otlp else None
        self._beginning = Beginning(session, time.time_ns())
        if interval or self._share or make_sender:
            # Merge at once, and so import what merging needs before any thread of this object does: a child
            # that is forked while another thread imports would wait for that import forever.
            self._beginning.end()
        if enabled:
            session.make()
            try:
                self._open(session)
                self._start_sharing(session, is_asked=share is not None)
                self._sender = make_sender(session.root) if make_sender else None
                ending.opened(session, self, self._beginning)
                if interval:
                    from m31a_mp.refresh import Refresher

                    self._refresher = Refresher(self._refresh, interval)
            except BaseException:
                if self._lease:
                    self._lease.release()
                raise

    def _open(self, session: Session) -> None:
        """Begin a new session, or merge what an existing one has."""
        self._compact(session)

    def _start_sharing(self, session: Session, *, is_asked: bool) -> None:
        if not self._share:
            return
        from m31a_mp.sharing.sharer import Sharer

        try:
            self._sharer = Sharer(session, self._share)
        except Exception as error:
            if is_asked:
                raise
            warn("session %s is not shared, as M31A_MP_SHARE asks: %s", session.id, error)

    @property
    def session_id(self) -> str:
        """The id of the session, also of a disabled collector."""
        return self._session_id

    def snapshot(self) -> SessionMetrics:
        """See `Recorder.snapshot`."""
        if self.enabled:
            return super().snapshot()
        from m31a_mp.model import SessionMetrics

        return SessionMetrics(self.session_id)

    def flush(self) -> None:
        """Merge all records so far, of any process, into `metrics.json`.

        On return, the file contains every record whose call returned before, and survives a power cut. In a
        forked child, flush hands over the records of the child. After `stop()`, it merges unless another
        owner has the session.

        Raises:
            JournalLockedError: Another process held the journal's lock for 5 seconds; the error names it.
            DamagedMetricsError: `metrics.json` is not valid any more.
            InterruptedCallError: The caller is a signal handler that interrupted `flush()`, the import for a
                first merge or look, or a record during its hand-over.
            OSError: The disk is full, or fails.

            After any of these errors, the records stay where they are, and the next flush merges them.
        """
        if self._session is None:
            return
        session = self._session
        unreadable = self._turn.take(lambda: self._flush_in_turn(session))
        for error in unreadable:
            raise error

    def _refresh(self) -> None:
        session = self._session
        # Do not merge after stop(), unlike flush(): the session may have another owner by then.
        unreadable = self._turn.take(lambda: self._flush_in_turn(session) if session and self._lease else [])
        for error in unreadable:
            raise error

    def stop(self) -> None:
        """Flush, log one summary line, release the lease. A second call is harmless. Never raises.

        Later records are staged like those of a worker, and the next flush, owner or `compact()` counts them.
        If a signal handler calls this during another call of this object, stop takes effect when the other
        call ends. Stop waits for the journal's lock as long as `flush()` does. With `share`, it then
        shares once more, for at most 5 seconds. If that fails, a warning says how to share the session later.
        """
        if self._refresher:
            self._refresher.end()
        session = self._session
        if session is None:
            return
        if any(turn.later(self.stop) for turn in (self._turn, self._staging.journal.turn, IMPORTS)):
            return
        self._turn.take(lambda: self._stop_owning(session) if self._is_owner() else Recorder.stop(self))
        self._share_last(session)
        if self._refresher:
            self._refresher.join()
        if self._sender:
            self._sender.end()

    def share_now(self, deadline: float) -> str:
        """Share the latest `metrics.json`, and wait for it. Not for users.

        Args:
            deadline: The latest end, by `time.monotonic()`.

        Returns:
            The reason why it is not shared; empty if it is.
        """
        return self._sharer.share_now(deadline) if self._sharer else ""

    def _share_last(self, session: Session) -> None:
        """Share the last `metrics.json`. The lease is given back already: a store holds up no other owner."""
        sharer, self._sharer = self._sharer, None
        if sharer is None or os.getpid() != self._pid:
            return
        deadline = time.monotonic() + _SHARE_SECONDS
        reason = sharer.share_now(deadline, has_ended=True)
        if sharer.is_refused:
            try:  # the number was used before: publish once more, with another one
                owning(session, lambda: self._compact_once(session), timeout=0.0)
            except Exception:  # noqa: S110  # told with what follows
                pass
            reason = sharer.share_now(deadline, has_ended=True)
        sharer.end()
        if reason:
            warn_of_loss(
                "the end of session %s is not shared: %s. To share it: m31a-mp share --once --to %s %s",
                session.root,
                reason,
                sharer.url,
                session.root,
            )

    def _stop_owning(self, session: Session) -> None:
        try:
            # Retire segments first: the compaction then drains and deletes them, with one wait for the lock.
            self._staging.retire_idle()
            self._staging.hand_over_hidden()
            merged = self._compact(session)
            if log := logger():
                log.info(
                    "session %s: %d tool calls, %d model interactions, %d phases",
                    session.id,
                    *(_sums(merged.published.totals.to_metrics(session.id)) if merged else (0, 0, 0)),
                )
        except Exception as error:
            warn(NOT_FLUSHED, session.id, error)
        finally:
            # Clear `_lease` last: if a signal handler raises in between, the next stop() repeats the rest.
            if self._lease:
                self._lease.release()
            self._lease = None
            ending.closed(session)

    def end(self, deadline: float) -> None:
        """Merge and release the session at the program's end, if that is quick. Not for users.

        Args:
            deadline: The latest end, by `time.monotonic()`.

        Raises:
            TimeoutError, MetricsError, OSError: The merge failed. This process still owns the session.
        """
        if self._session is None or not self._owns():
            return
        if self._refresher:
            self._refresher.end()
        # Limit the wait: a daemon thread may be in a flush that never ends.
        self._turn.take(lambda: self._end(deadline), max(0.0, deadline - time.monotonic()))

    def _end(self, deadline: float) -> None:
        if self._session and self._lease and self._owns():
            ending.merge(self._session, self._lease, self._beginning, deadline)
            self._lease.release()
            self._lease = None
            if self._sharer:
                self._sharer.share_now(deadline, has_ended=True)

    def _flush_in_turn(self, session: Session) -> list[OSError]:
        self._staging.hand_over_hidden()
        if self._is_owner():
            merged = self._compact(session)
            return merged.unreadable if merged else []
        if os.getpid() == self._pid:
            try:
                return owning(session, lambda: self._compact_once(session), timeout=0.0).unreadable
            except SessionOwnedError:
                pass
        super().flush()
        return []

    def _compact(self, session: Session) -> Merged | None:
        """Compact as the owner. If `owner.lock` was removed, take the lease again, unless it is taken.

        Returns:
            The result; None if there was nothing to merge since this object opened a new session.
        """
        if self._begin(session):
            return None
        import_compactor()
        from m31a_mp.metrics import compactor
        from m31a_mp.metrics.file import begun

        # Forget the totals until this compaction has succeeded: a failed one may have changed them.
        known, self._published = self._published or begun(self._beginning), None
        if self._sharer and self._sharer.is_refused:
            known = None  # publish in any case: the state needs a number that was not used
        merged = files.operation(
            lambda: compactor.compact_session(session, self._owns, self._beginning.started, known=known)
        )
        self._published = merged.published
        if self._sharer:
            self._sharer.wake()
        # Without news, do not copy all entries.
        if self._sender and not (merged.published is known and self._sender.put_again()):
            self._sender.put(merged.published.totals.to_metrics(session.id))
        return merged

    def _begin(self, session: Session) -> bool:
        """Own the session. Return whether it is at its beginning: nothing is to be merged yet."""
        if not self._owns():
            session.make()
            lease, self._lease = self._lease, Lease.take(session)
            self._published = None  # another owner may have written the file in between
            if lease:
                lease.release()
                self._beginning.end()
        return files.operation(lambda: self._beginning.lasts(self._owns))

    def _compact_once(self, session: Session) -> Merged:
        import_compactor()
        from m31a_mp.metrics import compactor

        started = self._beginning.started
        return files.operation(
            lambda: compactor.compact_session(session, lambda: still_owned(session), started)
        )

    def _is_owner(self) -> bool:
        """Whether this process is the owner, perhaps with a lease to be taken again. False in a child."""
        return self._lease is not None and os.getpid() == self._pid

    def _owns(self) -> bool:
        return self._lease is not None and self._lease.held


class LateCollector(Collector):
    """The owner for `m31a-mp run`. The command waits for the start, and so merging waits for its end.

    A session that is shared is merged at the start all the same: other machines wait for its state.
    """

    def _open(self, session: Session) -> None:
        if self._share:
            super()._open(session)
        else:
            self._begin(session)


def _sums(metrics: SessionMetrics) -> tuple[int, int, int]:
    """Return the numbers of tool calls, model interactions and phases."""
    calls = sum(tool.call_count for tool in metrics.tools)
    return calls, sum(llm.interaction_count for llm in metrics.llms), len(metrics.phases)


def _sender_type() -> type[Sender]:
    from m31a_mp.exports.sender import Sender  # needs an extra

    return Sender
