"""Segments as everybody else sees them: one file, and the files that there are."""

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


# A segment of this size is read at once: most have it.
_HEAD_BYTES = 16 * 1024


class SegmentFile:
    """A segment as everybody else sees it. Read with system calls: a file cut short is no SIGBUS.

    Attributes:
        path: Its file.
        writer: The id of its writer.
        first: The number of its first record.
        size: Bytes in the file, as its header has them.
        identity: The process of its writer.
        is_followed: Its writer said that its records go on in a later segment, which is there.
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
            DamagedSegmentError: It is none, or of another version.
            OSError: It cannot be opened or read, for instance because it is gone.
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
        if fd >= 0:  # once: the number may be another file by now
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_finished(self) -> bool:
        """Whether nothing more is stored in it: its writer said so, or does not map it any more."""
        return self._is_marked or not self.may_be_mapped()

    def is_dead(self) -> bool:
        """Whether its writer is proven dead: nobody maps the file, and the process is not seen alive."""
        return not self.is_locked() and not process.seen_alive(self.identity)

    def is_locked(self) -> bool:
        """Whether a process maps the file, as far as the kernel's lock tells."""
        return not flock.lock_if_free(self._fd)

    def may_be_mapped(self) -> bool:
        """Whether its writer may map it. Only a proof to the contrary counts, and its name proves nothing.

        The kernel's lock alone would not do: a program may close descriptors that it does not know, and on
        some file systems a mapping keeps no lock. The process alone would not do either: it cannot be seen
        from another pid namespace, and may run another program by now.
        """
        if self.is_locked():
            return True
        status = os.fstat(self._fd)
        return process.may_map(self.identity, os.path.basename(self.path), (status.st_dev, status.st_ino))

    def pending(self, *, is_finished: bool) -> Batch:
        """The whole records that the journal has not got.

        Args:
            is_finished: Its writer stores nothing more in it. Then NUL bytes between records are damage: the
                records behind them are not left to be forgotten.
        """
        head = os.pread(self._fd, _HEAD_BYTES, 0)
        words = memoryview(head)[:DATA_OFFSET].cast("Q")
        # Torn or flipped: take all again, their numbers tell which are known already.
        start, first = drained(words, self.size) or (DATA_OFFSET, self.first)
        is_all = self.size <= _HEAD_BYTES
        stored = head[start : self.size] if is_all else os.pread(self._fd, self.size - start, start)
        end = stored.rfind(b"\n") + 1
        gap = stored.find(b"\0", stored.rfind(b"\n", 0, max(0, end - 1)) + 1 if is_finished else 0, end)
        if gap >= 0:
            end = stored.rfind(b"\n", 0, gap) + 1
        # What is mostly records is not copied; a view of the rest would keep all of it in memory.
        records = memoryview(stored)[:end] if 2 * end > len(stored) else stored[:end]
        return Batch(self.writer, first, records, drops(words), start)

    def advance(self, offset: int, number: int) -> None:
        """Note that the records before `offset` are in the journal. The caller holds `journal.lock`.

        Args:
            offset: Where the first record stands that is not.
            number: Its number.
        """
        with files.step("advance segment"):
            os.pwrite(self._fd, DRAINED.pack(*drained_words(offset, number)), DRAINED_OFFSET)


def list_segments(directory: str) -> list[str]:
    """The segments there, each writer's oldest first, and none without those before it."""
    return find_segments(directory)[0]


def find_segments(directory: str) -> tuple[list[str], set[str]]:
    """List the segments, and the writers that were seen in only one of the two listings."""
    names, gone = _find(directory)
    return [f"{directory}/{name}" for name in names], gone


def _find(directory: str) -> tuple[list[str], set[str]]:
    # A listing may miss a name that is made meanwhile, and yet have one that is made after it. So the
    # directory is listed twice: what is older than anything in the first listing is in the second.
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
    # Names are of fixed width: this is the order of writers, then of record numbers.
    return sorted(name for name in names if name.endswith(".seg"))


def delete_stillborn(directory: str) -> None:
    """Delete what a crash left of segments that were being made; nothing was ever recorded in them."""
    for path in files.find(directory, ".", ".seg.tmp"):
        try:
            _delete_if_stillborn(path)
        except OSError:
            pass  # its maker was faster, or the next flush does it


def _delete_if_stillborn(path: str) -> None:
    fd = files.open_private(path, os.O_RDONLY)
    try:
        if flock.lock_if_free(fd):
            with files.step("delete stillborn segment"):
                os.unlink(path)
    finally:
        os.close(fd)
