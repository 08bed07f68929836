"""The end of a program that did not `stop()` its collectors: merge their sessions, if that is quick.

A merged session is released, like by `stop()`. If the merge would take longer than a second, the session
stays as it is, not closed. Its records are safe, and the next owner merges them, like records that
finalizers and daemon threads make after this.

Python calls this when the threads of the program have ended, including its thread pools and the processes of
`concurrent.futures`. The processes of `multiprocessing` are awaited by `atexit`, too: see `after_children`.
A process ends without this if `multiprocessing` started it, by `os._exit`, or if a signal kills it.
"""

from __future__ import annotations

import atexit
import os
import time
from _weakref import ref

from m31a_mp.metrics.beginning import import_compactor
from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.segments.staging import staging
from m31a_mp.session.lease import Lease, was_owned_here
from m31a_mp.session.paths import Session
from m31a_mp.system.log import warn
from m31a_mp.system.process import after_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.collector import Collector
    from m31a_mp.metrics.beginning import Beginning

# The time for all sessions together: half of the second that the end may take, because a machine may be slow
# or busy. A session above one of the following sizes is skipped: the deadline is checked too rarely for it.
_SECONDS = 0.5
_UNMERGED_BYTES = 16 * 1024 * 1024  # mostly folded in a fifth of a second
_METRICS_BYTES = 1024 * 1024  # read and replaced in a tenth of a second
_SEGMENT_BYTES = 8 * 1024  # to open and delete a segment takes the time to fold so many bytes


class _Opened:
    """A session that this process opened and did not close."""

    def __init__(self, collector: Collector, beginning: Beginning) -> None:
        self.collector = ref(collector)  # weak: an unreferenced collector releases its lease at once
        self.beginning = beginning
        self.pid = os.getpid()


_opened: dict[Session, _Opened] = {}


def opened(session: Session, collector: Collector, beginning: Beginning) -> None:
    """Note that a collector of this process owns a session.

    Args:
        session: The session.
        collector: The owner of the session.
        beginning: The beginning of the session.
    """
    _opened[session] = _Opened(collector, beginning)


def closed(session: Session) -> None:
    """Note that a session was released."""
    _opened.pop(session, None)


def merge(session: Session, lease: Lease, beginning: Beginning, deadline: float) -> None:
    """Merge a session under its lease, and delete the segments of this process, if that is quick.

    Args:
        session: The session.
        lease: The lease of the session.
        beginning: The beginning of the session.
        deadline: The latest end, by `time.monotonic()`.

    Raises:
        TimeoutError: The merge would take too long. It is left to the next compaction.
        MetricsError, OSError: The merge failed.
    """
    _check_size(session)
    try:
        staging(session).close(timeout=_left(deadline))
    except Exception:  # noqa: S110  # the compaction drains the segments, too, and may succeed
        pass
    if beginning.lasts(lambda: lease.held):
        return
    import_compactor()
    from m31a_mp.metrics import compactor

    compactor.compact_session(session, lambda: lease.held, beginning.started, timeout=_left(deadline))


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _check_size(session: Session) -> None:
    if _size(session.metrics) > _METRICS_BYTES:
        raise TimeoutError("its metrics.json is too large to be written at the program's end")
    if _unmerged_bytes(session) > _UNMERGED_BYTES:
        raise TimeoutError("too many records are not merged yet")


def _unmerged_bytes(session: Session) -> int:
    """Estimate the bytes to merge. Stop counting above `_UNMERGED_BYTES`."""
    unmerged = sum(map(_size, [session.journal, *(path for _, path in session.sealed())]))
    for path in list_segments(session.segments):
        if unmerged > _UNMERGED_BYTES:
            break
        unmerged += _SEGMENT_BYTES
        try:
            with SegmentFile.open(path) as file:
                unmerged += len(file.pending(is_finished=False).records)
        except (DamagedSegmentError, OSError):
            pass
    return unmerged


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _merge_all() -> None:
    mine = [(session, entry) for session, entry in list(_opened.items()) if entry.pid == os.getpid()]
    try:
        if not all(entry.beginning.lasts(lambda: False) for _, entry in mine):
            import_compactor()  # before the time begins: the import says nothing about the merges
    except BaseException:  # noqa: S110  # the merge says so
        pass
    deadline = time.monotonic() + _SECONDS
    for session, entry in mine:
        try:
            collector = entry.collector()
            if collector:
                collector.end(deadline)
            else:
                _merge_dropped(session, entry.beginning, deadline)
        except BaseException as error:  # Ctrl-C, too: the program is ending anyway
            warn("session %s was not closed: %s", session.id, error)


def _merge_dropped(session: Session, beginning: Beginning, deadline: float) -> None:
    """Merge a session whose collector is gone, unless the session had another owner since."""
    if was_owned_here(session) and (lease := Lease.take_if_free(session)):
        merge(session, lease, beginning, deadline)
        lease.release()  # only after a merge: otherwise the file must say that the session was not closed


atexit.register(after_children, _merge_all)
