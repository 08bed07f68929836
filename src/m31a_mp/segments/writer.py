"""A writer: one numbered stream of records, used by one call at a time, and its segments."""

from __future__ import annotations

import os
import time
from errno import ECANCELED, ENOSPC

from m31a_mp.errors import MetricsError, is_of_handler
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.segments.format import DATA_OFFSET
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from m31a_mp.system.files import ForkedError
from m31a_mp.system.log import DROPPED, warn_of_loss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A process with few records takes 16 KiB. The segments of a busy one grow to 1 MiB.
FIRST_SEGMENT_BYTES = 16 * 1024
MAX_SEGMENT_BYTES = 1024 * 1024
_GROWTH = 4
# The last 1/20 of a file system is reserved for the host program and for publishing.
_RESERVED_PART = 20
_MAX_RESERVED_BYTES = 1024**3
# The limits of the same reserve for inodes. The minimum covers the files that publishing creates.
_MIN_RESERVED_FILES = 8
_MAX_RESERVED_FILES = 1024
# An owner that flushes may take an unfinished segment for stillborn and delete it. So many deletions in a
# row, each between two system calls, do not happen.
_ATTEMPTS = 50
# The interval between attempts to find room. It keeps records cheap while the disk is full.
_RETRY_SECONDS = 0.05
_warned: set[Session] = set()


def _no_room(_: bytes) -> int:
    raise ValueError


def _discard(_: bytes) -> int:
    return 0


class Writer:
    """One stream of records: an id, and the segments with the records that are not handed over yet.

    Only the current segment is mapped. A full segment takes no more records. The writer keeps only its
    file name, and the drain deletes the file.

    Attributes:
        full: The paths of full segments, oldest first.
        removed: Segments whose files were removed, oldest first. Only this process has their records.
    """

    def __init__(
        self, session: Session, spill: Callable[[Writer], None], on_drop: Callable[[], None]
    ) -> None:
        self.full: list[str] = []
        self.removed: list[Segment] = []
        self._id = _new_id()
        self._session = session
        self._spill = spill
        self._on_drop = on_drop
        self._segment: Segment | None = None
        # The `store` of the current segment. A single attribute, so that a record that interrupts a change
        # of segments finds either the old store or the new one.
        self.store: Callable[[bytes], int] = _no_room
        self._dropped: dict[str, int] = {}
        self._trouble: str | None = None
        self._retry_at = 0.0
        self.abandoned = False

    def make_room_and_store(self, line: bytes) -> None:
        """Store a record that does not fit into the current segment. Never raises for I/O."""
        if self._make_room(len(line)):
            try:
                self.store(line)
            except ValueError:
                if not self.abandoned:
                    raise

    def names(self) -> list[str]:
        """List the paths of the writer's segments, oldest first."""
        segment = self._segment
        return [*self.full, segment.name] if segment else list(self.full)

    def untold_drops(self) -> dict[str, int]:
        """Count the drops that no file states yet, by reason."""
        return {} if self._segment else dict(self._dropped)

    def hides(self) -> bool:
        """Whether the writer has records or drop counts that no other process can find."""
        segment = self._segment
        if segment is None:
            return bool(self.removed or self._dropped)
        return bool(self.removed) or not segment.is_in_place()

    def bring_out(self, journal: Journal) -> None:
        """Append what no other process can find.

        The caller holds `journal.lock`, and no other call uses the writer.

        Raises:
            OSError: The append failed. The writer keeps what was not appended.
        """
        if self._segment and not self._segment.is_in_place():
            self.retire()
        self.hand_over_removed(journal)
        if self._dropped and self._segment is None:
            # Use a fresh id: the owner forgets a writer that has no segment.
            journal.append([Batch(_new_id(), 1, b"", self._dropped)])
            self._dropped = {}

    def hand_over_removed(self, journal: Journal) -> None:
        """Append the records in segments whose files were removed. The caller holds `journal.lock`.

        Another call may use the writer meanwhile.

        Raises:
            OSError: The append failed.
        """
        while self.removed:
            try:
                # Take it first: a thread that holds the lock of a new directory could append it as well.
                segment = self.removed.pop(0)
            except IndexError:
                return
            try:
                _append_left(segment, journal, segment.dropped())
            except BaseException:
                self.removed.insert(0, segment)
                raise
            if segment is not self._segment:  # still current if a signal handler raised before the change
                segment.close()
        current = self._segment
        if current and not current.is_in_place():
            try:
                _append_left(current, journal)
            except ValueError:
                pass  # the call that uses the writer has just closed the segment

    def forget_gone(self) -> None:
        """Forget the full segments whose files were drained. The caller holds `journal.lock`."""
        full = self.full
        for name in list(full):
            try:
                os.lstat(name)
            except FileNotFoundError:
                full.remove(name)
            else:
                return

    def retire(self) -> None:
        """Release the current segment. The next record starts a new segment, in a new stream."""
        segment = self._segment
        if segment is None:
            return
        new_id = _new_id()
        is_in_place = segment.is_in_place()
        self._put_behind(segment, is_in_place)
        # No calls between these assignments: a signal handler must not see one without the others.
        self._segment = None
        self.store = _no_room
        self._id = new_id
        self._dropped = {}
        if is_in_place and not self.abandoned:
            segment.finish(is_followed=False)

    def abandon(self) -> None:
        """Release the parent's segments in a forked child.

        A signal handler may have forked in the middle of a record. This record ends in the parent, where it
        counts, and in the child, where it must neither store anything nor look for room.
        """
        self.abandoned = True
        self.store = _discard
        mapped = [*self.removed, self._segment] if self._segment else self.removed
        for segment in mapped:
            segment.close()
        self._segment, self.full, self.removed = None, [], []

    def _make_room(self, need: int) -> bool:
        """Provide a segment with room for a record. Return False if there is none; the record is dropped."""
        if self.abandoned:
            return False
        if self._trouble and time.monotonic() < self._retry_at:
            self._drop(self._trouble)
            return False
        try:
            files.operation(lambda: self._start_segment(need))
        except (OSError, MetricsError, MemoryError, ValueError) as error:
            if self.abandoned:  # a signal handler forked meanwhile; the record counts in the parent
                return False
            if is_of_handler(error):
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
            if old.has_room(need):  # a signal handler raised before `self.store` was set
                self.store = old.store
                return
            size = min(old.size * _GROWTH, MAX_SEGMENT_BYTES)
            is_in_place = old.is_in_place()
            if is_in_place:
                first = old.next_number()
            else:
                # The removed segment is appended later. Under the same id its records would seem known then.
                writer, dropped = _new_id(), {}
        segment = self._create(writer, first, size, need)
        for reason, count in dropped.items():
            segment.show_dropped(reason, count)
        if old and is_in_place and not old.is_in_place():
            # The old file was removed meanwhile. The new segment must not continue its numbers: start again.
            segment.finish(is_followed=False)
            self._start_segment(need)
            return
        if old:
            self._put_behind(old, is_in_place)
        if self.abandoned:
            segment.close()
            raise ForkedError(ECANCELED, "only the parent process continues")
        # No calls between these assignments: a signal handler must not see one without the others.
        self._segment = segment
        self.store = segment.store
        self._id = writer
        self._dropped = dropped
        if old and is_in_place:
            old.finish(is_followed=True)

    def _put_behind(self, segment: Segment, is_in_place: bool) -> None:
        """Add a segment to those that take no more records, unless an earlier attempt added it.

        An attempt ends early if a signal handler raises before the next segment is in use.
        """
        if not is_in_place:
            if segment not in self.removed:
                self.removed.append(segment)
        elif segment.name not in self.full:
            self.full.append(segment.name)

    def _create(self, writer: str, first: int, size: int, need: int) -> Segment:
        """Create a segment of `size` bytes; on a full disk, a smaller one with room for `need` bytes."""
        directory = self._session.segments
        least = DATA_OFFSET + need
        size = max(size, least)
        for attempt in range(_ATTEMPTS):
            try:
                self._session.make()
                if not has_room(directory, 2 * size):  # twice: the journal needs room for the records, too
                    raise OSError(ENOSPC, "the rest of the file system is reserved", directory)
                return Segment.create(directory, writer, first, size)
            except (FileNotFoundError, FileExistsError):  # taken for stillborn, or left by a fork meanwhile
                if attempt == _ATTEMPTS - 1:
                    raise
            except OSError as error:
                if error.errno not in files.FULL or size // _GROWTH < least:
                    raise
                break
        return self._create(writer, first, size // _GROWTH, need)

    def _drop(self, reason: str, error: Exception | None = None) -> None:
        if not self._dropped:
            self._on_drop()
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        if self._segment:
            self._segment.show_dropped(reason, self._dropped[reason])
        if self._session not in _warned:
            _warned.add(self._session)  # add first: a log handler may record, and would warn again
            why = error or reason
            if not warn_of_loss(DROPPED, self._session.root, why):
                _warned.discard(self._session)


def _append_left(segment: Segment, journal: Journal, dropped: dict[str, int] | None = None) -> None:
    """Append the records of a mapped segment that are not in the journal.

    Raises:
        ValueError: The segment is not mapped any more.
    """
    first, records = segment.left()
    if records or dropped:
        journal.append([Batch(segment.writer, first, records, dropped)])
        segment.advance(records)


def _new_id() -> str:
    return os.urandom(8).hex()


def has_room(directory: str, size: int) -> bool:
    """Whether a file of `size` bytes fits beside the reserve; True if the file system does not say."""
    status = os.statvfs(directory)
    reserved = min(status.f_blocks * status.f_frsize // _RESERVED_PART, _MAX_RESERVED_BYTES)
    if status.f_blocks and status.f_bavail * status.f_frsize - reserved < size:
        return False
    reserved_files = max(_MIN_RESERVED_FILES, min(status.f_files // _RESERVED_PART, _MAX_RESERVED_FILES))
    return not status.f_files or status.f_favail > reserved_files


def _reason(error: Exception) -> str:
    return "no_space" if isinstance(error, OSError) and error.errno in files.FULL else "io_error"
