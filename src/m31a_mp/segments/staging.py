"""Staging: all records of a process in one session that are not handed over yet.

A process has as many writers as it has concurrent calls. A call takes a free writer and puts it back, so that
no call waits for a lock. A signal handler, a finalizer or another thread that records in the middle of a
record takes another writer. A forked child abandons the inherited writers and makes its own.

The first records of a process go straight to the journal, each as a line. A line has no number. It is
appended once, or not at all: only a record that is certainly not in the journal goes to a segment instead.

This module imports nothing late: if a process forks while another thread is importing, the child would wait
for that import forever.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from _weakref import ref
from errno import EIO
from time import time_ns

from m31a_mp.errors import MetricsError, is_of_handler
from m31a_mp.journal.append import Journal
from m31a_mp.segments.drain import drain
from m31a_mp.segments.group_commit import GroupCommit
from m31a_mp.segments.writer import FIRST_SEGMENT_BYTES, Writer, has_room
from m31a_mp.session.paths import Session
from m31a_mp.system import files, fork
from m31a_mp.system.fork import mark
from m31a_mp.system.log import warn_of_loss

# So many records of a process go straight to the journal before it makes a segment: most processes that
# record so few end soon. A record takes 24 us that way. A segment takes 75 us (tmpfs) to 250 us (ext4), and
# the owner takes 50 to 200 us more to lock, read and delete it: together as long as 5 to 18 records.
STRAIGHT_RECORDS = 8
# Longer ones are not worth the time with the lock. A line of the journal is limited, too.
_MAX_STRAIGHT_BYTES = 4096
# This record needs a segment: while its process maps one, the lock of the file shows that the call is alive.
_NEEDS_SEGMENT = "tool_started"
# The most segments that one record spills to the journal. The limit keeps the call short.
_SPILLED_SEGMENTS = 8
# The most sessions with mapped segments in this process. Each segment takes a descriptor, and the host
# program needs descriptors too.
MAX_ACTIVE = 128
# The longest wait for locks, in all sessions together, when an ending process reports its drops.
_EXIT_SECONDS = 0.2


class Staging:
    """All records that this process stages for one session.

    Attributes:
        journal: The journal that takes the records next.
    """

    def __init__(self, session: Session) -> None:
        self.journal = Journal(session)
        self._session = session
        self._writers: list[Writer] = []
        self._free: list[Writer] = []
        self._last_time = 0
        self._straight = 0  # records that went, or tried to go, straight to the journal
        self._warned = False
        self._durable_root: tuple[int, int] | None = None
        self._group_commit = GroupCommit(session.root)

    def put(self, event: str, members: str, last: int | str = "", at: int = 0) -> None:
        """Stamp a record with the time and stage it.

        Args:
            event: The kind of the record.
            members: The other keys and values as in the line, each with a comma before it.
            last: The last value, if `members` ends with its key.
            at: The time of the record in nanoseconds since the epoch; 0: now.
        """
        if not mark[0]:  # C code forked without Python's hooks, or the hooks were interrupted
            fork.came_through()
        now = time_ns()
        if now <= self._last_time or at:
            now = at or self._next_time()
        else:
            self._last_time = now
        line = f'{{"event":"{event}","time":{now}{members}{last}}}\n'.encode()
        free = self._free
        try:
            writer = free.pop()  # pop and append are atomic: a call in between takes another writer
        except IndexError:
            if self._straight < STRAIGHT_RECORDS and event != _NEEDS_SEGMENT and self._put_straight(line):
                return
            writer = self._new_writer()
        try:
            writer.store(line)  # from here on, the record survives the death of this process
        except ValueError:
            writer.make_room_and_store(line)
        finally:
            free.append(writer)

    def _put_straight(self, line: bytes) -> bool:
        """Append a record to the journal, if its lock is free. Return whether there is nothing left to do."""
        if self._writers or len(line) > _MAX_STRAIGHT_BYTES:
            return False
        self._straight += 1
        generation, session = fork.generation, self._session
        stored: list[int] = []
        try:
            if not session.exists():
                session.make()
            if has_room(session.root, 2 * FIRST_SEGMENT_BYTES):
                self.journal.turn.take_if_free(lambda: self.journal.append_line(line, stored))
        except (OSError, MetricsError, MemoryError, ValueError) as error:
            # A segment takes the record, or says why it cannot.
            if is_of_handler(error) and generation == fork.generation:
                raise
        # If a signal handler forked meanwhile, the record counts in the parent.
        return bool(stored) or generation != fork.generation

    def _next_time(self) -> int:
        """Return the last time plus one nanosecond: a clock that was set back must not reverse the order."""
        self._last_time += 1
        return self._last_time

    def put_durably(self, event: str, members: str, last: int | str = "", at: int = 0) -> None:
        """Stage a record, and return when it is on the disk. Waits for the journal's lock.

        Waiting threads share one fsync. If the disk fails, or the lock stays taken for 5 seconds, the log
        says so, and the record is as safe as after `put`. The record of a signal handler that interrupts
        this call is as safe as after `put`, too.
        """
        self.put(event, members, last, at)
        try:
            self._group_commit.wait(self._sync)
        except (OSError, MetricsError) as error:
            if is_of_handler(error):
                raise
            if not self._warned:
                self._warned = True  # set first: a log handler may record durably, and would warn again
                self._warned = warn_of_loss(
                    "records of %s are not on the disk: %s", self._session.root, error
                )

    def _sync(self) -> None:
        self._session.make()
        self.journal.hold(self._drain_and_sync)
        self._warned = False

    def _drain_and_sync(self) -> None:
        self._append_hidden()
        self._drain()
        status = os.stat(self._session.root)
        root = status.st_dev, status.st_ino
        if root != self._durable_root:  # not synced yet, or the directory was removed and made again
            files.sync_parents(self._session.root)
        self.journal.sync()
        self._durable_root = root

    def _new_writer(self) -> Writer:
        writers = self._writers
        writer = Writer(self._session, self._spill, _report_drops_at_exit)
        writers.append(writer)
        if writers is not self._writers:  # a signal handler forked meanwhile: the writer is the parent's
            writer.abandon()
        return writer

    def _spill(self, writer: Writer) -> None:
        """Move full segments to the journal, this writer's first, if the journal's lock is free."""
        _note_active(self)
        self._spill_of([writer, *self._writers])

    def _spill_of(self, writers: list[Writer]) -> None:
        try:
            self.journal.turn.take_if_free(lambda: self._drain_some(writers))
        except (OSError, MetricsError) as error:
            if is_of_handler(error):
                raise
            # Mostly a full disk. The records are safe in their segments.

    def _drain_some(self, writers: list[Writer]) -> None:
        some: list[str] = []
        for writer in writers:
            if writer.removed:
                writer.hand_over_removed(self.journal)
            if writer.full and len(some) < _SPILLED_SEGMENTS:
                some += [name for name in writer.full[:_SPILLED_SEGMENTS] if name not in some]
        drain(self.journal, some[:_SPILLED_SEGMENTS])
        self._forget_gone()

    def _forget_gone(self) -> None:
        for writer in list(self._writers):
            writer.forget_gone()

    def hand_over(self, *, timeout: float | None = None) -> None:
        """Move the staged records of this process to the journal.

        Args:
            timeout: Seconds to wait for the journal's lock; None: the default of `Journal.hold`.

        Raises:
            JournalLockedError: Another process or thread held the lock for the whole timeout.
            OSError: The append failed.
        """
        self.hand_over_hidden(timeout=timeout)
        if any(writer.names() for writer in list(self._writers)):
            self.journal.hold(self._drain, timeout)

    def untold_drops(self) -> dict[str, int]:
        """Count the drops of this process that no file states yet, by reason."""
        told: dict[str, int] = {}
        for writer in list(self._writers):
            for reason, count in writer.untold_drops().items():
                told[reason] = told.get(reason, 0) + count
        return told

    def hand_over_hidden(self, *, timeout: float | None = None) -> None:
        """Move to the journal what no other process can find.

        These are the drop counts that no segment states, and the records in segments whose files were
        removed. If the session's directory is gone, this call makes it again.

        Args:
            timeout: Seconds to wait for the journal's lock; None: the default of `Journal.hold`.

        Raises:
            JournalLockedError, OSError: See `hand_over`.
        """
        fork.settle()
        if any(writer.hides() for writer in list(self._writers)):
            self._session.make()
            self.journal.hold(self._append_hidden, timeout)

    def _append_hidden(self) -> None:
        free = self._free
        for writer in list(free):
            if not writer.hides():
                continue
            try:
                free.remove(writer)  # a call that took it meanwhile could store or drop a record
            except ValueError:
                continue  # a call has taken it
            try:
                writer.bring_out(self.journal)
            finally:
                free.append(writer)
        for writer in list(self._writers):
            writer.hand_over_removed(self.journal)

    def _drain(self) -> None:
        left = drain(self.journal, [name for writer in list(self._writers) for name in writer.names()])
        self._forget_gone()
        for error in left.unreadable:
            raise error
        for path, reason in left.damaged:
            raise OSError(EIO, reason, path)

    def close(self, *, timeout: float | None = None) -> None:
        """Hand over, and delete the segments of this process that no call is using.

        Args:
            timeout: Seconds to wait for the journal's lock; None: the default of `Journal.hold`.

        Raises:
            JournalLockedError, OSError: See `hand_over`. The segments stay.
        """
        self.retire_idle()
        self.hand_over(timeout=timeout)

    def give_back(self) -> None:
        """Retire the segments that no call is using, and spill. Never waits, and never raises for I/O."""
        self.retire_idle()
        self._spill_of(list(self._writers))

    def retire_idle(self) -> None:
        """Retire the segments that no call is using. The next drain deletes them."""
        free, idle = self._free, []
        try:
            while free:
                idle.append(free.pop())
                idle[-1].retire()
        except IndexError:
            pass  # a call has taken the last one
        finally:
            free.extend(idle)

    def abandon(self) -> None:
        """Drop the parent's writers in a forked child, and start without any."""
        for writer in self._writers:
            writer.abandon()
        # Clear the lists last: if a signal handler raises before this, the next attempt abandons all again.
        self._writers, self._free = [], []
        self._straight = 0
        self._group_commit.renew()


# The stagings of this process: the current one of each session directory, and all that are alive. A staging
# lives while a recorder or `_active` refers to it.
_stagings: dict[str, ref[Staging]] = {}
_alive: dict[int, ref[Staging]] = {}
# The stagings that may have segments. The last one started a segment most recently.
_active: list[Staging] = []


_reporting_pid = 0  # the pid of the process that registered to report its drops at exit


def _report_drops_at_exit() -> None:
    """Register this process to report its drops at exit, if no file states them by then."""
    global _reporting_pid  # noqa: PLW0603
    if _reporting_pid == os.getpid():
        return
    _reporting_pid = os.getpid()
    atexit.register(_report_drops)
    # A process that multiprocessing started ends without running atexit functions.
    util = sys.modules.get("multiprocessing.util")
    if util and hasattr(util, "Finalize"):  # missing while another thread is importing the module
        util.Finalize(None, _report_drops, exitpriority=-100)


def _report_drops() -> None:
    deadline = time.monotonic() + _EXIT_SECONDS
    for known in list(_alive.values()):
        stage = known()
        if stage and stage.untold_drops():
            try:
                stage.hand_over_hidden(timeout=max(0.0, deadline - time.monotonic()))
            except Exception:  # noqa: S110  # the interpreter is ending: nothing can report the failure
                pass


def staging(session: Session) -> Staging:
    """Return the one staging of this process for the session. All recorders share it."""
    root = session.root
    known = _stagings.get(root)
    found = known() if known else None
    if found is None:
        found = Staging(session)
        key, by_root, alive = id(found), _stagings, _alive

        def forget(gone: ref[Staging]) -> None:
            # Use no global names: at the end of the interpreter they may be gone.
            alive.pop(key, None)
            if by_root.get(root) is gone:
                by_root.pop(root, None)

        _alive[key] = _stagings[root] = ref(found, forget)
    return found


def _note_active(stage: Staging) -> None:
    """Mark the staging as the most recent. If there are too many, retire the segments of the oldest."""
    if _active and _active[-1] is stage:
        return
    try:
        _active.remove(stage)
    except ValueError:
        pass
    _active.append(stage)
    while len(_active) > MAX_ACTIVE:
        try:
            oldest = _active.pop(0)
        except IndexError:
            return  # another thread has taken it
        oldest.give_back()


@fork.after_in_child("segments")
def _abandon_all() -> None:
    for known in list(_alive.values()):
        inherited = known()
        if inherited:
            inherited.abandon()
