"""A segment as its writer holds it: mapped, and growing."""

from __future__ import annotations

import mmap
import os
import sys
from errno import ENOENT

from m31a_mp.journal.batch import DROP_REASONS
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
_never_closed: list[mmap.mmap] = []


class Segment:
    """A segment as its writer holds it: mapped, growing.

    Attributes:
        name: Its file.
        writer: The id of its writer.
        first: The number of its first record.
        size: Bytes in the file.
        store: Takes a record's line, and makes all of it or none a part of the file, so that the death
            of this process cannot take it. Raises `ValueError` if there is no room, or after `close()`.
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
        self._descriptor = descriptor  # which the mapping keeps; None if that is not known
        self.name = name
        self.writer = writer
        self.first = first
        self.size = len(mapping)
        self._mapping = mapping
        self._words = memoryview(mapping)[:DATA_OFFSET].cast("Q")  # storing one is a single aligned store
        mapping.seek(DATA_OFFSET)
        self.store = mapping.write

    @classmethod
    def create(cls, directory: str, writer: str, first: int, size: int) -> Segment:
        """Make a segment of `size` bytes for records from number `first` on.

        Raises:
            FileNotFoundError: Another process took the unfinished one for stillborn, and deleted it.
            OSError: There is no room for it, or another reason not to have it.
        """
        name = f"{directory}/{file_name(writer, first)}"
        temporary = f"{directory}/.{file_name(writer, first)}.tmp"
        with files.step("make segment"):
            files.delete_if_there(temporary)  # it was to be given up once, and the disk did not let it
            fd = files.open_private(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with files.changing(fd):  # then the mapping keeps a descriptor of its own, and with it the lock
            try:
                status = os.fstat(fd)
                file = status.st_dev, status.st_ino
                expected = _next_descriptor(fd)
                mapping = cls._make(fd, header(writer, first, size), size, temporary, name)
                # Another thread may have taken the number.
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
        # The lock is the proof of life that needs no pid: the kernel drops it when the last process that maps
        # the file is gone. (A forked child unmaps it.)
        if not flock.lock_if_free(fd):
            raise FileNotFoundError(ENOENT, "taken for stillborn", temporary)
        with files.step("allocate segment"):
            # All of it. Where there was a hole and the disk is full, a store is a SIGBUS, which kills the
            # host program. And pages that large writes have brought in cost the records a sixth of what
            # they would cost by being touched one after the other.
            files.write_all(fd, header.ljust(min(size, len(_NULS)), b"\0"))
            for offset in range(len(_NULS), size, len(_NULS)):
                files.write_all(fd, _NULS[: size - offset], offset)
        mapping = mmap.mmap(fd, size)
        try:
            # Last: under this name a reader never meets a segment without its space and its header.
            with files.step("rename segment"):
                os.rename(temporary, name)
        except BaseException:
            mapping.close()
            raise
        return mapping

    def show_dropped(self, reason: str, count: int) -> None:
        """Let the owner know how many records the writer dropped so far for that reason."""
        word = DROPPED_WORD + 2 * DROP_REASONS.index(reason)
        self._words[word] = count
        self._words[word + 1] = count ^ ALL_ONES

    def has_room(self, need: int) -> bool:
        """Whether a record of `need` bytes fits in."""
        return need <= self.size - self._mapping.tell()

    def is_in_place(self) -> bool:
        """Whether its file is where it was made, so that others find the records in it."""
        return files.is_there(self.name, self._file)

    def next_number(self) -> int:
        """The number of the record that its writer makes next."""
        first, records = self.left()
        return first + records.count(b"\n")

    def left(self) -> tuple[int, bytes]:
        """The number of the first record that is not in the journal, and the lines from that one on."""
        start, first = drained(self._words, self.size) or (DATA_OFFSET, self.first)
        return first, self._mapping[start : self._mapping.tell()]

    def advance(self, records: bytes) -> None:
        """Note that the journal has these lines, the first ones of `left()`; see `SegmentFile.advance`."""
        start, first = drained(self._words, self.size) or (DATA_OFFSET, self.first)
        words = drained_words(start + len(records), first + records.count(b"\n"))
        self._words[DRAINED_WORD], self._words[DRAINED_WORD + 1], self._words[DRAINED_WORD + 2] = words

    def dropped(self) -> dict[str, int]:
        """How many records its writer dropped so far, by reason."""
        return drops(self._words)

    def finish(self, *, is_followed: bool) -> None:
        """Note that nothing more is stored in it, and unmap it.

        Args:
            is_followed: The records of its writer go on in a later segment, which is there already.
        """
        word = FOLLOWED if is_followed else FINISHED
        self._words[FINISHED_WORD] = int.from_bytes(word, sys.byteorder)
        self.close()

    def close(self) -> None:
        """Unmap it; the file stays. Once more is harmless."""
        self._words.release()
        if self._mapping.closed:
            return
        if self._has_its_descriptor():
            self._mapping.close()
        else:
            # The program closed descriptors that it does not know, and has a file of that number now:
            # unmapping would close it.
            _never_closed.append(self._mapping)

    def _has_its_descriptor(self) -> bool:
        """Whether the descriptor that the mapping keeps is still its own, or closed and nobody's."""
        if self._descriptor is not None:
            return files.inode_of(self._descriptor) in {self._file, None}
        try:
            return self._mapping.size() == self.size
        except OSError:
            return True


def _next_descriptor(fd: int) -> int:
    """The number that the next open file gets: a mapping does not tell which one it has."""
    descriptor = os.dup(fd)
    os.close(descriptor)
    return descriptor
