"""Staging: everything a process has recorded into one session and not handed over yet.

A process has as many writers as it has calls under way at once: a call takes a free one and puts it back, so
there is no lock to wait for, and a signal handler, a finalizer or another thread that records in the middle
of a record simply takes the next. A forked child drops those it inherited and starts with its own.

Nothing is imported late here: a fork while another thread is in the middle of an import would leave the child
waiting for it.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from _weakref import ref
from errno import EIO
from time import time_ns

from m31a_mp.errors import MetricsError
from m31a_mp.journal.append import Journal
from m31a_mp.segments.drain import drain
from m31a_mp.segments.group_commit import GroupCommit
from m31a_mp.segments.writer import Writer
from m31a_mp.session.paths import Session
from m31a_mp.system import files, fork
from m31a_mp.system.fork import mark
from m31a_mp.system.log import warn_of_loss

# A record that fills a segment moves at most so many of them to the journal: it must not take long.
_SPILLED_SEGMENTS = 8
# So many sessions have a segment of this process at a time: each segment has a descriptor, of which the host
# needs some.
MAX_ACTIVE = 128
# A process that ends waits so long for locks at most, in all its sessions, to tell what it dropped.
_EXIT_SECONDS = 0.2


class Staging:
    """Everything this process stages for one session.

    Attributes:
        journal: Where it goes next.
    """

    def __init__(self, session: Session) -> None:
        self.journal = Journal(session)
        self._session = session
        self._writers: list[Writer] = []
        self._free: list[Writer] = []
        self._last_time = 0
        self._warned = False
        self._durable_root: tuple[int, int] | None = None
        self._group_commit = GroupCommit(session.root)

    def put(self, event: str, members: str, last: int | str = "", at: int = 0) -> None:
        """Stamp a record with the time and stage it.

        Args:
            event: What kind of record it is.
            members: Its other keys and values, as they stand in the line, a comma before each.
            last: The last value, if `members` ends with its key.
            at: The time of the record in nanoseconds since the epoch; 0: now.
        """
        if not mark[0]:  # C code forked, and Python's hooks did not run; or they were interrupted
            fork.came_through()
        now = time_ns()
        if now <= self._last_time or at:
            now = at or self._next_time()
        else:
            self._last_time = now
        line = f'{{"event":"{event}","time":{now}{members}{last}}}\n'.encode()
        free = self._free
        try:
            writer = free.pop()  # atomic, and so is append: a call that comes in between takes another writer
        except IndexError:
            writer = self._new_writer()
        try:
            writer.store(line)  # when this has returned, the death of this process cannot take it
        except ValueError:
            writer.make_room_and_store(line)
        finally:
            free.append(writer)

    def _next_time(self) -> int:
        """The next time after the last one: a clock that was set back must not turn the order around."""
        self._last_time += 1
        return self._last_time

    def put_durably(self, event: str, members: str, last: int | str = "", at: int = 0) -> None:
        """Stage a record, and return when it is on the disk. Waits for the journal's lock.

        Threads that wait share one fsync: the next in turn does it for all. If the disk fails, or the lock
        cannot be had within 5 seconds, the log says so; the record is as safe as after `put`. The same for a
        signal handler that interrupted this very call.
        """
        self.put(event, members, last, at)
        try:
            self._group_commit.wait(self._sync)
        except (OSError, MetricsError) as error:
            if not self._warned:
                self._warned = True  # before: a handler of the log may record, too
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
        if root != self._durable_root:  # never yet, or somebody removed the directory, and it was made anew
            files.sync_parents(self._session.root)
        self.journal.sync()
        self._durable_root = root

    def _new_writer(self) -> Writer:
        writers = self._writers
        writer = Writer(self._session, self._spill, _tell_drops_at_exit)
        writers.append(writer)
        if writers is not self._writers:  # a signal handler has forked meanwhile: it is the parent's
            writer.abandon()
        return writer

    def _spill(self, writer: Writer) -> None:
        """Move full segments to the journal, the writer's own first, if the journal's lock is free."""
        _note_active(self)
        self._spill_of([writer, *self._writers])

    def _spill_of(self, writers: list[Writer]) -> None:
        try:
            self.journal.turn.take_if_free(lambda: self._drain_some(writers))
        except (OSError, MetricsError):
            pass  # a full disk, mostly; the records are safe where they are

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
        """Move what this process has staged to the journal.

        Args:
            timeout: Seconds to wait for the journal's lock; None: as `Journal.hold` does.

        Raises:
            JournalLockedError: The lock was held by somebody else all the time.
            OSError: The journal cannot take it.
        """
        self.hand_over_hidden(timeout=timeout)
        if any(writer.names() for writer in list(self._writers)):
            self.journal.hold(self._drain, timeout)

    def untold_drops(self) -> dict[str, int]:
        """Count the drops of this process that no file tells yet, by reason."""
        told: dict[str, int] = {}
        for writer in list(self._writers):
            for reason, count in writer.untold_drops().items():
                told[reason] = told.get(reason, 0) + count
        return told

    def hand_over_hidden(self, *, timeout: float | None = None) -> None:
        """Move to the journal what no other process can find.

        That is what was dropped while there was no segment to say so, and the records in segments whose files
        somebody removed. The session's directory is made anew for them.

        Args:
            timeout: Seconds to wait for the journal's lock; None: as `Journal.hold` does.

        Raises:
            JournalLockedError, OSError: As `hand_over`.
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
                free.remove(writer)  # so that it takes and drops no record meanwhile
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
            timeout: Seconds to wait for the journal's lock; None: as `Journal.hold` does.

        Raises:
            JournalLockedError, OSError: As `hand_over`; then the segments stay.
        """
        self.retire_idle()
        self.hand_over(timeout=timeout)

    def give_back(self) -> None:
        """Let go of the segments that no call is using. Waits for nothing, and never raises for I/O."""
        self.retire_idle()
        self._spill_of(list(self._writers))

    def retire_idle(self) -> None:
        """Let go of the segments that no call is using. The next drain deletes them."""
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
        """In a forked child: drop the parent's writers, and start anew."""
        for writer in self._writers:
            writer.abandon()
        # Last: an exception of a signal handler before this leaves the writers to be abandoned again.
        self._writers, self._free = [], []
        self._group_commit.renew()


# The stagings of this process, by the directory of their session and all; they live while a recorder does, or
# among the active ones.
_stagings: dict[str, ref[Staging]] = {}
_alive: dict[int, ref[Staging]] = {}
# Those that may have segments; the last one started one last.
_active: list[Staging] = []


_told_at_exit_by = 0  # the process that tells at its end what it dropped


def _tell_drops_at_exit() -> None:
    """Have this process tell at its end what it dropped, if no file says it by then."""
    global _told_at_exit_by  # noqa: PLW0603
    if _told_at_exit_by == os.getpid():
        return
    _told_at_exit_by = os.getpid()
    atexit.register(_tell_drops)
    # A process that multiprocessing started ends without the functions of atexit.
    util = sys.modules.get("multiprocessing.util")
    if util and hasattr(util, "Finalize"):  # else it is half imported
        util.Finalize(None, _tell_drops, exitpriority=-100)


def _tell_drops() -> None:
    deadline = time.monotonic() + _EXIT_SECONDS
    for known in list(_alive.values()):
        stage = known()
        if stage and stage.untold_drops():
            try:
                stage.hand_over_hidden(timeout=max(0.0, deadline - time.monotonic()))
            except Exception:  # noqa: S110  # there is nothing to tell it with
                pass


def staging(session: Session) -> Staging:
    """The staging of this process for that session, however many recorders it has."""
    root = session.root
    known = _stagings.get(root)
    found = known() if known else None
    if found is None:
        found = Staging(session)
        key, by_root, alive = id(found), _stagings, _alive

        def forget(gone: ref[Staging]) -> None:
            # Of no global name: at the interpreter's end they may be gone.
            alive.pop(key, None)
            if by_root.get(root) is gone:
                by_root.pop(root, None)

        _alive[key] = _stagings[root] = ref(found, forget)
    return found


def _note_active(stage: Staging) -> None:
    """Let the sessions whose last segment is the oldest give theirs back, if there are too many."""
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
