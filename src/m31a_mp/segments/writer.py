"""Writers: where a record goes first. One store into a mapped segment; everything else is rare.

A writer is one numbered stream of records, used by one call at a time. A process has as many as it has
calls under way at once: a call takes a free one and puts it back, so there is no lock to wait for, and a
signal handler, a finalizer or another thread that records in the middle of a record simply takes the
next. A forked child drops those it inherited and starts with its own.

Nothing is imported late here: a fork while another thread is in the middle of an import would leave the child
waiting for it.
"""

from __future__ import annotations

import itertools
import os
import time
from _thread import RLock, allocate_lock
from _weakref import ref
from errno import ECANCELED, EDQUOT, EIO, ENOSPC
from time import time_ns

from m31a_mp.errors import JournalLockedError, MetricsError
from m31a_mp.journal.append import LOCK_SECONDS, Batch, Journal
from m31a_mp.segments.drain import drain
from m31a_mp.segments.format import DATA_OFFSET, Segment
from m31a_mp.session.paths import Session
from m31a_mp.system import files, fork
from m31a_mp.system.files import ForkedError
from m31a_mp.system.fork import mark
from m31a_mp.system.log import warn_of_loss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A process that records three events takes 16 KiB; a busy one soon works with 1 MiB at a time.
FIRST_SEGMENT_BYTES = 16 * 1024
MAX_SEGMENT_BYTES = 1024 * 1024
_GROWTH = 4
# The last part of a file system belongs to the host and to publishing: no segment takes any of it.
_RESERVED_PART = 20
_MAX_RESERVED_BYTES = 1024**3
# A record that fills a segment moves at most so many of them to the journal: it must not take long.
_SPILLED_SEGMENTS = 8
# So many sessions have a segment of this process at a time: each segment has a descriptor, of which the host
# needs some.
MAX_ACTIVE = 128
# An owner that flushes may take a segment in the making for stillborn, and delete it. That often in a row
# no owner comes between two system calls.
_ATTEMPTS = 50
# While there is no room, a record costs little: it is only looked for this often.
_RETRY_SECONDS = 0.05
# How often a thread that waits for the fsync of another looks whether it is done.
_TURN_SECONDS = 0.0005

_FULL = (ENOSPC, EDQUOT)

_warned: set[Session] = set()


def _no_room(_: bytes) -> int:
    raise ValueError


def _discard(_: bytes) -> int:
    return 0


class Writer:
    """One stream of records: an id, and the segments that hold what is not handed over yet.

    Only the segment that takes the records is mapped. A full one takes none any more: it is the name of a
    file, which is gone when it is drained.

    Attributes:
        full: The files of full segments, oldest first.
        removed: Segments whose file somebody removed, oldest first: only this process has their records.
    """

    def __init__(self, session: Session, spill: Callable[[Writer], None]) -> None:
        self.full: list[str] = []
        self.removed: list[Segment] = []
        self._id = _new_id()
        self._session = session
        self._spill = spill
        self._segment: Segment | None = None
        # The `store` of the segment. One attribute, so that a record that interrupts the change to a new
        # segment finds the old one or the new one.
        self.store: Callable[[bytes], int] = _no_room
        self._dropped: dict[str, int] = {}
        self._trouble: str | None = None
        self._retry_at = 0.0
        self.abandoned = False

    def make_room_and_store(self, line: bytes) -> None:
        """Store a record for which the segment has no room. Never raises for I/O."""
        if self._make_room(len(line)):
            try:
                self.store(line)
            except ValueError:
                if not self.abandoned:
                    raise

    def names(self) -> list[str]:
        """Its segments' files, oldest first."""
        segment = self._segment
        return [*self.full, segment.name] if segment else list(self.full)

    def hides(self) -> bool:
        """Whether it has anything that no other process can find."""
        segment = self._segment
        if segment is None:
            return bool(self.removed or self._dropped)
        return bool(self.removed) or not segment.is_in_place()

    def bring_out(self, journal: Journal) -> None:
        """Append what no other process can find.

        The caller holds `journal.lock`, and has the writer for itself.

        Raises:
            OSError: The journal cannot take it; then it is still here.
        """
        if self._segment and not self._segment.is_in_place():
            self.retire()
        self.hand_over_removed(journal)
        if self._dropped and self._segment is None:
            # Not under the writer's own id: it is forgotten when it has no segment.
            journal.append([Batch(_new_id(), 1, b"", self._dropped)])
            self._dropped = {}

    def hand_over_removed(self, journal: Journal) -> None:
        """Append the records in segments whose file was removed. The caller holds `journal.lock`.

        Another call may be using the writer meanwhile.

        Raises:
            OSError: The journal cannot take them.
        """
        for segment in list(self.removed):
            first, records = segment.left()
            journal.append([Batch(segment.writer, first, records, segment.dropped())])
            segment.advance(records)
            self.removed.remove(segment)
            if segment is not self._segment:  # an exception of a signal handler came before its successor
                segment.close()
        current = self._segment
        if current and not current.is_in_place():
            try:
                first, records = current.left()
            except ValueError:
                return  # the call that is using it has let go of it this moment
            journal.append([Batch(current.writer, first, records)] if records else [])
            current.advance(records)

    def forget_gone(self) -> None:
        """Forget the full segments that are drained. The caller holds `journal.lock`."""
        full = self.full
        for name in list(full):
            try:
                os.lstat(name)
            except FileNotFoundError:
                full.remove(name)
            else:
                return

    def retire(self) -> None:
        """Let go of the segment; the next record starts a new one, in a new stream."""
        segment = self._segment
        if segment is None:
            return
        new_id = _new_id()
        is_in_place = segment.is_in_place()
        self._put_behind(segment, is_in_place)
        # No call is made between these, so that no signal handler sees one without the others.
        self._segment = None
        self.store = _no_room
        self._id = new_id
        self._dropped = {}
        if is_in_place and not self.abandoned:
            segment.finish(is_followed=False)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's segments.

        A record may be under way, if a signal handler forked in the middle of it. It ends here as well as
        in the parent, where it counts; here it must neither store anything nor look for room.
        """
        self.abandoned = True
        self.store = _discard
        mapped = [*self.removed, self._segment] if self._segment else self.removed
        for segment in mapped:
            segment.close()
        self._segment, self.full, self.removed = None, [], []

    def _make_room(self, need: int) -> bool:
        """Have a segment with room for a record; False: there is none, and the record was dropped."""
        if self.abandoned:
            return False
        if self._trouble and time.monotonic() < self._retry_at:
            self._drop(self._trouble)
            return False
        try:
            files.operation(lambda: self._start_segment(need))
        except (OSError, MetricsError, ValueError) as error:
            if self.abandoned:  # by a fork in the middle of it; it counts in the parent
                return False
            if not isinstance(error, OSError | MetricsError):
                raise
            self._trouble = _reason(error)
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._drop(self._trouble, error)
            return False
        self._trouble = None
        self._spill(self)
        return not self.abandoned

    def _start_segment(self, need: int) -> None:
        old, writer, dropped = self._segment, self._id, self._dropped
        first, size, is_in_place = 1, FIRST_SEGMENT_BYTES, True
        if old:
            if old.has_room(need):  # an exception of a signal handler came before its `store` was taken
                self.store = old.store
                return
            size = min(old.size * _GROWTH, MAX_SEGMENT_BYTES)
            is_in_place = old.is_in_place()
            if is_in_place:
                first = old.next_number()
            else:
                # The records of the removed one come later, and must not seem to be known by then.
                writer, dropped = _new_id(), {}
        segment = self._create(writer, first, size, need)
        for reason, count in dropped.items():
            segment.show_dropped(reason, count)
        if old:
            self._put_behind(old, is_in_place)
        if self.abandoned:
            segment.close()
            raise ForkedError(ECANCELED, "left to the parent process")
        # No call is made between these, so that no signal handler sees one without the others.
        self._segment = segment
        self.store = segment.store
        self._id = writer
        self._dropped = dropped
        if old and is_in_place:
            old.finish(is_followed=True)

    def _put_behind(self, segment: Segment, is_in_place: bool) -> None:
        """Have a segment among those that take no more records, if it is not there yet.

        It is there already if an exception of a signal handler came before its successor.
        """
        if not is_in_place:
            if segment not in self.removed:
                self.removed.append(segment)
        elif segment.name not in self.full:
            self.full.append(segment.name)

    def _create(self, writer: str, first: int, size: int, need: int) -> Segment:
        """A segment of that size; on a full disk, of what there is still room for."""
        directory = self._session.segments_name
        least = DATA_OFFSET + need
        size = max(size, least)
        for attempt in range(_ATTEMPTS):
            try:
                self._session.make()
                if 2 * size > _available(directory):  # its records take that once more, in the journal
                    raise OSError(ENOSPC, "the last part of the file system is left to others", directory)
                return Segment.create(directory, writer, first, size)
            except (FileNotFoundError, FileExistsError):  # or a fork has left one, in the middle of this
                if attempt == _ATTEMPTS - 1:
                    raise
            except OSError as error:
                if error.errno not in _FULL or size // _GROWTH < least:
                    raise
                break
        return self._create(writer, first, size // _GROWTH, need)

    def _drop(self, reason: str, error: Exception | None = None) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        if self._segment:
            self._segment.show_dropped(reason, self._dropped[reason])
        if self._session not in _warned:
            _warned.add(self._session)  # before: a handler of the log may record, too
            why = error or reason
            if not warn_of_loss("records are being dropped in %s: %s", self._session.root, why):
                _warned.discard(self._session)


def _new_id() -> str:
    return os.urandom(8).hex()


def _available(directory: str) -> float:
    """How many bytes of the file system records may take; infinite where it does not say what it has."""
    status = os.statvfs(directory)
    if not status.f_blocks:
        return float("inf")
    reserved = min(status.f_blocks * status.f_frsize // _RESERVED_PART, _MAX_RESERVED_BYTES)
    return status.f_bavail * status.f_frsize - reserved


def _reason(error: Exception) -> str:
    return "no_space" if isinstance(error, OSError) and error.errno in _FULL else "io_error"


class Staging:
    """Everything this process stages for one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._writers: list[Writer] = []
        self._free: list[Writer] = []
        self._last_time = 0
        self._tickets = itertools.count(1)
        self._settled = 0  # every record whose ticket is not above this is on the disk, or waited in vain
        self._warned = False
        self._durable_root: tuple[int, int] | None = None
        self._reset_turns()

    def _reset_turns(self) -> None:
        self._turn = RLock()
        self._syncing = allocate_lock()  # held while a thread is at it

    def put(self, event: str, members: str, last: int | str = "") -> None:
        """Stamp a record with the time and stage it.

        Args:
            event: What kind of record it is.
            members: Its other keys and values, as they stand in the line, a comma before each.
            last: The last value, if `members` ends with its key.
        """
        if not mark[0]:  # C code forked, and Python's hooks did not run
            fork.came_through()
        now = time_ns()
        if now <= self._last_time:  # a clock that was set back must not turn the order around
            now = self._last_time + 1
        self._last_time = now
        line = f'{{"event":"{event}","time":{now}{members}{last}}}\n'.encode()
        free = self._free
        try:
            writer = free.pop()  # atomic, and so is append: whoever comes in between takes another one
        except IndexError:
            writer = self._new_writer()
        try:
            writer.store(line)  # when this has returned, the death of this process cannot take it
        except ValueError:
            writer.make_room_and_store(line)
        finally:
            free.append(writer)

    def put_durably(self, event: str, members: str, last: int | str = "") -> None:
        """As `put`, and return when the record is on the disk; waits for the journal's lock.

        Threads that wait share one fsync: the next in turn does it for all. If the disk fails, or the lock
        cannot be had within 5 seconds, the log says so; the record is as safe as after `put`. The same for a
        signal handler that interrupted this very call.
        """
        self.put(event, members, last)
        ticket = next(self._tickets)
        try:
            self._await_disk(ticket)
        except (OSError, MetricsError) as error:
            if not self._warned:
                self._warned = True  # before: a handler of the log may record, too
                self._warned = warn_of_loss(
                    "records of %s are not on the disk: %s", self._session.root, error
                )

    def _await_disk(self, ticket: int) -> None:
        while self._settled < ticket and not self._turn._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            if self._syncing.locked():
                # Not in the queue for the turn: this sync may be the one, and then there is none to wait for.
                time.sleep(_TURN_SECONDS)
                continue
            with self._turn:
                if self._settled < ticket:
                    with self._syncing:
                        self._sync()
            return

    def _sync(self) -> None:
        staged = next(self._tickets)  # every record with a lower one is staged
        journal = Journal(self._session)
        self._session.make()
        try:
            journal.hold(lambda: self._drain_and_sync(journal))
        except JournalLockedError:
            self._settled = staged  # the threads that wait with this one have waited long enough
            raise
        self._settled = staged
        self._warned = False

    def _drain_and_sync(self, journal: Journal) -> None:
        self._append_hidden(journal)
        self._drain(journal)
        status = os.stat(self._session.root)
        root = status.st_dev, status.st_ino
        if root != self._durable_root:  # never yet, or somebody removed the directory, and it was made anew
            files.sync_parents(self._session.root)
        journal.sync()
        self._durable_root = root

    def _new_writer(self) -> Writer:
        writers = self._writers
        writer = Writer(self._session, self._spill)
        writers.append(writer)
        if writers is not self._writers:  # a signal handler has forked meanwhile: it is the parent's
            writer.abandon()
        return writer

    def _spill(self, writer: Writer) -> None:
        """Move full segments to the journal, the writer's own first, if the journal's lock is free."""
        _note_active(self)
        self._spill_of([writer, *self._writers])

    def _spill_of(self, writers: list[Writer]) -> None:
        journal = Journal(self._session)
        try:
            journal.hold_if_free(lambda: self._drain_some(journal, writers))
        except (OSError, MetricsError):
            pass  # a full disk, mostly; the records are safe where they are

    def _drain_some(self, journal: Journal, writers: list[Writer]) -> None:
        some: list[str] = []
        for writer in writers:
            if writer.removed:
                writer.hand_over_removed(journal)
            if writer.full and len(some) < _SPILLED_SEGMENTS:
                some += [name for name in writer.full[:_SPILLED_SEGMENTS] if name not in some]
        drain(journal, some[:_SPILLED_SEGMENTS])
        self._forget_gone()

    def _forget_gone(self) -> None:
        for writer in list(self._writers):
            writer.forget_gone()

    def hand_over(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Move what this process has staged to the journal.

        Args:
            timeout: Seconds to wait for the journal's lock.

        Raises:
            JournalLockedError: The lock was held by somebody else all the time.
            OSError: The journal cannot take it.
        """
        self.hand_over_hidden(timeout=timeout)
        if any(writer.names() for writer in list(self._writers)):
            journal = Journal(self._session)
            journal.hold(lambda: self._drain(journal), timeout)

    def hand_over_hidden(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Move to the journal what no other process can find.

        That is what was dropped while there was no segment to say so, and the records in segments whose files
        somebody removed. The session's directory is made anew for them.

        Args:
            timeout: Seconds to wait for the journal's lock.

        Raises:
            JournalLockedError, OSError: As `hand_over`.
        """
        if not mark[0]:
            fork.came_through()
        if any(writer.hides() for writer in list(self._writers)):
            self._session.make()
            journal = Journal(self._session)
            journal.hold(lambda: self._append_hidden(journal), timeout)

    def _append_hidden(self, journal: Journal) -> None:
        free = self._free
        for writer in list(free):
            if not writer.hides():
                continue
            try:
                free.remove(writer)  # so that it takes and drops no record meanwhile
            except ValueError:
                continue  # a call has taken it
            try:
                writer.bring_out(journal)
            finally:
                free.append(writer)
        for writer in list(self._writers):
            writer.hand_over_removed(journal)

    def _drain(self, journal: Journal) -> None:
        left = drain(journal, [name for writer in list(self._writers) for name in writer.names()])
        self._forget_gone()
        for error in left.unreadable:
            raise error
        for path, reason in left.damaged:
            raise OSError(EIO, reason, os.fspath(path))

    def close(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Hand over, and delete the segments of this process that no call is using.

        Args:
            timeout: Seconds to wait for the journal's lock.

        Raises:
            JournalLockedError, OSError: As `hand_over`; then the segments stay.
        """
        self._retire_idle()
        self.hand_over(timeout=timeout)

    def give_back(self) -> None:
        """Let go of the segments that no call is using. Waits for nothing, and never raises for I/O."""
        self._retire_idle()
        self._spill_of(list(self._writers))

    def _retire_idle(self) -> None:
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
        """In a forked child: drop what the parent stages, and start anew."""
        inherited, self._writers, self._free = self._writers, [], []
        self._reset_turns()
        for writer in inherited:
            writer.abandon()


# The stagings of this process, by the directory of their session and all; they live while a recorder does, or
# among the active ones.
_stagings: dict[str, ref[Staging]] = {}
_alive: dict[int, ref[Staging]] = {}
# Those that may have segments; the last one started one last.
_active: list[Staging] = []


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


@fork.after_in_child
def _abandon_all() -> None:
    for known in list(_alive.values()):
        inherited = known()
        if inherited:
            inherited.abandon()
