"""What stands in a journal: whole batches and lines, torn ones, and damage."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from m31a_mp import durable, segment
from m31a_mp.checks import INT64_MAX
from m31a_mp.journal import MAX_LINE_BYTES, Batch

MAX_BATCH_BYTES = segment.MAX_BYTES

_HEADER_START = b'{"batch":'
_MAX_WRITER_CHARACTERS = 64
_BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """A record that was appended on its own."""

    offset: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are neither a batch nor a line: where, why, and (the beginning of) what."""

    offset: int
    reason: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Torn:
    """Room for an append that is not filled: its process died in it, or is in the middle of it."""

    offset: int


def open_to_read(path: Path) -> BinaryIO:
    """Open a journal to `read` it; what it is sealed or deleted under meanwhile does not matter.

    Raises:
        OSError: It cannot be opened; `FileNotFoundError` if there is none.
    """
    return open(durable.open_private(path, os.O_RDONLY), "rb", buffering=_BUFFER_BYTES)


def read(stream: BinaryIO) -> Iterator[Batch | Line | Damage | Torn]:
    """What stands in a journal, in order, in memory bounded by the largest batch.

    A torn end is left out. A batch of which only the beginning is there counts as a shorter one. What is
    read behind a `Torn` may be the rest of that append, if it has been filled meanwhile.
    """
    offset = 0
    is_sound = True
    while line := stream.readline(MAX_LINE_BYTES):
        torn, nul, _ = line.rpartition(b"\0")
        if nul:
            if not _is_torn_header(torn.strip(b"\0")):
                yield Damage(offset, "bytes that are no text", torn)
            yield Torn(offset + line.index(b"\0"))
            stream.seek(offset + len(torn) + 1)  # a line may have been appended right behind
        elif line.endswith(b"\n"):
            if line.startswith(_HEADER_START):
                item, is_right = _read_batch(stream, line, offset, is_sound=is_sound)
                is_sound = is_sound and is_right
                yield item
            else:
                yield Line(offset, line)
        elif len(line) == MAX_LINE_BYTES:
            _skip_line(stream)
            yield Damage(offset, f"a line of more than {MAX_LINE_BYTES} bytes", line)
        elif _is_whole(line) and not line.startswith(_HEADER_START):
            yield Line(offset, line)
        offset = stream.tell()


def _is_torn_header(text: bytes) -> bool:
    """Whether a crash may have left this of a batch: nothing, or the beginning of its header."""
    return text.startswith(_HEADER_START) or _HEADER_START.startswith(text)


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


@dataclass(frozen=True, slots=True)
class _Header:
    writer: str
    first: int
    count: int
    bytes: int
    dropped: dict[str, int]
    crc: int


def _read_batch(stream: BinaryIO, line: bytes, offset: int, *, is_sound: bool) -> tuple[Batch | Damage, bool]:
    """A batch, and whether it is what its header says. `is_sound`: so far they all were."""
    header = _parse_header(line)
    if header is None:
        return Damage(offset, "a batch header that cannot be read", line), True
    # Where one header lied, others may: then no more is read for one than it has.
    records = stream.read(header.bytes) if is_sound else _read_until_header(stream, header.bytes)
    batch = Batch(header.writer, header.first, records, header.dropped, offset + len(line))
    if len(records) == header.bytes and batch.count == header.count:
        covered = line[: line.rindex(b',"crc32"')]
        if zlib.crc32(records, zlib.crc32(covered)) == header.crc:
            return batch, True
    return _read_what_is_there(stream, line, header, batch), False


def _read_what_is_there(stream: BinaryIO, line: bytes, header: _Header, batch: Batch) -> Batch | Damage:
    """Of a batch that is not what its header says: a shorter one if it is torn, else the damage."""
    start, records = batch.offset, bytes(batch.records)
    text, nul, rest = records.partition(b"\0")
    if nul and len(records) == header.bytes and not rest.strip(b"\0"):
        return _shortened(batch, text[: text.rfind(b"\n") + 1])  # torn
    records = _until_next_header(records)
    if len(records) < header.bytes:
        # The file was cut short. Its lines keep their numbers, as those of a torn batch do.
        whole = _first_lines(records, header.count, ended=_is_whole(records.rpartition(b"\n")[2]))
        stream.seek(start + len(whole))
        return _shortened(batch, whole.removesuffix(b"\n") + b"\n" if whole else b"")
    # Length or count may be what is wrong: the shorter of the two leaves more to others.
    records = _first_lines(records, header.count, ended=True)
    stream.seek(start + len(records))
    if records and not records.endswith(b"\n") and stream.read(1) not in (b"{", b""):
        stream.seek(start + len(records))  # the length ends within a line
        records += stream.readline(MAX_LINE_BYTES)
    stream.seek(start + len(records))
    return Damage(start - len(line), "a batch whose checksum, length or count is wrong", line + records)


def _shortened(batch: Batch, records: bytes) -> Batch:
    """A torn batch: so many of its records. What its writer dropped, it says again."""
    return Batch(batch.writer, batch.first, records, offset=batch.offset)


def _first_lines(text: bytes, count: int, *, ended: bool) -> bytes:
    """The first `count` lines; one without its newline is among them if it is `ended` all the same."""
    lines = re.findall(rb"[^\n]*\n|[^\n]+\Z", text)
    if lines and not ended and not lines[-1].endswith(b"\n"):
        lines.pop()
    return b"".join(lines[:count])


def _read_until_header(stream: BinaryIO, size: int) -> bytes:
    """So many bytes; or fewer, if a header is among them: one that lies costs little more than it has."""
    records, piece, step = b"", b"", 4 * 1024
    while len(records) < size and (piece := stream.read(min(step, size - len(records)))):
        seam = max(0, len(records) - len(_HEADER_START))
        records += piece
        if records.startswith(_HEADER_START) or records.find(b"\n" + _HEADER_START, seam) >= 0:
            break
        step = len(records)
    return records


def _until_next_header(records: bytes) -> bytes:
    if records.startswith(_HEADER_START):
        return b""
    found = records.find(b"\n" + _HEADER_START)
    return records if found < 0 else records[: found + 1]


def _parse_header(line: bytes) -> _Header | None:
    """None when that is not what stands there."""
    try:
        header = orjson.loads(line)
        writer, dropped = header["batch"], header.get("dropped", {})
        first, count, size = header["first"], header["count"], header["bytes"]
        crc = int(header["crc32"], 16)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    numbers = [first, count, size, *dropped.values()] if isinstance(dropped, dict) else [None]
    if not isinstance(writer, str) or len(writer) > _MAX_WRITER_CHARACTERS:
        return None
    if not all(type(n) is int and 0 <= n <= INT64_MAX for n in numbers):
        return None
    if not dropped.keys() <= set(segment.DROP_REASONS):
        return None
    if size > MAX_BATCH_BYTES or b',"crc32"' not in line:
        return None
    return _Header(writer, first, count, size, dropped, crc)


def _is_whole(text: bytes) -> bool:
    """Whether a last line without its newline is complete all the same."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
