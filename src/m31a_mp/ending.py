"""The end of a program that did not `stop()` its collectors: what they left is merged, if that is quick.

A session that was merged is given up, as `stop()` does. Where that is not to be had within a second, the
session stays as it is, not closed: its records are safe, and its next owner takes them in, as it does with
records that finalizers and daemon threads make after this.

Python calls this when the threads of the program have ended, those of its thread pools and the processes of
its `concurrent.futures` included. The processes of `multiprocessing` are awaited in the same way as this is
called, by `atexit`: see `_at_exit`. A process that `multiprocessing` started, `os._exit` and a signal that
kills end without it.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from contextlib import suppress

from m31a_mp.metrics import compactor
from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.segments.staging import staging
from m31a_mp.session.lease import Lease, read_owner
from m31a_mp.session.paths import Session
from m31a_mp.system.log import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from m31a_mp.collector import Collector

# For all sessions together: half of the second that the end may take, for a machine may be slow or busy. A
# session with more than the following, which takes its time before the clock is looked at, is not begun.
_SECONDS = 0.5
_UNMERGED_BYTES = 16 * 1024 * 1024  # mostly folded in a fifth of a second
_METRICS_BYTES = 1024 * 1024  # read, and written anew, in a tenth
_SEGMENT_BYTES = 8 * 1024  # so many are folded in the time that a segment takes to be opened and deleted


class _Opened:
    """A session that this process opened and did not close."""

    def __init__(self, collector: Collector, started: int) -> None:
        self.collector = weakref.ref(collector)  # one that nobody refers to gives its lease back at once
        self.started = started


_opened: dict[Session, _Opened] = {}


def opened(session: Session, collector: Collector, started: int) -> None:
    """Note that a collector of this process owns a session.

    Args:
        session: The session.
        collector: Its owner.
        started: When it was opened, in ns since the epoch.
    """
    _opened[session] = _Opened(collector, started)


def closed(session: Session) -> None:
    """Note that a session was given up."""
    _opened.pop(session, None)


def merge(session: Session, lease: Lease, started: int, deadline: float) -> None:
    """Merge a session of which this process has the lease, and delete the own segments, if that is quick.

    Args:
        session: The session.
        lease: The lease.
        started: When it was opened, in ns since the epoch.
        deadline: Until when, by `time.monotonic()`.

    Raises:
        TimeoutError: It would not be quick. The next compaction does it.
        MetricsError, OSError: It cannot be merged.
    """
    _check_size(session)
    # What makes this fail may keep the compaction from nothing: it drains the segments, too.
    with suppress(Exception):
        staging(session).close(timeout=_left(deadline))
    compactor.compact_session(session, lambda: lease.held, started, timeout=_left(deadline))


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _check_size(session: Session) -> None:
    with suppress(FileNotFoundError):
        if os.stat(session.metrics).st_size > _METRICS_BYTES:
            raise TimeoutError("its metrics.json is too large to be written at the program's end")
    if _unmerged_bytes(session) > _UNMERGED_BYTES:
        raise TimeoutError("too many records are not merged yet")


def _unmerged_bytes(session: Session) -> int:
    """How much there is to merge; counted no further than it may be."""
    unmerged = 0
    for path in (session.journal, *(path for _, path in session.sealed())):
        with suppress(FileNotFoundError):
            unmerged += os.stat(path).st_size
    for path in list_segments(session.segments):
        if unmerged > _UNMERGED_BYTES:
            break
        unmerged += _SEGMENT_BYTES
        with suppress(DamagedSegmentError, OSError), SegmentFile.open(path) as file:
            unmerged += len(file.pending(is_finished=False).records)
    return unmerged


def _at_exit() -> None:
    # What multiprocessing registered with atexit earlier than this comes later, and with it the records of
    # the processes that it waits for then. Its finalizers of a negative priority come after that.
    util = sys.modules.get("multiprocessing.util")
    if util and not util.is_exiting():
        util.Finalize(None, _merge_all, exitpriority=-100)
    else:
        _merge_all()


def _merge_all() -> None:
    deadline = time.monotonic() + _SECONDS
    for session, entry in list(_opened.items()):
        try:
            collector = entry.collector()
            if collector:
                collector.end(deadline)
            else:
                _merge_dropped(session, entry.started, deadline)
        except BaseException as error:  # Ctrl-C, too: the program has ended, and so does this
            warn("session %s was not closed: %s", session.id, error)


def _merge_dropped(session: Session, started: int, deadline: float) -> None:
    """Merge a session whose collector is gone, unless somebody else owned it since."""
    if read_owner(session.owner_lock).get("pid") == os.getpid() and (lease := Lease.take_if_free(session)):
        merge(session, lease, started, deadline)
        lease.release()  # not where that failed: the file then says that it was not closed


atexit.register(_at_exit)
