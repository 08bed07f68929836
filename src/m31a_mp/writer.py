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
from _thread import RLock, get_ident
from errno import ECANCELED, EDQUOT, EIO, ENOSPC
from time import time_ns

from m31a_mp import durable
from m31a_mp.drain import drain
from m31a_mp.durable import ForkedError
from m31a_mp.errors import JournalLockedError, MetricsError
from m31a_mp.journal import LOCK_SECONDS, Batch, Journal
from m31a_mp.log import warn_of_loss
from m31a_mp.segment import DATA_OFFSET, Segment
from m31a_mp.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A process that records three events takes 16 KiB; a busy one soon works with 1 MiB at a time.
FIRST_SEGMENT_BYTES = 16 * 1024
MAX_SEGMENT_BYTES = 1024 * 1024
_GROWTH = 4
# How much one writer stages while nobody can take it, the journal's lock being held or the disk full.
BACKLOG_BYTES = 64 * 1024 * 1024
# With so much of it, a writer that finds the journal's lock taken lets others have the processor and tries
# again: where more processes record at full speed than there are processors, whoever holds it is mostly
# waiting for one. At most so long for each segment: the holder may be stopped, and this is no wait for it.
_INSISTENT_BYTES = BACKLOG_BYTES // 8
_INSISTENT_SECONDS = 0.02
# An owner that flushes may take a segment in the making for stillborn, and delete it. That often in a row
# no owner comes between two system calls.
_ATTEMPTS = 50
# While there is no room, a record costs little: it is only looked for this often.
_RETRY_SECONDS = 0.05
# How long a record may wait for another thread of its own process that is handing records over.
_OWN_THREADS_SECONDS = 1.0
# How often a thread that waits for the fsync of another looks whether it is done.
_TURN_SECONDS = 0.0005

_FULL = (ENOSPC, EDQUOT)

_warned: set[Session] = set()


def _no_room(_: bytes) -> int:
    raise ValueError


def _discard(_: bytes) -> int:
    return 0


class Writer:
    """One stream of records: an id, and the segments that hold what is not handed over yet."""

    def __init__(self, session: Session, staged: Callable[[], list[str]]) -> None:
        self.id = os.urandom(8).hex()
        self._staged = staged
        self.segments: list[Segment] = []  # oldest first; the last one takes the records
        self._session = session
        # The `store` of the last segment. One attribute, so that a record that interrupts the change to a
        # new segment finds the old one or the new one.
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
        return [segment.name for segment in self.segments]

    def untold_drops(self) -> dict[str, int]:
        """What it dropped, by reason, while it has no segment that could tell the owner."""
        return {} if self.segments else self._dropped

    def told_drops(self) -> None:
        """What it dropped so far is told."""
        self._dropped = {}

    def close(self) -> None:
        """Let go of the segments; the next record starts a new one."""
        self.store = _no_room
        for segment in self.segments:
            segment.close()
        self.segments = []

    def abandon(self) -> None:
        """In a forked child: let go of the parent's segments.

        A record may be under way, if a signal handler forked in the middle of it. It ends here as well as
        in the parent, where it counts; here it must neither store anything nor look for room.
        """
        self.abandoned = True
        self.close()
        self.store = _discard

    def _make_room(self, need: int) -> bool:
        """Have a segment with room for a record; False: there is none, and the record was dropped."""
        if self.abandoned:
            return False
        if self._trouble and time.monotonic() < self._retry_at:
            self._drop(self._trouble)
            return False
        try:
            with durable.operation():
                if self.abandoned:
                    return False
                self._spill()
                self._start_segment(need)
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
        return True

    def _spill(self) -> None:
        """Move what this process has staged to the journal, if its lock is free.

        All of it, for this thread may be the only one of many that finds the lock free.
        """
        if not self.segments or self._drain_if_free() or self._backlog() < _INSISTENT_BYTES:
            return
        journal = Journal(self._session)
        end = time.monotonic() + _INSISTENT_SECONDS
        while time.monotonic() < end and not journal.threads():
            os.sched_yield()
            if self._drain_if_free():
                return

    def _drain_if_free(self) -> bool:
        """Whether the journal's lock was free."""
        journal = Journal(self._session)
        try:
            with journal.locked_if_free() as locked:
                if locked:
                    drain(journal, self._staged())
                return locked
        except ForkedError:
            raise
        except OSError:
            return True  # a full disk, mostly; the records are safe where they are

    def _backlog(self) -> int:
        return sum(segment.size for segment in self.segments if not segment.is_drained())

    def _wait_for_own_threads(self) -> None:
        """Let a thread of this process finish that is draining: it needs the interpreter that we occupy."""
        if self._backlog() < BACKLOG_BYTES // 2:
            return
        journal = Journal(self._session)
        deadline = time.monotonic() + _OWN_THREADS_SECONDS
        while (
            self._backlog() >= BACKLOG_BYTES // 2
            and journal.threads() - {get_ident()}
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)
            self._drain_if_free()

    def _start_segment(self, need: int) -> None:
        first, size = 1, FIRST_SEGMENT_BYTES
        if self.segments:
            full = self.segments[-1]
            first = full.next_number()
            size = min(full.size * _GROWTH, MAX_SEGMENT_BYTES)
        self._wait_for_own_threads()
        if self._backlog() >= BACKLOG_BYTES:
            self._drain_if_free()  # whoever held the lock may have given it back this moment
        if self._backlog() >= BACKLOG_BYTES:
            raise BlockingIOError(f"{BACKLOG_BYTES} bytes are staged and the journal takes none of them")
        done = [segment for segment in self.segments if segment.is_drained()]
        kept = [segment for segment in self.segments if segment not in done]
        self._session.make()
        # From here on the old segment may be taken for one that is finished, and be deleted: whatever
        # interrupts this, nothing more is stored in it.
        self.store = _no_room
        segment = self._create(first, size, need)
        for reason, dropped in self._dropped.items():
            segment.show_dropped(reason, dropped)
        self.segments = [*kept, segment]
        if self.abandoned:
            segment.close()
            raise ForkedError(ECANCELED, "left to the parent process")
        self.store = segment.store
        for old in done:
            old.close()
            if old.name != segment.name:  # an interrupt may have come before anything was stored in it
                old.delete()

    def _create(self, first: int, size: int, need: int) -> Segment:
        """A segment of that size; on a full disk, whatever there is still room for."""
        directory = self._session.segments_name
        size = max(size, DATA_OFFSET + need)
        for attempt in range(_ATTEMPTS):
            try:
                return Segment.create(directory, self.id, first, size)
            except (FileNotFoundError, FileExistsError):  # or a fork has left one, in the middle of this
                if attempt == _ATTEMPTS - 1:
                    raise
            except OSError as error:
                if error.errno not in _FULL or size // _GROWTH < DATA_OFFSET + need:
                    raise
                break
        return self._create(first, size // _GROWTH, need)

    def _drop(self, reason: str, error: Exception | None = None) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        if self.segments:
            self.segments[-1].show_dropped(reason, self._dropped[reason])
        if self._session not in _warned:
            _warned.add(self._session)  # before: a handler of the log may record, too
            why = error or reason
            if not warn_of_loss("records are being dropped in %s: %s", self._session.root, why):
                _warned.discard(self._session)


def _reason(error: Exception) -> str:
    if isinstance(error, BlockingIOError):
        return "backlog"
    if isinstance(error, OSError) and error.errno in _FULL:
        return "no_space"
    return "io_error"


def _segments_of(writers: list[Writer]) -> list[str]:
    """Their files, each writer's oldest first; the list may grow meanwhile."""
    return [name for writer in list(writers) for name in writer.names()]


class Staging:
    """Everything this process stages for one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._writers: list[Writer] = []
        self._free: list[Writer] = []
        self._last_time = 0
        self._tickets = itertools.count(1)
        self._settled = 0  # every record whose ticket is not above this is on the disk, or waited in vain
        self._syncing = 0  # the thread that is at it
        self._warned = False
        self._are_parents_durable = False
        self._reset_turns()

    def _reset_turns(self) -> None:
        self._syncing = 0
        self._turn = RLock()

    def put(self, event: str, members: str, last: int | str = "") -> None:
        """Stamp a record with the time and stage it.

        Args:
            event: What kind of record it is.
            members: Its other keys and values, as they stand in the line, a comma before each.
            last: The last value, if `members` ends with its key.
        """
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

        Threads that wait share one fsync: the next in turn does it for all. If the disk fails, or the
        lock cannot be had within 5 seconds, the record is only staged, and the log says so. The same for
        a signal handler that interrupted this very call.
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
        while self._settled < ticket and self._syncing != get_ident():
            if self._syncing:
                # Not in the queue for the turn: this sync may be the one, and then there is none to wait for.
                time.sleep(_TURN_SECONDS)
                continue
            with self._turn:
                if self._settled < ticket and not self._syncing:
                    self._sync()
            return

    def _sync(self) -> None:
        staged = next(self._tickets)  # whoever has a lower one has staged his record
        try:
            self._syncing = get_ident()
            journal = Journal(self._session)
            with durable.operation(), journal.locked():
                self._drain(journal, self._writers)
                if not self._are_parents_durable:
                    durable.sync_parents(self._session.root)
                journal.sync()
            self._settled = staged
            self._are_parents_durable = True
            self._warned = False
        except JournalLockedError:
            self._settled = staged  # who waited with this thread has waited long enough
            raise
        finally:
            self._syncing = 0

    def _names(self) -> list[str]:
        return _segments_of(self._writers)

    def _new_writer(self) -> Writer:
        writers = self._writers
        writer = Writer(self._session, self._names)
        writers.append(writer)
        if writers is not self._writers:  # a signal handler has forked meanwhile: it is the parent's
            writer.abandon()
        return writer

    def hand_over(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Move what this process has staged to the journal.

        Args:
            timeout: Seconds to wait for the journal's lock.

        Raises:
            JournalLockedError: The lock was held by somebody else all the time.
            OSError: The journal cannot take it.
        """
        self.tell_drops(timeout=timeout)
        self._hand_over(self._writers, timeout)

    def close(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Hand over, and delete the segments of this process that no call is using.

        Args:
            timeout: Seconds to wait for the journal's lock.

        Raises:
            JournalLockedError, OSError: As `hand_over`; then the segments stay.
        """
        self.tell_drops(timeout=timeout)
        free, writers, idle = self._free, self._writers, []
        while free:
            try:
                idle.append(free.pop())
            except IndexError:
                break  # a call has taken the last one
        try:
            self._hand_over(idle, timeout)
        except BaseException:
            free.extend(idle)
            raise
        for writer in idle:
            for segment in writer.segments:
                if segment.is_drained():  # where it is damaged, the owner says what it cost
                    segment.delete()
            writers.remove(writer)
            writer.close()

    def tell_drops(self, *, timeout: float = LOCK_SECONDS) -> None:
        """Have the journal say what writers dropped that have no segment to say it.

        Raises:
            JournalLockedError, OSError: As `hand_over`; then it is still to be told.
        """
        free = self._free
        for writer in list(free):
            if not writer.untold_drops():
                continue
            try:
                free.remove(writer)  # so that it drops nothing while it is told
            except ValueError:
                continue  # a call has taken it meanwhile
            try:
                self._tell_drops(writer, timeout)
            finally:
                free.append(writer)

    def _tell_drops(self, writer: Writer, timeout: float) -> None:
        self._session.make()
        journal = Journal(self._session)
        with durable.operation(), journal.locked(timeout):
            # Not under the writer's own id: it is forgotten when it has no segment.
            journal.append([Batch(os.urandom(8).hex(), 1, b"", writer.untold_drops())])
        writer.told_drops()

    def _hand_over(self, writers: list[Writer], timeout: float) -> None:
        if any(writer.segments for writer in list(writers)):
            journal = Journal(self._session)
            with durable.operation(), journal.locked(timeout):
                self._drain(journal, writers)

    @staticmethod
    def _drain(journal: Journal, writers: list[Writer]) -> None:
        left = drain(journal, _segments_of(writers))
        for error in left.unreadable:
            raise error
        for path, reason in left.damaged:
            raise OSError(EIO, reason, os.fspath(path))

    def abandon(self) -> None:
        """In a forked child: drop what the parent stages, and start anew."""
        inherited, self._writers, self._free = self._writers, [], []
        self._reset_turns()
        for writer in inherited:
            writer.abandon()


_stagings: dict[str, Staging] = {}


def staging(session: Session) -> Staging:
    """The staging of this process for that session: however many recorders it has, one."""
    found = _stagings.get(session.root)
    return found or _stagings.setdefault(session.root, Staging(session))


def _after_fork_in_child() -> None:
    for inherited in list(_stagings.values()):
        inherited.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
