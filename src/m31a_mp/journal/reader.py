"""Reading a journal: whole batches and lines, torn ones, and damage."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import orjson

from m31a_mp.journal.batch import DROP_REASONS, MAX_BATCH_BYTES, MAX_LINE_BYTES, Batch
from m31a_mp.kinds import json
from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.system import files

_HEADER_START = b'{"batch":'
_MAX_WRITER_CHARACTERS = 64
_BUFFER_BYTES = 256 * 1024
# About as long as a header: so what is read in vain for a header is no more than what it takes itself.
_FIRST_STEP = 64


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


Item = Batch | Line | Damage | Torn


def open_to_read(path: str) -> BinaryIO:
    """Open a journal to `read` it; what it is sealed or deleted under meanwhile does not matter.

    Raises:
        OSError: It cannot be opened; `FileNotFoundError` if there is none.
    """
    return open(files.open_private(path, os.O_RDONLY), "rb", buffering=_BUFFER_BYTES)


def read(stream: BinaryIO) -> Iterator[Item]:
    """Read a journal: what stands in it, in order, in memory bounded by the largest batch.

    A torn end is left out. A batch of which only the beginning is there counts as a shorter one. What is
    read behind a `Torn` may be the rest of that append, if it has been filled meanwhile.

    Whatever stands there, no byte is read more than a few times: a header that lies about its length would
    have megabytes read for nothing, and thousands of them would do it again and again. The first one may.
    From then on no more is read for a header than there is before the next one.
    """
    offset = 0
    headers_trusted = True
    while line := stream.readline(MAX_LINE_BYTES):
        torn, nul, _ = line.rpartition(b"\0")
        if nul:
            if not _is_torn_header(torn.strip(b"\0")):
                yield Damage(offset, "bytes that are no text", torn)
            yield Torn(offset + line.index(b"\0"))
            stream.seek(offset + len(torn) + 1)  # a line may have been appended right behind
        elif line.endswith(b"\n"):
            if line.startswith(_HEADER_START):
                items, is_right = _read_batch(stream, line, offset, headers_trusted=headers_trusted)
                headers_trusted = headers_trusted and is_right
                yield from items
            else:
                yield Line(offset, line)
        elif len(line) == MAX_LINE_BYTES:
            _skip_line(stream)
            yield Damage(offset, f"a line of more than {MAX_LINE_BYTES} bytes", line)
        else:
            if _is_whole(line) and not line.startswith(_HEADER_START):
                yield Line(offset, line)
            return  # the end; what is appended meanwhile would be read as a line of its own
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


def _read_batch(
    stream: BinaryIO, line: bytes, offset: int, *, headers_trusted: bool
) -> tuple[list[Item], bool]:
    """Read the batch of that header, and go on behind it. `headers_trusted`: no header lied so far.

    Returns:
        What it is, and whether that is what the header says.
    """
    header = _parse_header(line)
    if header is None:
        return [Damage(offset, "a batch header that cannot be read", line)], True
    start = offset + len(line)
    records = stream.read(header.bytes) if headers_trusted else _read_until_header(stream, header.bytes)
    batch = Batch(header.writer, header.first, records, header.dropped, start)
    if _is_right(batch, header, line):
        return [batch], True
    text = records.rstrip(b"\0")
    is_text = b"\0" not in text and _find_header(text, 0) == len(text)
    if is_text and len(text) < len(records) == header.bytes:
        return _torn(header, text, start), False
    records = _until_next_header(records)
    if len(records) < header.bytes:
        return [_cut_short(stream, header, records, start)], False
    return [_damaged(stream, header, line, records, start)], False


def _is_right(batch: Batch, header: _Header, line: bytes) -> bool:
    records = bytes(batch.records)
    if len(records) != header.bytes or batch.count != header.count or records[-1:] not in (b"", b"\n"):
        return False
    covered = line[: line.rindex(b',"crc32"')]
    return zlib.crc32(records, zlib.crc32(covered)) == header.crc


def _torn(header: _Header, text: bytes, start: int) -> list[Item]:
    """Its process died before it had filled all of it, or is about to: what is whole counts.

    What its writer dropped, it says again.
    """
    records = text[: text.rfind(b"\n") + 1]
    batch = Batch(header.writer, header.first, records, offset=start)
    return [batch, Torn(start + len(text))]


def _cut_short(stream: BinaryIO, header: _Header, records: bytes, start: int) -> Batch:
    """The file was cut, and perhaps went on: the lines keep their numbers, as those of a torn batch do."""
    whole = _first_lines(records, header.count, ended=_is_whole(records.rpartition(b"\n")[2]))
    stream.seek(start + len(whole))
    lines = whole.removesuffix(b"\n") + b"\n" if whole else b""
    return Batch(header.writer, header.first, lines, offset=start)


def _damaged(stream: BinaryIO, header: _Header, line: bytes, records: bytes, start: int) -> Damage:
    """It is all there, and wrong. Its length or count may be that: the shorter one leaves more to others."""
    records = _first_lines(records, header.count, ended=True)
    stream.seek(start + len(records))
    if records and not records.endswith(b"\n"):  # the length ends within a line, or right before a record
        rest = stream.readline(MAX_LINE_BYTES).partition(b"\0")[0]
        records += b"" if rest.startswith(b"{") else rest
        stream.seek(start + len(records))
    return Damage(start - len(line), "a batch whose checksum, length or count is wrong", line + records)


def _first_lines(text: bytes, count: int, *, ended: bool) -> bytes:
    """The first `count` lines; one without its newline is among them if it is `ended` all the same."""
    end = 0
    for _ in range(count):
        newline = text.find(b"\n", end)
        if newline < 0:
            return text if ended else text[:end]
        end = newline + 1
    return text[:end]


def _read_until_header(stream: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or fewer if a header is among them: not much more than there is before it."""
    records, step = b"", _FIRST_STEP
    while len(records) < size and (piece := stream.read(min(step, size - len(records)))):
        seam = max(0, len(records) - len(_HEADER_START))
        records += piece
        if _find_header(records, seam) < len(records):
            break
        step = len(records)
    return records


def _until_next_header(records: bytes) -> bytes:
    return records[: _find_header(records, 0)]


def _find_header(records: bytes, start: int) -> int:
    """The place of the next header, at the start of a line or behind a NUL as in `read`; else the end."""
    found = records.find(_HEADER_START, start)
    while found > 0 and records[found - 1] not in b"\n\0":
        found = records.find(_HEADER_START, found + 1)
    return len(records) if found < 0 else found


def _parse_header(line: bytes) -> _Header | None:
    """None when that is not what stands there."""
    try:
        header = json.parse(line)
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
    if not dropped.keys() <= set(DROP_REASONS):
        return None
    if size > MAX_BATCH_BYTES or b',"crc32"' not in line:
        return None
    return _Header(writer, first, count, size, dropped, crc)


def _is_whole(text: bytes) -> bool:
    """Whether a last line without its newline is complete all the same."""
    try:
        return isinstance(json.parse(text), dict)
    except orjson.JSONDecodeError:
        return False
