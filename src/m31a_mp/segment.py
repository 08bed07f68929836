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
       128      8  drained: records before this offset are in the journal   \ written under
       136      8  its complement, without which a torn value would pass    / journal.lock
       192      8  committed: records before this offset are whole          \ written by the
       200     48  records dropped so far, by reason, each with complement  / writer alone
       256         the records, one JSON line each, then NUL bytes

The name of the file is `WRITER.FIRST.seg`.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from errno import EINVAL, EISDIR, ELOOP, ENOENT, EOPNOTSUPP
from pathlib import Path
from typing import Final, Self

from filelock import lock_descriptor

from m31a_mp import durable, process
from m31a_mp.process import ProcessIdentity

MAGIC = b"m31a_seg"
VERSION = 1
MAX_BYTES = 4 * 1024 * 1024
DROP_REASONS = ("no_space", "io_error", "backlog")

_START = struct.Struct("=8sII")
_IDENTITY = struct.Struct("=16sQQQQQ36s4x")
_WORD = struct.Struct("=Q")
_IDENTITY_OFFSET = _START.size
_DRAINED_OFFSET = 128
_COMMITTED_OFFSET = 192
_DROPPED_OFFSET = _COMMITTED_OFFSET + _WORD.size
DATA_OFFSET = 256

# The same offsets as indices into the header seen as 64-bit words.
COMMITTED: Final = _COMMITTED_OFFSET // _WORD.size
DROPPED: Final = _DROPPED_OFFSET // _WORD.size

_ALL_ONES = (1 << 64) - 1
_NAME = re.compile(r"([0-9a-f]{16})\.(\d{20})\.seg")


_never_closed: list[mmap.mmap] = []


class DamagedSegmentError(ValueError):
    """The file is no segment that this version can read; the message is the reason."""


class Segment:
    """A segment as its writer holds it: mapped, growing.

    Attributes:
        path: Its file.
        first: The number of its first record.
        size: Bytes in the file.
        memory: The mapped file.
        words: Its header as native 64-bit words; storing one is a single aligned store.
    """

    __slots__ = ("first", "memory", "path", "size", "words")

    def __init__(self, path: Path, first: int, memory: mmap.mmap) -> None:
        self.path = path
        self.first = first
        self.size = len(memory)
        self.memory = memory
        self.words = memoryview(memory)[:DATA_OFFSET].cast("Q")

    @classmethod
    def create(cls, directory: Path, writer: str, first: int, size: int) -> Segment:
        """Make a segment of `size` bytes for records from number `first` on.

        Raises:
            FileNotFoundError: Another process took the unfinished one for stillborn, and deleted it.
            OSError: There is no room for it, or another reason not to have it.
        """
        path = directory / f"{writer}.{first:020d}.seg"
        temporary = directory / f".{path.name}.tmp"
        with durable.step("make segment"):
            fd = durable.open_private(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            # The lock is the proof of life that needs no pid: the kernel drops it when the last process
            # that maps the file is gone. (A forked child unmaps it.)
            if not lock_descriptor(fd, blocking=False):
                raise FileNotFoundError(ENOENT, "taken for stillborn", str(temporary))
            with durable.step("allocate segment"):
                _allocate(fd, size)
                os.pwrite(fd, _header(writer, first, size), 0)
            memory = mmap.mmap(fd, size)
            # Last: under this name a reader never meets a segment without its space and its header.
            with durable.step("rename segment"):
                os.rename(temporary, path)
        except BaseException:
            with suppress(OSError), durable.step("give up segment"):
                temporary.unlink()
            raise
        finally:
            os.close(fd)  # the mapping keeps its own descriptor, and with it the lock
        return cls(path, first, memory)

    def show_dropped(self, reason: str, count: int) -> None:
        """Let the owner know how many records the writer dropped so far for that reason."""
        index = DROPPED + 2 * DROP_REASONS.index(reason)
        self.words[index] = count
        self.words[index + 1] = count ^ _ALL_ONES

    @property
    def committed(self) -> int:
        """The offset behind its last whole record."""
        return self.words[COMMITTED]

    def records(self) -> int:
        """How many records it has taken."""
        return self.memory[DATA_OFFSET : self.committed].count(b"\n")

    def close(self) -> None:
        """Unmap it; the file stays."""
        self.words.release()
        try:
            is_ours = self.memory.size() == self.size
        except OSError:
            is_ours = True  # its descriptor is closed, and nobody's
        if is_ours:
            self.memory.close()
        else:
            # The program closed descriptors that it does not know, and has a file of that number now:
            # unmapping would close it.
            _never_closed.append(self.memory)

    def is_drained(self) -> bool:
        """Whether all of it is in the journal, whoever took it there."""
        return self.words[_DRAINED_OFFSET // _WORD.size] == self.words[COMMITTED]

    def delete(self) -> None:
        """Delete the file, all of which is in the journal. If that fails, the owner will do it."""
        with suppress(OSError), durable.step("delete own segment"):
            self.path.unlink(missing_ok=True)


def _allocate(fd: int, size: int) -> None:
    # Not ftruncate: writing into a hole of a full disk is a SIGBUS, which kills the host program.
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (EINVAL, EOPNOTSUPP):
            raise
        durable.write_all(fd, bytes(size))  # macOS, and file systems that cannot


def _header(writer: str, first: int, size: int) -> bytes:
    who = process.current()
    identity = _IDENTITY.pack(
        writer.encode(), first, size, who.pid, who.started, who.namespace, who.boot_id.encode()
    )
    header = bytearray(DATA_OFFSET)
    _START.pack_into(header, 0, MAGIC, VERSION, zlib.crc32(identity))
    header[_IDENTITY_OFFSET : _IDENTITY_OFFSET + len(identity)] = identity
    header[_DRAINED_OFFSET : _DRAINED_OFFSET + 16] = _drained_words(DATA_OFFSET)
    _WORD.pack_into(header, _COMMITTED_OFFSET, DATA_OFFSET)
    return bytes(header)


def _drained_words(offset: int) -> bytes:
    return _WORD.pack(offset) + _WORD.pack(offset ^ _ALL_ONES)


@dataclass(frozen=True, slots=True)
class Pending:
    """Records of a segment that are not in the journal yet; they stand from `start` to `end`."""

    first: int
    records: bytes
    start: int
    end: int
    dropped: dict[str, int]


class SegmentFile:
    """A segment as everybody else sees it. Read with system calls: a file cut short is no SIGBUS."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        header = os.pread(fd, DATA_OFFSET, 0)
        self.writer, self.first, self.size, self._identity = _parse_identity(header, path.name)

    @classmethod
    def open(cls, path: Path) -> SegmentFile:
        """Open the segment.

        Raises:
            DamagedSegmentError: It is none, or of another version.
            OSError: It cannot be opened or read, for instance because it is gone.
        """
        try:
            fd = durable.open_private(path, os.O_RDWR)
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
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_dead(self) -> bool:
        """Whether its writer is proven dead: nobody maps the file, and the process is not seen alive.

        The lock alone would not do, for a program may close descriptors that it does not know; nor the
        process alone, which cannot be seen from another pid namespace.
        """
        return lock_descriptor(self._fd, blocking=False) and not process.seen_alive(self._identity)

    def pending(self, *, dead: bool) -> Pending:
        """The whole records that the journal has not got.

        Args:
            dead: The writer is proven dead. Then whatever stands there whole counts, committed or not: the
                last record may have been stored and not committed.
        """
        words = memoryview(os.pread(self._fd, DATA_OFFSET, 0)).cast("Q")
        before = os.pread(self._fd, _drained(words, self.size) - DATA_OFFSET, DATA_OFFSET)
        if not before.endswith(b"\n"):
            before = b""  # an offset within a record was never stored: take all again
        start = DATA_OFFSET + len(before)
        end = words[COMMITTED]
        if dead or not start <= end <= self.size:
            end = self.size
        # A store that has not arrived yet reads as NUL, which no JSON contains.
        records = os.pread(self._fd, end - start, start).partition(b"\0")[0]
        records = records[: records.rfind(b"\n") + 1]
        return Pending(self.first + before.count(b"\n"), records, start, start + len(records), _drops(words))

    def advance(self, offset: int) -> None:
        """Note that the records before `offset` are in the journal. The caller holds `journal.lock`."""
        with durable.step("advance segment"):
            os.pwrite(self._fd, _drained_words(offset), _DRAINED_OFFSET)


def _drained(words: memoryview, size: int) -> int:
    index = _DRAINED_OFFSET // _WORD.size
    drained, complement = words[index], words[index + 1]
    if drained ^ complement != _ALL_ONES or not DATA_OFFSET <= drained <= size:
        return DATA_OFFSET  # torn: take all again, their numbers tell which are known already
    return int(drained)


def _drops(words: memoryview) -> dict[str, int]:
    drops = {}
    for i, reason in enumerate(DROP_REASONS):
        count, complement = words[DROPPED + 2 * i], words[DROPPED + 2 * i + 1]
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
    if name_parts(name) != (writer, first) or size > MAX_BYTES:
        raise DamagedSegmentError("it is not the segment that its name says")
    boot_id = raw_boot_id.rstrip(b"\0").decode(errors="replace")
    return writer, first, size, ProcessIdentity(pid, started, boot_id, namespace)


def name_parts(name: str) -> tuple[str, int] | None:
    """The writer and the first record number in a segment's file name; None if it is not one's."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def list_segments(directory: Path) -> list[Path]:
    """The segments there, each writer's oldest first, and none without those before it.

    A listing may miss a name that is made meanwhile, and yet have one that is made after it. So the
    directory is listed twice: what is older than anything in the first listing is in the second.
    """
    newest = {parts[0]: name for name in _names(directory) if (parts := name_parts(name))}
    names = (name for name in _names(directory) if not _is_newer(name, newest))
    return [directory / name for name in names]


def _names(directory: Path) -> list[str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    # Names are of fixed width: this is the order of writers, then of record numbers.
    return sorted(name for name in names if name.endswith(".seg"))


def _is_newer(name: str, newest: dict[str, str]) -> bool:
    parts = name_parts(name)
    return parts is not None and name > newest.get(parts[0], "")


def delete_stillborn(directory: Path) -> None:
    """Delete what a crash left of segments that were being made; nothing was ever recorded in them."""
    for path in directory.glob(".*.seg.tmp"):
        with suppress(OSError):
            fd = durable.open_private(path, os.O_RDONLY)
            try:
                if lock_descriptor(fd, blocking=False):
                    with durable.step("delete stillborn segment"):
                        path.unlink()
            finally:
                os.close(fd)
