"""Read segments of other processes: list the files, read one file."""

from __future__ import annotations

import os
import stat
from errno import EISDIR, ELOOP

from m31a_mp.journal.batch import Batch
from m31a_mp.segments.format import (
    DATA_OFFSET,
    DRAINED,
    DRAINED_OFFSET,
    FINISHED,
    FINISHED_OFFSET,
    FOLLOWED,
    DamagedSegmentError,
    drained,
    drained_words,
    drops,
    name_parts,
    parse_identity,
)
from m31a_mp.system import files, flock, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


# The first read takes this much. Most segments have this size, and need no second read.
_HEAD_BYTES = 16 * 1024


class SegmentFile:
    """A segment seen from outside its writer. System calls read it: a mapping of a cut file raises SIGBUS.

    Attributes:
        path: The path of the file.
        writer: The id of the writer.
        first: The number of the first record.
        size: Bytes in the file, according to the header.
        identity: The process of the writer.
        is_followed: Whether the writer marked that its records continue in a later, existing segment.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        header = os.pread(fd, DATA_OFFSET, 0)
        word = header[FINISHED_OFFSET : FINISHED_OFFSET + 8]
        self.is_followed = word == FOLLOWED
        self._is_marked = self.is_followed or word == FINISHED
        self.writer, self.first, self.size, self.identity = parse_identity(header, os.path.basename(path))

    @classmethod
    def open(cls, path: str) -> SegmentFile:
        """Open the segment.

        Raises:
            DamagedSegmentError: The file is not a segment, or has another version.
            OSError: The file cannot be opened or read, for instance because it is gone.
        """
        try:
            fd = files.open_private(path, os.O_RDWR)
        except OSError as error:
            if error.errno in (ELOOP, EISDIR):
                raise DamagedSegmentError("it is not a regular file") from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DamagedSegmentError("it is not a regular file")
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:  # close once: a second close could hit another file that got this number
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_finished(self) -> bool:
        """Whether the writer stores nothing more: it marked the end, or does not map the file any more."""
        return self._is_marked or not self.may_be_mapped()

    def is_dead(self) -> bool:
        """Whether the writer is proven dead: no process maps the file, and its process is not seen alive."""
        return not self.is_locked() and not process.seen_alive(self.identity)

    def is_locked(self) -> bool:
        """Whether a process maps the file, as far as the kernel's lock tells."""
        return not flock.is_free(self._fd)

    def may_be_mapped(self) -> bool:
        """Whether the writer may map the file. Only proof of the contrary returns False; a name is no proof.

        The kernel's lock alone is not enough: a program may close descriptors that it does not know, and on
        some file systems a mapping keeps no lock. The process alone is not enough either: it is invisible
        from another pid namespace, and may run another program by now.
        """
        if self.is_locked():
            return True
        status = os.fstat(self._fd)
        return process.may_map(self.identity, os.path.basename(self.path), (status.st_dev, status.st_ino))

    def is_idle(self) -> bool:
        """Whether nothing is pending, and the writer may store more."""
        header = os.pread(self._fd, DATA_OFFSET, 0)
        if len(header) < DATA_OFFSET:
            return False
        words = memoryview(header).cast("Q")
        mark = drained(words, self.size)
        if mark is None or drops(words) or os.pread(self._fd, 1, mark[0]) != b"\0":
            return False
        return not self.is_finished()  # asked last: the answer takes longer than all of the above

    def pending(self, *, is_finished: bool, seen: tuple[int, int] | None = None) -> Batch:
        """Return the whole records that are not in the journal.

        Args:
            is_finished: Whether the writer stores nothing more. NUL bytes between records are then damage,
                and the records behind them are returned too: the segment is about to be deleted.
            seen: The offset and the number of the first record that the caller has not seen; None: it has
                seen none. Earlier records are left out.
        """
        head = os.pread(self._fd, _HEAD_BYTES, 0)
        words = memoryview(head)[:DATA_OFFSET].cast("Q")
        # If the drained mark is torn or flipped, take all records again: their numbers reveal known ones.
        start, first = max(drained(words, self.size) or (DATA_OFFSET, self.first), seen or (0, 0))
        stored = self._stored(head, start, is_finished=is_finished)
        end = stored.rfind(b"\n") + 1
        gap = stored.find(b"\0", stored.rfind(b"\n", 0, max(0, end - 1)) + 1 if is_finished else 0, end)
        if gap >= 0:
            end = stored.rfind(b"\n", 0, gap) + 1
        # Copy only if records are the smaller part: a view would keep the whole buffer in memory.
        records = memoryview(stored)[:end] if 2 * end > len(stored) else stored[:end]
        return Batch(self.writer, first, records, drops(words), start)

    def count_pending(self, seen: tuple[int, int] | None = None) -> int:
        """Count the records that are not in the journal. Only those after `seen` are read (see `pending`)."""
        words = memoryview(os.pread(self._fd, DATA_OFFSET, 0)).cast("Q")
        _, first = drained(words, self.size) or (DATA_OFFSET, self.first)
        pending = self.pending(is_finished=False, seen=seen)
        return max(0, pending.first + pending.count - first)

    def _stored(self, head: bytes, start: int, *, is_finished: bool) -> bytes:
        """Return the bytes from `start` on. The NULs at the end of a segment in use may be missing.

        Args:
            head: The first bytes of the file.
            start: The offset of the first record that is not in the journal.
            is_finished: Whether the writer stores nothing more.
        """
        if self.size <= len(head):
            return head[start : self.size]
        if not is_finished:
            # The records of a segment in use end at its first NUL: what lies behind need not be read.
            piece = head[start:] if start < len(head) else os.pread(self._fd, _HEAD_BYTES, start)
            if piece.endswith(b"\0"):
                return piece
        return os.pread(self._fd, self.size - start, start)

    def advance(self, offset: int, number: int) -> None:
        """Mark the records before `offset` as drained. The caller holds `journal.lock`.

        Args:
            offset: The offset in the file of the first record that is not in the journal.
            number: The number of this record.
        """
        with files.step("advance segment"):
            os.pwrite(self._fd, DRAINED.pack(*drained_words(offset, number)), DRAINED_OFFSET)


def list_segments(directory: str) -> list[str]:
    """List the segments, each writer's oldest first, without gaps: all segments older than a listed one."""
    return find_segments(directory)[0]


def find_segments(directory: str) -> tuple[list[str], set[str]]:
    """List the segments, and the writers that were seen in only one of the two listings."""
    names, gone = _find(directory)
    return [f"{directory}/{name}" for name in names], gone


def _find(directory: str) -> tuple[list[str], set[str]]:
    # A listing may miss a name that is created meanwhile, yet contain a name created after that one.
    # List the directory twice: the second listing contains all that is older than any name in the first.
    first, second = _names(directory), _names(directory)
    writers = {name: parts[0] for name in {*first, *second} if (parts := name_parts(name))}
    newest = {writers[name]: name for name in first if name in writers}
    found = [name for name in second if name not in writers or name <= newest.get(writers[name], "")]
    return found, {*writers.values()} - {writers[name] for name in found if name in writers}


def _names(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    # Names have a fixed width: they sort by writer, then by record number.
    return sorted(name for name in names if name.endswith(".seg"))


def delete_stillborn(directory: str) -> None:
    """Delete unfinished segments that a crash left behind. They hold no records yet."""
    for path in files.find(directory, ".", ".seg.tmp"):
        try:
            _delete_if_stillborn(path)
        except OSError:
            pass  # its creator finished or deleted it, or the next flush deletes it


def _delete_if_stillborn(path: str) -> None:
    fd = files.open_private(path, os.O_RDONLY)
    try:
        if flock.lock_if_free(fd):
            with files.step("delete stillborn segment"):
                os.unlink(path)
    finally:
        os.close(fd)
