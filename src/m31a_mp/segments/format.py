r"""The format of segments: records staged in shared memory, where they survive the death of their process.

A segment is one file, mapped by one writer and read by any process. The writer only appends to a segment.
When the segment is full, the writer continues in a new one. All integers are in the machine's byte order,
because a segment is only read on the machine, and during the boot, that made it.

    offset  bytes
         0      8  magic "m31a_seg"
         8      4  version, 1
        12      4  CRC-32 of bytes 16 to 112
        16     16  writer id, hexadecimal
        32      8  number of the first record
        40      8  size of the file
        48      8  pid           \
        56      8  its start      | the process of the writer (process.py)
        64      8  pid namespace  |
        72     36  boot id       /
       128      8  drained: records before this offset are in the journal  \ written
       136      8  the number of the record at this offset                  | under
       144      8  a check of both: it reveals torn values                  / journal.lock
       152      8  NULs while the writer may store more; then "followed" if its records continue in a later
                   segment, which exists by then, or "finished" if they do not
       192     48  records dropped so far, by reason, each with its complement
       256         the records, one JSON line each, then NUL bytes

The name of the file is `WRITER.FIRST.seg`.

A byte that was not stored reads as NUL, and JSON contains no NUL. The records therefore end at the first
NUL. A reader that sees only a part of a store does not take this part for a record.
"""

from __future__ import annotations

import struct
import zlib

from m31a_mp.journal.batch import DROP_REASONS, MAX_BATCH_BYTES
from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.system import process
from m31a_mp.system.process import ProcessIdentity

MAGIC = b"m31a_seg"
VERSION = 1
_START = struct.Struct("=8sII")
_IDENTITY = struct.Struct("=16sQQQQQ36s4x")
DRAINED = struct.Struct("=QQQ")
_IDENTITY_OFFSET = _START.size
DRAINED_OFFSET = 128
FINISHED_OFFSET = 152
_DROPPED_OFFSET = 192
DATA_OFFSET = 256
# The same offsets, as indices of 64-bit words.
DRAINED_WORD = DRAINED_OFFSET // 8
DROPPED_WORD = _DROPPED_OFFSET // 8
FINISHED_WORD = FINISHED_OFFSET // 8
FINISHED = b"finished"
FOLLOWED = b"followed"
ALL_ONES = (1 << 64) - 1
_HEXADECIMAL = frozenset("0123456789abcdef")


class DamagedSegmentError(ValueError):
    """The file is not a segment that this version can read. The message states the reason."""


def header(writer: str, first: int, size: int) -> bytes:
    who = process.current()
    identity = _IDENTITY.pack(
        writer.encode(), first, size, who.pid, who.started, who.namespace, who.boot_id.encode()
    )
    header = bytearray(DATA_OFFSET)
    _START.pack_into(header, 0, MAGIC, VERSION, zlib.crc32(identity))
    header[_IDENTITY_OFFSET : _IDENTITY_OFFSET + len(identity)] = identity
    DRAINED.pack_into(header, DRAINED_OFFSET, *drained_words(DATA_OFFSET, first))
    return bytes(header)


def drained_words(offset: int, number: int) -> tuple[int, int, int]:
    # Swap the halves: otherwise a small offset and a small number could cancel out in the check.
    swapped = number >> 32 | (number << 32 & ALL_ONES)
    return offset, number, offset ^ swapped ^ ALL_ONES


def drained(words: memoryview, size: int) -> tuple[int, int] | None:
    """Return the offset and number of the first record not in the journal; None if the check fails."""
    offset, number, check = words[DRAINED_WORD : DRAINED_WORD + 3]
    is_whole = check == drained_words(offset, number)[2]
    return (offset, number) if is_whole and DATA_OFFSET <= offset <= size and number <= INT64_MAX else None


def drops(words: memoryview) -> dict[str, int]:
    drops = {}
    for i, reason in enumerate(DROP_REASONS):
        count, complement = words[DROPPED_WORD + 2 * i : DROPPED_WORD + 2 * i + 2]
        if count and count ^ complement == ALL_ONES:
            drops[reason] = count
    return drops


def parse_identity(header: bytes, name: str) -> tuple[str, int, int, ProcessIdentity]:
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
        name != file_name(writer, first)
        or not _HEXADECIMAL.issuperset(writer)
        or size > MAX_BATCH_BYTES
        or first > INT64_MAX
    ):
        raise DamagedSegmentError("its header does not fit its name, or has a value out of range")
    boot_id = raw_boot_id.rstrip(b"\0").decode(errors="replace")
    return writer, first, size, ProcessIdentity(pid, started, boot_id, namespace)


def file_name(writer: str, first: int) -> str:
    return f"{writer}.{first:020d}.seg"


def name_parts(name: str) -> tuple[str, int] | None:
    """Return the writer and the first record number in a segment's file name; None for another name."""
    writer, first = name[:16], name[17:37]
    if name != f"{writer}.{first}.seg" or not _HEXADECIMAL.issuperset(writer):
        return None
    return (writer, int(first)) if len(first) == 20 and first.isascii() and first.isdigit() else None  # noqa: PLR2004
