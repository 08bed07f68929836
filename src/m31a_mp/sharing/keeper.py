"""Sharing without an owner: one of the processes that record merges and shares the session.

Each process has a thread that tries to get the turn, a lock on `sharing.lock`. The one that succeeds merges
and shares once a second. When its process dies, the kernel gives the lock back, and another process takes it.
It never is the owner: it takes the owner's lease for each merge, and gives it back, so that an owner may come
at any time. A process that has had no recorder of the session for a minute gives the turn up: a worker may
attach to any number of sessions in its life.

A process that ends merges and shares once more, gives the turn up, and then looks whether anything was
recorded meanwhile. A process that finds the turn taken may therefore leave its records to the other one.
"""

from __future__ import annotations

# The modules that the thread imports late need these three, whose locks each fork takes before it begins. The
# hooks of a fork run in reverse order: if one of these were imported after this module, a fork would hold its
# lock while it waits for the thread, and the thread would wait for that lock.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
import time
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue

import filelock  # noqa: F401  # whoever finds a lease taken needs it, too

from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.session.lease import Lease
from m31a_mp.session.paths import Session
from m31a_mp.sharing.sharer import Sharer
from m31a_mp.system import fork
from m31a_mp.system.flock import FileLock, is_held
from m31a_mp.system.last import at_last
from m31a_mp.system.log import reason_of, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.sharing.merging import Merging

FLUSH_SECONDS = 1.0
"""The interval of merges."""

_TRY_SECONDS = 2.0  # between attempts to get the turn
_SHARE_SECONDS = 5.0
# At the end of the process: for the last share of all sessions, and for the last merge of one, which may have
# to import what merges.
_END_SECONDS = 0.5
_LAST_MERGE_SECONDS = 2.0
_IDLE_SECONDS = 60.0  # without a recorder, until the turn is given up: the next task may come soon

_keepers: dict[Session, Keeper] = {}

# A fork in the middle of an import would leave a child in which the import never ends. The thread imports
# late what merges and shares, because most processes never get the turn. A fork waits for that, once.
_importing = threading.RLock()


class Kept:
    """Held by each recorder of a session that this process tries to share."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def share_now(self) -> None:
        """See `Keeper.share_now`."""
        self._keeper.share_now()


class _Turn:
    """The turn of this process to merge and share a session."""

    def __init__(self, lease: Lease, merging: Merging, sharer: Sharer) -> None:
        self.lease = lease
        self.sharer = sharer
        self._merging = merging

    def merge(self) -> None:
        """Merge, and have the result shared soon."""
        try:
            self._merging.merge(anew=self.sharer.is_refused)
        finally:
            self.sharer.wake()

    def end(self) -> None:
        """Give the turn up."""
        self.sharer.end()
        self.lease.release()


class Keeper:
    """Tries to share a session, from a daemon thread of this process, while recorders of the session live."""

    def __init__(self, session: Session, url: str) -> None:
        """Prepare the thread, which `start` starts."""
        self._pid = os.getpid()
        self._session = session
        self._url = url
        self._turn: _Turn | None = None
        # Finalizers and signal handlers may put into a SimpleQueue at any point.
        self._wishes: SimpleQueue[SimpleQueue[Exception | None]] = SimpleQueue()
        self._kept: weakref.ref[Kept] | None = None
        self._is_told = False
        self._is_ending = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system refuses another thread.
        """
        threading.Thread(target=self._keep, name="m31a_mp keep", daemon=True).start()

    def kept(self) -> Kept:
        """Return what the recorders hold."""
        kept = self._kept() if self._kept else None
        if kept is None:
            kept = Kept(self)
            self._kept = weakref.ref(kept)
        return kept

    def share_now(self) -> None:
        """Merge and share what was recorded so far, within 5 seconds, if it is the turn of this process.

        Raises:
            MetricsError, OSError: See `Merging.merge`.
        """
        deadline = time.monotonic() + _SHARE_SECONDS
        if os.getpid() == self._pid and self._has_merged(deadline) and (turn := self._turn):
            turn.sharer.share_now(deadline)

    def end(self, deadline: float) -> None:
        """Merge and share at the end of the process, if that is quick, and give the turn up.

        Args:
            deadline: The latest end of sharing, by `time.monotonic()`, but for the time that the merge takes.

        Raises:
            MetricsError, OSError: See `Merging.merge`.
        """
        if os.getpid() != self._pid:
            return
        self._is_ending = True
        end = time.monotonic() + _LAST_MERGE_SECONDS
        while True:
            asked = time.monotonic()
            if not self._has_merged(end) or not (turn := self._turn):
                return
            deadline += time.monotonic() - asked
            turn.sharer.share_now(deadline, has_ended=True)
            turn.lease.release()
            if time.monotonic() >= end or not _has_unmerged(self._session):
                return

    def _has_merged(self, deadline: float) -> bool:
        """Have the thread merge, if it is the turn of this process. Return whether it answered in time."""
        answer: SimpleQueue[Exception | None] = SimpleQueue()
        self._wishes.put(answer)
        try:
            error = answer.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            return False
        if error:
            raise error
        return True

    def _keep(self) -> None:
        used, wish = time.monotonic(), None
        while _keepers.get(self._session) is self:
            if wish or not self._is_ending:
                error = self._merge()
                if wish:
                    wish.put(error)
            wish = self._next_wish()
            if self._is_used():
                used = time.monotonic()
            elif time.monotonic() - used >= _IDLE_SECONDS:
                _keepers.pop(self._session, None)
                if self._is_used():  # by a recorder that came in between
                    _keepers.setdefault(self._session, self)
        if self._turn:
            self._merge()
        if wish:
            wish.put(None)
        if self._turn:
            self._turn.sharer.share_now(time.monotonic() + _SHARE_SECONDS, has_ended=True)
            self._turn.end()

    def _next_wish(self) -> SimpleQueue[Exception | None] | None:
        """Wait for a wish until the next merge is due. Return None if it came without one."""
        try:
            return self._wishes.get(timeout=FLUSH_SECONDS if self._turn else _TRY_SECONDS)
        except Empty:
            return None

    def _merge(self) -> Exception | None:
        """Merge, if it is the turn of this process. Return what went wrong."""
        try:
            if self._turn and not self._turn.lease.held:  # sharing.lock was removed
                self._turn.end()
                self._turn = None
            if self._turn is None:
                self._turn = self._take_turn()
            if self._turn:
                self._turn.merge()
        except Exception as error:
            text = "session %s is neither merged nor shared: %s"
            self._is_told = self._is_told or warn(text, self._session.id, reason_of(error))
            return error
        self._is_told = False
        return None

    def _take_turn(self) -> _Turn | None:
        """Take the turn, if no other process has it."""
        session = self._session
        session.make()
        lock = FileLock(session.sharing_lock)
        if not lock.acquire():
            return None
        try:
            return self._made_turn(lock)
        except BaseException:
            lock.release()
            raise

    def _made_turn(self, lock: FileLock) -> _Turn:
        with _importing:
            from m31a_mp.sharing.merging import Merging  # noqa: PLC0415

            with suppress(ImportError):
                import redis  # noqa: F401, PLC0415
        sharer = Sharer(self._session, self._url)
        try:
            return _Turn(Lease(lock), Merging(self._session), sharer)
        except BaseException:
            sharer.end()
            raise

    def _is_used(self) -> bool:
        return self._kept is not None and self._kept() is not None


def _has_unmerged(session: Session) -> bool:
    """Whether the session has records that are not merged, and no owner that will do it."""
    if is_held(session.owner_lock):
        return False
    with suppress(FileNotFoundError):
        if session.sealed() or os.stat(session.journal).st_size:
            return True
    for path in list_segments(session.segments):
        try:
            with SegmentFile.open(path) as file:
                if file.count_pending():
                    return True
        except (DamagedSegmentError, OSError):
            pass  # merged or damaged: nothing that another merge would take
    return False


def _end_all() -> None:
    """Merge and share at the end of the process, if that is quick."""
    deadline = time.monotonic() + _END_SECONDS
    for keeper in list(_keepers.values()):
        try:
            keeper.end(deadline)
        except Exception as error:
            warn("the end of session %s is not shared: %s", keeper._session.id, reason_of(error))  # noqa: SLF001


def keeping(session: Session, url: str) -> Kept | None:
    """Have a thread of this process try to share a session. One for each session is enough."""
    fork.settle()
    while True:
        keeper = _keepers.get(session)
        if keeper is None:
            keeper = _keepers[session] = Keeper(session, url)
            kept = keeper.kept()
            try:
                keeper.start()
            except RuntimeError as error:
                _keepers.pop(session, None)
                warn("session %s is not shared by this process: %s", session.id, error)
                return None
            at_last(_end_all)
            return kept
        kept = keeper.kept()
        if _keepers.get(session) is keeper:  # otherwise its thread ends just now
            return kept


os.register_at_fork(
    before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release
)


@fork.after_in_child("segments")
def _forget_parents() -> None:
    _keepers.clear()  # the threads are only in the parent
