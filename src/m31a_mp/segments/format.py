r"""Segments: records staged in shared memory, where the death of their process cannot take them.

A segment is one file, mapped by one writer and read by anyone. It is only ever appended to, until it is
full; then its writer goes on in a fresh one. All integers are in the machine's own byte order: a segment
never leaves the machine, nor the boot, that made it.

    offset  bytes
         0      8  magic "m31a_seg"
         8      4  version, 1
        12      4  CRC-32 of bytes 16 to 112
        16     16  writer id, hexadecimal
        32      8  number of the first record
        40      8  size of the file
        48      8  pid           \
        56      8  its start      | who the writer is (process.py)
        64      8  pid namespace  |
        72     36  boot id       /
       128      8  drained: records before this offset are in the journal  \ written
       136      8  the number of the record that stands there               | under
       144      8  a check of both, without which torn values would pass    / journal.lock
       152      8  NULs; when its writer stores nothing more in it, "followed" if its records go on in a later
                   segment, which is there by then, and "finished" if they do not
       192     48  records dropped so far, by reason, each with its complement
       256         the records, one JSON line each, then NUL bytes

The name of the file is `WRITER.FIRST.seg`.

A byte that was not stored reads as NUL, which no JSON contains: so the records end at the first NUL, and
whatever part of a store is seen, one that has not arrived as a whole is not taken for a record.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
import zlib
from errno import EISDIR, ELOOP, ENOENT

from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.system import files, flock, process
from m31a_mp.system.process import ProcessIdentity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from m31a_mp.system.files import StrPath

MAGIC = b"m31a_seg"
VERSION = 1
MAX_BYTES = 4 * 1024 * 1024
DROP_REASONS = ("no_space", "io_error", "backlog")

_START = struct.Struct("=8sII")
_IDENTITY = struct.Struct("=16sQQQQQ36s4x")
_DRAINED = struct.Struct("=QQQ")
_IDENTITY_OFFSET = _START.size
_DRAINED_OFFSET = 128
_FINISHED_OFFSET = 152
_DROPPED_OFFSET = 192
DATA_OFFSET = 256

# The same offsets as indices into the header seen as 64-bit words.
_DRAINED_WORD = _DRAINED_OFFSET // 8
_DROPPED_WORD = _DROPPED_OFFSET // 8
_FINISHED_WORD = _FINISHED_OFFSET // 8

_FINISHED = b"finished"
_FOLLOWED = b"followed"
_ALL_ONES = (1 << 64) - 1

_NULS = bytes(64 * 1024)

# A segment of this size is read at once: most have it.
_HEAD_BYTES = 16 * 1024
_HEXADECIMAL = frozenset("0123456789abcdef")


_never_closed: list[mmap.mmap] = []


class DamagedSegmentError(ValueError):
    """The file is no segment that this version can read; the message is the reason."""


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

    __slots__ = ("_file", "_mapping", "_words", "first", "name", "size", "store", "writer")

    def __init__(self, name: str, writer: str, first: int, mapping: mmap.mmap, file: os.stat_result) -> None:
        self._file = (file.st_dev, file.st_ino)
        self.name = name
        self.writer = writer
        self.first = first
        self.size = len(mapping)
        self._mapping = mapping
        self._words = memoryview(mapping)[:DATA_OFFSET].cast("Q")  # storing one is a single aligned store
        mapping.seek(DATA_OFFSET)
        self.store = mapping.write

    @classmethod
    def create(cls, directory: StrPath, writer: str, first: int, size: int) -> Segment:
        """Make a segment of `size` bytes for records from number `first` on.

        Raises:
            FileNotFoundError: Another process took the unfinished one for stillborn, and deleted it.
            OSError: There is no room for it, or another reason not to have it.
        """
        name = f"{directory}/{_file_name(writer, first)}"
        temporary = f"{directory}/.{_file_name(writer, first)}.tmp"
        with files.step("make segment"):
            files.delete_if_there(temporary)  # it was to be given up once, and the disk did not let it
            fd = files.open_private(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with files.changing(fd):  # then the mapping keeps a descriptor of its own, and with it the lock
            try:
                file = os.fstat(fd)
                mapping = cls._make(fd, _header(writer, first, size), size, temporary, name)
            except BaseException:
                try:
                    with files.step("give up segment"):
                        os.unlink(temporary)
                except OSError:
                    pass  # the next attempt deletes it
                raise
        return cls(name, writer, first, mapping, file)

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
        word = _DROPPED_WORD + 2 * DROP_REASONS.index(reason)
        self._words[word] = count
        self._words[word + 1] = count ^ _ALL_ONES

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
        start, first = _drained(self._words, self.size) or (DATA_OFFSET, self.first)
        return first, self._mapping[start : self._mapping.tell()]

    def advance(self, records: bytes) -> None:
        """Note that these lines are in the journal, the first ones of `left()`. As `SegmentFile.advance`."""
        start, first = _drained(self._words, self.size) or (DATA_OFFSET, self.first)
        words = _drained_words(start + len(records), first + records.count(b"\n"))
        self._words[_DRAINED_WORD], self._words[_DRAINED_WORD + 1], self._words[_DRAINED_WORD + 2] = words

    def dropped(self) -> dict[str, int]:
        """How many records its writer dropped so far, by reason."""
        return _drops(self._words)

    def finish(self, *, is_followed: bool) -> None:
        """Note that nothing more is stored in it, and unmap it.

        Args:
            is_followed: The records of its writer go on in a later segment, which is there already.
        """
        word = _FOLLOWED if is_followed else _FINISHED
        self._words[_FINISHED_WORD] = int.from_bytes(word, sys.byteorder)
        self.close()

    def close(self) -> None:
        """Unmap it; the file stays."""
        self._words.release()
        try:
            is_ours = self._mapping.size() == self.size
        except OSError:
            is_ours = True  # its descriptor is closed, and nobody's
        if is_ours:
            self._mapping.close()
        else:
            # The program closed descriptors that it does not know, and has a file of that number now:
            # unmapping would close it.
            _never_closed.append(self._mapping)


def _header(writer: str, first: int, size: int) -> bytes:
    who = process.current()
    identity = _IDENTITY.pack(
        writer.encode(), first, size, who.pid, who.started, who.namespace, who.boot_id.encode()
    )
    header = bytearray(DATA_OFFSET)
    _START.pack_into(header, 0, MAGIC, VERSION, zlib.crc32(identity))
    header[_IDENTITY_OFFSET : _IDENTITY_OFFSET + len(identity)] = identity
    _DRAINED.pack_into(header, _DRAINED_OFFSET, *_drained_words(DATA_OFFSET, first))
    return bytes(header)


def _drained_words(offset: int, number: int) -> tuple[int, int, int]:
    swapped = number >> 32 | (number << 32 & _ALL_ONES)  # no small offset undoes a small number
    return offset, number, offset ^ swapped ^ _ALL_ONES


class Pending:
    """Records of a segment that are not in the journal yet.

    Attributes:
        first: The number of the first one.
        records: The lines.
        start: Where they stand.
        dropped: How many records its writer dropped so far, by reason.
    """

    __slots__ = ("dropped", "first", "records", "start")

    def __init__(self, first: int, records: bytes | memoryview, start: int, dropped: dict[str, int]) -> None:
        self.first = first
        self.records = records
        self.start = start
        self.dropped = dropped


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

    def __init__(self, path: StrPath, fd: int) -> None:
        self.path = path
        self._fd = fd
        header = os.pread(fd, DATA_OFFSET, 0)
        word = header[_FINISHED_OFFSET : _FINISHED_OFFSET + 8]
        self.is_followed = word == _FOLLOWED
        self._is_marked = self.is_followed or word == _FINISHED
        self.writer, self.first, self.size, self.identity = _parse_identity(header, os.path.basename(path))

    @classmethod
    def open(cls, path: StrPath) -> SegmentFile:
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
        return flock.lock_if_free(self._fd) and not process.seen_alive(self.identity)

    def may_be_mapped(self) -> bool:
        """Whether its writer may map it. Only a proof to the contrary counts, and its name proves nothing.

        The kernel's lock alone would not do: a program may close descriptors that it does not know, and on
        some file systems a mapping keeps no lock. The process alone would not do either: it cannot be seen
        from another pid namespace, and may run another program by now.
        """
        if not flock.lock_if_free(self._fd):
            return True
        status = os.fstat(self._fd)
        return process.may_map(self.identity, os.path.basename(self.path), (status.st_dev, status.st_ino))

    def pending(self, *, is_finished: bool) -> Pending:
        """The whole records that the journal has not got.

        Args:
            is_finished: Its writer stores nothing more in it. Then NUL bytes between records are damage: the
                records behind them are not left to be forgotten.
        """
        head = os.pread(self._fd, _HEAD_BYTES, 0)
        words = memoryview(head)[:DATA_OFFSET].cast("Q")
        # Torn or flipped: take all again, their numbers tell which are known already.
        start, first = _drained(words, self.size) or (DATA_OFFSET, self.first)
        is_all = self.size <= _HEAD_BYTES
        stored = head[start : self.size] if is_all else os.pread(self._fd, self.size - start, start)
        end = stored.rfind(b"\n") + 1
        gap = stored.find(b"\0", stored.rfind(b"\n", 0, max(0, end - 1)) + 1 if is_finished else 0, end)
        if gap >= 0:
            end = stored.rfind(b"\n", 0, gap) + 1
        # What is mostly records is not copied; a view of the rest would keep all of it in memory.
        records = memoryview(stored)[:end] if 2 * end > len(stored) else stored[:end]
        return Pending(first, records, start, _drops(words))

    def advance(self, offset: int, number: int) -> None:
        """Note that the records before `offset` are in the journal. The caller holds `journal.lock`.

        Args:
            offset: Where the first record stands that is not.
            number: Its number.
        """
        with files.step("advance segment"):
            os.pwrite(self._fd, _DRAINED.pack(*_drained_words(offset, number)), _DRAINED_OFFSET)


def _drained(words: memoryview, size: int) -> tuple[int, int] | None:
    """Where the first record stands that is not in the journal, and its number; None if it cannot be told."""
    offset, number, check = words[_DRAINED_WORD : _DRAINED_WORD + 3]
    is_whole = check == _drained_words(offset, number)[2]
    return (offset, number) if is_whole and DATA_OFFSET <= offset <= size and number <= INT64_MAX else None


def _drops(words: memoryview) -> dict[str, int]:
    drops = {}
    for i, reason in enumerate(DROP_REASONS):
        count, complement = words[_DROPPED_WORD + 2 * i : _DROPPED_WORD + 2 * i + 2]
        if count and count ^ complement == _ALL_ONES:
            drops[reason] = count
    return drops


def _parse_identity(header: bytes, name: str) -> tuple[str, int, int, ProcessIdentity]:
    if len(header) < DATA_OFFSET:
        raise DamagedSegmentError(f"{len(header)} bytes are too few for a header of {DATA_OFFSET}")
    magic, version, crc = _START.unpack_from(header)
    if magic != MAGIC:
        raise DamagedSegmentError("the magic number is wrong")
    if version != VERSION:
        raise DamagedSegmentError(f"its version is {version}, this library reads {VERSION}")
    identity = header[_IDENTITY_OFFSET : _IDENTITY_OFFSET + _IDENTITY.size]
    if zlib.crc32(identity) != crc:
        raise DamagedSegmentError("the checksum of its header is wrong")
    raw_writer, first, size, pid, started, namespace, raw_boot_id = _IDENTITY.unpack(identity)
    writer = raw_writer.decode(errors="replace")
    if (
        name != _file_name(writer, first)
        or not _HEXADECIMAL.issuperset(writer)
        or size > MAX_BYTES
        or first > INT64_MAX
    ):
        raise DamagedSegmentError("it is not the segment that its name says")
    boot_id = raw_boot_id.rstrip(b"\0").decode(errors="replace")
    return writer, first, size, ProcessIdentity(pid, started, boot_id, namespace)


def _file_name(writer: str, first: int) -> str:
    return f"{writer}.{first:020d}.seg"


def name_parts(name: str) -> tuple[str, int] | None:
    """The writer and the first record number in a segment's file name; None if it is not one's."""
    writer, first = name[:16], name[17:37]
    if name != f"{writer}.{first}.seg" or not _HEXADECIMAL.issuperset(writer):
        return None
    return (writer, int(first)) if len(first) == 20 and first.isascii() and first.isdigit() else None  # noqa: PLR2004


def list_segments(directory: Path) -> list[Path]:
    """The segments there, each writer's oldest first, and none without those before it."""
    return [directory / name for name in _find(directory)[0]]


def find_segments(directory: StrPath) -> tuple[list[str], set[str]]:
    """As `list_segments`; and the writers of whose segments none is among them, though they had one."""
    names, gone = _find(directory)
    return [f"{directory}/{name}" for name in names], gone


def _find(directory: StrPath) -> tuple[list[str], set[str]]:
    # A listing may miss a name that is made meanwhile, and yet have one that is made after it. So the
    # directory is listed twice: what is older than anything in the first listing is in the second.
    first, second = _names(directory), _names(directory)
    writers = {name: parts[0] for name in {*first, *second} if (parts := name_parts(name))}
    newest = {writers[name]: name for name in first if name in writers}
    found = [name for name in second if name not in writers or name <= newest.get(writers[name], "")]
    return found, {*writers.values()} - {writers[name] for name in found if name in writers}


def _names(directory: StrPath) -> list[str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    # Names are of fixed width: this is the order of writers, then of record numbers.
    return sorted(name for name in names if name.endswith(".seg"))


def delete_stillborn(directory: Path) -> None:
    """Delete what a crash left of segments that were being made; nothing was ever recorded in them."""
    for path in directory.glob(".*.seg.tmp"):
        try:
            _delete_if_stillborn(path)
        except OSError:
            pass  # its maker was faster, or the next flush does it


def _delete_if_stillborn(path: Path) -> None:
    fd = files.open_private(path, os.O_RDONLY)
    try:
        if flock.lock_if_free(fd):
            with files.step("delete stillborn segment"):
                path.unlink()
    finally:
        os.close(fd)
