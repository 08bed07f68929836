"""Sharing without an owner: one of the processes that record merges and shares the session.

Each process has a thread that tries to own the session. The one that succeeds keeps a collector, which
merges and shares once a second. When its process dies, the kernel gives the lease back, and another process
takes it. A process that has had no recorder of the session for a minute gives it up: a worker may attach to
any number of sessions in its life.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress

from m31a_mp.errors import SessionOwnedError
from m31a_mp.session.lease import Lease
from m31a_mp.session.paths import Session
from m31a_mp.sharing.sharer import reason_of
from m31a_mp.system import fork
from m31a_mp.system.log import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.collector import Collector

FLUSH_SECONDS = 1.0
"""The interval of merges."""

_TRY_SECONDS = 2.0  # between attempts to own the session
_SHARE_SECONDS = 5.0
_IDLE_SECONDS = 60.0  # without a recorder, until the session is given up: the next task may come soon

_keepers: dict[Session, Keeper] = {}

# A fork in the middle of an import would leave a child in which the import never ends. The thread imports the
# collector late, because most processes never own the session. A fork waits for that, once.
_importing = threading.RLock()


class Kept:
    """Held by each recorder of a session that this process tries to own."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def share_now(self) -> None:
        """See `Keeper.share_now`."""
        self._keeper.share_now()


class Keeper:
    """Tries to own a session, from a daemon thread of this process, while recorders of the session live."""

    def __init__(self, session: Session, url: str) -> None:
        """Prepare the thread, which `start` starts."""
        self._pid = os.getpid()
        self._session = session
        self._url = url
        self._collector: Collector | None = None
        self._opening = threading.Lock()
        self._kept: weakref.ref[Kept] | None = None

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
        """Merge and share what was recorded so far, if this process owns the session; for at most 5 seconds.

        Raises:
            MetricsError, OSError: See `Collector.flush`.
        """
        if os.getpid() != self._pid:
            return
        deadline = time.monotonic() + _SHARE_SECONDS
        if self._opening.acquire(timeout=_SHARE_SECONDS):  # the thread may become the owner just now
            self._opening.release()
        if collector := self._collector:
            collector.flush()
            collector.share_now(deadline)

    def _keep(self) -> None:
        warned, used = False, time.monotonic()
        while _keepers.get(self._session) is self:
            if self._collector is None:
                try:
                    with self._opening:
                        self._collector = self._owner()
                    warned = False
                except SessionOwnedError:
                    pass  # another process was faster
                except Exception as error:
                    warned = warned or warn(
                        "session %s is neither merged nor shared: %s", self._session.id, reason_of(error)
                    )
            time.sleep(_TRY_SECONDS)
            if self._is_used():
                used = time.monotonic()
            elif time.monotonic() - used >= _IDLE_SECONDS:
                _keepers.pop(self._session, None)
                if self._is_used():  # by a recorder that came in between
                    _keepers.setdefault(self._session, self)
        if self._collector:
            self._collector.stop()

    def _is_used(self) -> bool:
        return self._kept is not None and self._kept() is not None

    def _owner(self) -> Collector | None:
        """Become the owner of the session, if it has none."""
        session = self._session
        session.make()
        lease = Lease.take_if_free(session)
        if lease is None:
            return None
        lease.release()
        with _importing:
            from m31a_mp.collector import Collector  # noqa: PLC0415

            with suppress(ImportError):
                import redis  # noqa: F401, PLC0415
        return Collector(session.id, session.sessions_dir, flush_interval=FLUSH_SECONDS, share=self._url)


def keeping(session: Session, url: str) -> Kept | None:
    """Have a thread of this process try to own a session. One for each session is enough."""
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
