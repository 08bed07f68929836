"""The writer's side of a segment: a mapped file that takes records."""

from __future__ import annotations

import mmap
import os
import sys
from errno import ENOENT

from m31a_mp.journal.batch import DROP_REASONS, count_lines
from m31a_mp.segments.format import (
    ALL_ONES,
    DATA_OFFSET,
    DRAINED_WORD,
    DROPPED_WORD,
    FINISHED,
    FINISHED_WORD,
    FOLLOWED,
    drained,
    drained_words,
    drops,
    file_name,
    header,
)
from m31a_mp.system import files, flock

_NULS = bytes(64 * 1024)
# All pages are mapped at once: page faults of the records, one by one, would take twice as long.
_MAPPED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
_never_closed: list[mmap.mmap] = []


class Segment:
    """A segment that its writer maps and appends to.

    Attributes:
        name: The path of the file.
        writer: The id of the writer.
        first: The number of the first record.
        size: Bytes in the file.
        store: Puts all of a record's line into the file, or nothing. A stored line survives the death of
            this process. Raises `ValueError` if there is no room, or after `close()`.
    """

    __slots__ = ("_descriptor", "_file", "_mapping", "_words", "first", "name", "size", "store", "writer")

    def __init__(  # noqa: PLR0913, PLR0917  # one for each attribute
        self,
        name: str,
        writer: str,
        first: int,
        mapping: mmap.mmap,
        file: tuple[int, int],
        descriptor: int | None,
    ) -> None:
        self._file = file
        self._descriptor = descriptor  # the duplicate that the mapping keeps; None if its number is unknown
        self.name = name
        self.writer = writer
        self.first = first
        self.size = len(mapping)
        self._mapping = mapping
        self._words = memoryview(mapping)[:DATA_OFFSET].cast("Q")  # setting a word is one aligned store
        mapping.seek(DATA_OFFSET)
        self.store = mapping.write

    @classmethod
    def create(cls, directory: str, writer: str, first: int, size: int) -> Segment:
        """Create a segment of `size` bytes for records from number `first` on.

        Raises:
            FileNotFoundError: Another process took the unfinished file for stillborn, and deleted it.
            OSError: There is no room, or the file cannot be created for another reason.
        """
        name = f"{directory}/{file_name(writer, first)}"
        temporary = f"{directory}/.{file_name(writer, first)}.tmp"
        with files.step("make segment"):
            files.delete_if_there(temporary)  # left if an earlier attempt could not delete its file
            fd = files.open_private(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with files.changing(fd):  # the mapping keeps a duplicate of fd, and with it the lock
            try:
                status = os.fstat(fd)
                file = status.st_dev, status.st_ino
                expected = _next_descriptor(fd)
                mapping = cls._make(fd, header(writer, first, size), size, temporary, name)
                # Another thread may have opened a file under this number.
                descriptor = expected if files.inode_of(expected) == file else None
            except BaseException:
                try:
                    with files.step("give up segment"):
                        os.unlink(temporary)
                except OSError:
                    pass  # the next attempt deletes it
                raise
        return cls(name, writer, first, mapping, file, descriptor)

    @staticmethod
    def _make(fd: int, header: bytes, size: int, temporary: str, name: str) -> mmap.mmap:
        # The lock proves life without a pid: the kernel releases it when the last process that maps the
        # file ends. A forked child unmaps the file.
        if not flock.lock_if_free(fd):
            raise FileNotFoundError(ENOENT, "another process deleted the unfinished segment", temporary)
        with files.step("allocate segment"):
            # Write all bytes. A store into a hole while the disk is full raises SIGBUS, which kills the host
            # program. Pages that large writes brought in also cost the records a sixth of the time that
            # page faults, one by one, would cost.
            files.write_all(fd, header.ljust(min(size, len(_NULS)), b"\0"))
            for offset in range(len(_NULS), size, len(_NULS)):
                files.write_all(fd, _NULS[: size - offset], offset)
        mapping = mmap.mmap(fd, size, flags=_MAPPED)
        try:
            # Rename last: a reader never finds a segment without its space and its header under this name.
            with files.step("rename segment"):
                os.rename(temporary, name)
        except BaseException:
            mapping.close()
            raise
        return mapping

    def show_dropped(self, reason: str, count: int) -> None:
        """Store in the header, for the owner, how many records the writer dropped for this reason so far."""
        word = DROPPED_WORD + 2 * DROP_REASONS.index(reason)
        self._words[word] = count
        self._words[word + 1] = count ^ ALL_ONES

    def has_room(self, need: int) -> bool:
        """Whether a record of `need` bytes fits."""
        return need <= self.size - self._mapping.tell()

    def is_in_place(self) -> bool:
        """Whether the file still has its name, so that other processes find the records."""
        return files.is_there(self.name, self._file)

    def next_number(self) -> int:
        """Return the number of the next record."""
        start, first = self._drained()
        return first + count_lines(self._mapping, start, self._mapping.tell())

    def left(self) -> tuple[int, bytes]:
        """Return the number of the first record not in the journal, and the lines from this record on."""
        start, first = self._drained()
        return first, self._mapping[start : self._mapping.tell()]

    def advance(self, records: bytes) -> None:
        """Mark these lines, the first ones of `left()`, as drained; see `SegmentFile.advance`."""
        start, first = self._drained()
        words = drained_words(start + len(records), first + count_lines(records))
        self._words[DRAINED_WORD], self._words[DRAINED_WORD + 1], self._words[DRAINED_WORD + 2] = words

    def _drained(self) -> tuple[int, int]:
        """Return the offset and the number of the first record that is not in the journal."""
        return drained(self._words, self.size) or (DATA_OFFSET, self.first)

    def dropped(self) -> dict[str, int]:
        """Count the records that the writer dropped so far, by reason."""
        return drops(self._words)

    def finish(self, *, is_followed: bool) -> None:
        """Mark that nothing more is stored, and unmap the file.

        Args:
            is_followed: Whether the writer's records continue in a later segment, which exists already.
        """
        word = FOLLOWED if is_followed else FINISHED
        self._words[FINISHED_WORD] = int.from_bytes(word, sys.byteorder)
        self.close()

    def close(self) -> None:
        """Unmap the file, and leave it on disk. A second call is harmless."""
        self._words.release()
        if self._mapping.closed:
            return
        if self._has_its_descriptor():
            self._mapping.close()
        else:
            # The program closed the mapping's descriptor, and another file has its number now. Unmapping
            # would close that file.
            _never_closed.append(self._mapping)

    def _has_its_descriptor(self) -> bool:
        """Whether the mapping's descriptor is still its own, or closed and not in use."""
        if self._descriptor is not None:
            return files.inode_of(self._descriptor) in {self._file, None}
        try:
            return self._mapping.size() == self.size
        except OSError:
            return True


def _next_descriptor(fd: int) -> int:
    """Predict the number of the next opened file: a mapping does not reveal its descriptor."""
    descriptor = os.dup(fd)
    os.close(descriptor)
    return descriptor
