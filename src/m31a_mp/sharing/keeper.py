"""Sharing without an owner: one of the processes that record merges and shares the session.

Each process has a thread that tries to own the session. The one that succeeds keeps a collector, which
merges and shares once a second. When its process dies, the kernel gives the lease back, and another process
takes it.
"""

from __future__ import annotations

import os
import threading
import time
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

_keepers: dict[Session, Keeper] = {}

# A fork in the middle of an import would leave a child in which the import never ends. The thread imports the
# collector late, because most processes never own the session. A fork waits for that, once.
_importing = threading.RLock()


class Keeper:
    """Tries to own a session, from a daemon thread of this process."""

    def __init__(self, session: Session, url: str) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system refuses another thread.
        """
        self._pid = os.getpid()
        self._session = session
        self._url = url
        self._collector: Collector | None = None
        self._opening = threading.Lock()
        threading.Thread(target=self._keep, name="m31a_mp keep", daemon=True).start()

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
        warned = False
        while self._collector is None:
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


def keeping(session: Session, url: str) -> Keeper | None:
    """Have a thread of this process try to own a session. One for each session is enough."""
    fork.settle()
    keeper = _keepers.get(session)
    if keeper is None:
        try:
            keeper = _keepers[session] = Keeper(session, url)
        except RuntimeError as error:
            warn("session %s is not shared by this process: %s", session.id, error)
    return keeper


os.register_at_fork(
    before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release
)


@fork.after_in_child("segments")
def _forget_parents() -> None:
    _keepers.clear()  # the threads are only in the parent
