"""A writer: one numbered stream of records, used by one call at a time, and the segments that hold it."""

from __future__ import annotations

import os
import time
from errno import ECANCELED, ENOSPC

from m31a_mp.errors import MetricsError
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.segments.format import DATA_OFFSET
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from m31a_mp.system.files import ForkedError
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
# The same of inodes; of a small file system more, for publishing needs some files that are not there yet.
_MIN_RESERVED_FILES = 8
_MAX_RESERVED_FILES = 1024
# An owner that flushes may take a segment in the making for stillborn, and delete it. That often in a row
# no owner comes between two system calls.
_ATTEMPTS = 50
# While there is no room, a record costs little: it is only looked for this often.
_RETRY_SECONDS = 0.05
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

    def untold_drops(self) -> dict[str, int]:
        """Count the drops that no file tells yet, by reason."""
        return {} if self._segment else dict(self._dropped)

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
        while self.removed:
            try:
                segment = self.removed.pop(0)  # taken: the directory may be another by now, with another lock
            except IndexError:
                return
            try:
                _append_left(segment, journal, segment.dropped())
            except BaseException:
                self.removed.insert(0, segment)
                raise
            if segment is not self._segment:  # an exception of a signal handler came before its successor
                segment.close()
        current = self._segment
        if current and not current.is_in_place():
            try:
                _append_left(current, journal)
            except ValueError:
                pass  # the call that is using it has let go of it this moment

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
        except (OSError, MetricsError, MemoryError, ValueError) as error:
            if self.abandoned:  # by a fork in the middle of it; it counts in the parent
                return False
            if isinstance(error, ValueError) and not isinstance(error, MetricsError):
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
        if old and is_in_place and not old.is_in_place():
            # Somebody removed it while its successor was made, which must not go on with its numbers.
            segment.finish(is_followed=False)
            self._start_segment(need)
            return
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
        directory = self._session.segments
        least = DATA_OFFSET + need
        size = max(size, least)
        for attempt in range(_ATTEMPTS):
            try:
                self._session.make()
                if not _has_room(directory, 2 * size):  # its records take that once more, in the journal
                    raise OSError(ENOSPC, "the last part of the file system is left to others", directory)
                return Segment.create(directory, writer, first, size)
            except (FileNotFoundError, FileExistsError):  # or a fork has left one, in the middle of this
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
            _warned.add(self._session)  # before: a handler of the log may record, too
            why = error or reason
            if not warn_of_loss("records are being dropped in %s: %s", self._session.root, why):
                _warned.discard(self._session)


def _append_left(segment: Segment, journal: Journal, dropped: dict[str, int] | None = None) -> None:
    """Append what the journal has not got of a mapped segment.

    Raises:
        ValueError: It is not mapped any more.
    """
    first, records = segment.left()
    if records or dropped:
        journal.append([Batch(segment.writer, first, records, dropped)])
        segment.advance(records)


def _new_id() -> str:
    return os.urandom(8).hex()


def _has_room(directory: str, size: int) -> bool:
    """Whether records may take one more file of that size; a file system that does not say may have it."""
    status = os.statvfs(directory)
    reserved = min(status.f_blocks * status.f_frsize // _RESERVED_PART, _MAX_RESERVED_BYTES)
    if status.f_blocks and status.f_bavail * status.f_frsize - reserved < size:
        return False
    reserved_files = max(_MIN_RESERVED_FILES, min(status.f_files // _RESERVED_PART, _MAX_RESERVED_FILES))
    return not status.f_files or status.f_favail > reserved_files


def _reason(error: Exception) -> str:
    return "no_space" if isinstance(error, OSError) and error.errno in files.FULL else "io_error"
