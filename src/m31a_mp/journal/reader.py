"""Reading a journal: whole batches and lines, torn ones, and damage."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import orjson

from m31a_mp.journal.batch import DROP_REASONS, MAX_BATCH_BYTES, MAX_LINE_BYTES, Batch
from m31a_mp.kinds import json
from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.system import files

_HEADER_START = b'{"batch":'
_MAX_WRITER_CHARACTERS = 64
_BUFFER_BYTES = 256 * 1024
# About the length of a header: a header causes no more useless reading than its own length.
_FIRST_STEP = 64


class Lines(NamedTuple):
    """Records that were appended on their own, one or more, each with its newline but perhaps the last."""

    offset: int
    text: bytes


class Damage(NamedTuple):
    """Bytes that are neither a batch nor a line: the offset, the reason, and the data or its beginning."""

    offset: int
    reason: str
    data: bytes


class Torn(NamedTuple):
    """Room of an append that is not filled: its process died during the append, or is still writing."""

    offset: int


Item = Batch | Lines | Damage | Torn


def open_to_read(path: str) -> BinaryIO:
    """Open a journal for `read`. The stream stays valid if the journal is sealed or deleted meanwhile.

    Raises:
        OSError: The journal cannot be opened; `FileNotFoundError` if there is none.
    """
    return open(files.open_private(path, os.O_RDONLY), "rb", buffering=_BUFFER_BYTES)


def read(stream: BinaryIO, offset: int = 0) -> Iterator[Item]:
    """Yield the items of a journal from an offset on, in order, in memory bounded by the largest batch.

    A torn line at the end is left out. A torn batch is yielded as a shorter batch. Items after a `Torn` may
    be the rest of this append, if its process filled it meanwhile.

    No byte is read more than a few times, whatever the journal contains. A header with a wrong length could
    cause megabytes of useless reading, and thousands of such headers would repeat it. The reader therefore
    trusts lengths only up to the first wrong header. After it, the reader stops at the next header.
    """
    stream.seek(offset)
    headers_trusted = True
    while line := stream.readline(MAX_LINE_BYTES):
        torn, nul, _ = line.rpartition(b"\0")
        if nul:
            stream.seek(offset + len(torn) + 1)  # a line may have been appended directly after the NULs
            if not _is_torn_header(torn.strip(b"\0")):
                yield Damage(offset, "bytes that are not text", torn)
            yield Torn(offset + line.index(b"\0"))
        elif line.endswith(b"\n"):
            if line.startswith(_HEADER_START):
                items, is_right = _read_batch(stream, line, offset, headers_trusted=headers_trusted)
                headers_trusted = headers_trusted and is_right
                yield from items
            else:
                yield Lines(offset, line + _read_lines(stream, 2 * len(line)))
        elif len(line) == MAX_LINE_BYTES:
            _skip_line(stream)
            yield Damage(offset, f"a line of more than {MAX_LINE_BYTES} bytes", line)
        else:
            if _is_whole(line) and not line.startswith(_HEADER_START):
                yield Lines(offset, line)
            return  # stop here: the rest of this line, appended meanwhile, would be read as a separate line
        offset = stream.tell()


def _read_lines(stream: BinaryIO, step: int) -> bytes:
    """Read the lines before the next header, NUL or torn line, not more than `MAX_LINE_BYTES` in all.

    Args:
        stream: A journal, behind a line.
        step: Bytes to read at first. As long as at least half of a step are lines, the next one is twice as
            long: what is read in vain is no more than a few times what is returned.
    """
    lines = b""
    while len(lines) + step <= MAX_LINE_BYTES:
        start, piece = stream.tell(), stream.read(step)
        text = piece[: _find_header(piece, 0)].partition(b"\0")[0]
        text = text[: text.rfind(b"\n") + 1]
        lines += text
        if len(text) < len(piece):
            stream.seek(start + len(text))
        if len(text) < step // 2:
            break
        step *= 2
    return lines


def _is_torn_header(text: bytes) -> bool:
    """Whether the text may be the start of a torn batch: nothing, or the beginning of a header."""
    return text.startswith(_HEADER_START) or _HEADER_START.startswith(text)


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


class _Header(NamedTuple):
    writer: str
    first: int
    records: int
    size: int
    dropped: dict[str, int]
    crc: int


def _read_batch(
    stream: BinaryIO, line: bytes, offset: int, *, headers_trusted: bool
) -> tuple[list[Item], bool]:
    """Read the batch of a header, and leave the stream after the batch.

    `headers_trusted` means that no header was wrong so far.

    Returns:
        The items, and whether they match the header.
    """
    header = _parse_header(line)
    if header is None:
        return [Damage(offset, "a batch header that cannot be read", line)], True
    start = offset + len(line)
    records = stream.read(header.size) if headers_trusted else _read_until_header(stream, header.size)
    batch = Batch(header.writer, header.first, records, header.dropped, start)
    if _is_right(batch, header, line):
        batch.room = header.size
        return [batch], True
    text = records.rstrip(b"\0")
    is_text = b"\0" not in text and _find_header(text, 0) == len(text)
    if is_text and len(text) < len(records) == header.size:
        return _torn(header, text, start), False
    records = _until_next_header(records)
    if len(records) < header.size:
        return [_cut_short(stream, header, records, start)], False
    return [_damaged(stream, header, line, records, start)], False


def _is_right(batch: Batch, header: _Header, line: bytes) -> bool:
    records = bytes(batch.records)
    if len(records) != header.size or batch.count != header.records or records[-1:] not in (b"", b"\n"):
        return False
    covered = line[: line.rindex(b',"crc32"')]
    return zlib.crc32(records, zlib.crc32(covered)) == header.crc


def _torn(header: _Header, text: bytes, start: int) -> list[Item]:
    """Return the whole records of a batch that its process did not fill, or has not filled yet.

    The drop counts are left out: the writer states them again.
    """
    records = text[: text.rfind(b"\n") + 1]
    batch = Batch(header.writer, header.first, records, offset=start)
    batch.room = header.size
    return [batch, Torn(start + len(text))]


def _cut_short(stream: BinaryIO, header: _Header, records: bytes, start: int) -> Batch:
    """Return the whole lines of a batch whose file was cut, and perhaps extended. They keep their numbers."""
    whole = _first_lines(records, header.records, ended=_is_whole(records.rpartition(b"\n")[2]))
    stream.seek(start + len(whole))
    lines = whole.removesuffix(b"\n") + b"\n" if whole else b""
    return Batch(header.writer, header.first, lines, offset=start)


def _damaged(stream: BinaryIO, header: _Header, line: bytes, records: bytes, start: int) -> Damage:
    """Return a complete but wrong batch as Damage. If its length and count differ, take the shorter one."""
    records = _first_lines(records, header.records, ended=True)
    stream.seek(start + len(records))
    if records and not records.endswith(b"\n"):  # the length ends in a line, or directly before a record
        rest = stream.readline(MAX_LINE_BYTES).partition(b"\0")[0]
        records += b"" if rest.startswith(b"{") else rest
        stream.seek(start + len(records))
    return Damage(start - len(line), "a batch whose checksum, length or count is wrong", line + records)


def _first_lines(text: bytes, count: int, *, ended: bool) -> bytes:
    """Return the first `count` lines. `ended`: a last line without its newline is complete, and included."""
    end = 0
    for _ in range(count):
        newline = text.find(b"\n", end)
        if newline < 0:
            return text if ended else text[:end]
        end = newline + 1
    return text[:end]


def _read_until_header(stream: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or little more than the bytes before the next header if there is one."""
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
    """Return the offset of the next header, which follows a newline or a NUL as in `read`; else the end."""
    found = records.find(_HEADER_START, start)
    while found > 0 and records[found - 1] not in b"\n\0":
        found = records.find(_HEADER_START, found + 1)
    return len(records) if found < 0 else found


def _parse_header(line: bytes) -> _Header | None:
    """Parse a header line. Return None if the line is not a valid header."""
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
    """Whether a last line without its newline is a complete JSON object."""
    try:
        return isinstance(json.parse(text), dict)
    except orjson.JSONDecodeError:
        return False
