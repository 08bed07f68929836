"""The journal: records on their way to `metrics.json`, appended under a file lock.

It is a text file of lines. A line is a record, which any program may append on its own under
`flock journal.lock`, or the header of a batch, which says what the lines after it are:

    {"batch":"5e1f0c2ad1b2a3c4","first":1,"count":2,"bytes":190,"crc32":"0badcafe"}
    {"event":"tool_call","time":1795388400123456789,"name":"bash","success":true,"duration_ms":12}
    {"event":"phase_transition","time":1795388400123459000,"phase":"plan"}

`batch` is the writer's id, `first` the number of its first record in the batch, `bytes` the length of the
lines. `dropped`, where it stands, is what the writer had to drop so far, by reason. `crc32` covers the
header up to its own key, then the lines. Writer and number make a batch idempotent.

Torn and damaged are two things. A *torn* batch or line ends before its time, because its writer died or
the power failed: that is normal. What is whole of it counts, and is not counted again when it comes
again, from the segment that still has it. A *damaged* batch is complete and wrong: it is set aside, whole.

An append first makes the file longer, then fills it. So a torn batch is as long as it should be, its end
being NUL bytes, and what others append after it cannot be taken for a part of it.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import get_ident
from typing import BinaryIO

import orjson

from m31a_mp import durable, process, segment
from m31a_mp.checks import INT64_MAX
from m31a_mp.errors import InterruptedCallError, JournalLockedError
from m31a_mp.lock import FileLock, holders
from m31a_mp.session import Session

MAX_LINE_BYTES = 64 * 1024
MAX_BATCH_BYTES = segment.MAX_BYTES
LOCK_SECONDS = 5.0

_HEADER_START = b'{"batch":'
_MAX_WRITER_CHARACTERS = 64
_BUFFER_BYTES = 256 * 1024


def count_lines(text: bytes) -> int:
    """How often a newline stands there; in half the time of `text.count()`."""
    return len(text) - len(text.replace(b"\n", b""))


@dataclass(slots=True)
class Batch:
    """Consecutive records of one writer.

    Attributes:
        writer: The writer's id.
        first: The number of its first record in the batch; a writer counts from 1.
        records: The lines, each with its newline.
        dropped: How many records the writer dropped so far, by reason.
        offset: Where its records start in the file that it was read from.
        count: How many records it has.
    """

    writer: str
    first: int
    records: bytes
    dropped: dict[str, int] = field(default_factory=dict)
    offset: int = 0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = count_lines(self.records)

    def encode(self) -> bytes:
        """The batch as it stands in the journal."""
        dropped = b',"dropped":' + orjson.dumps(self.dropped) if self.dropped else b""
        header = b'{"batch":"%b","first":%d,"count":%d,"bytes":%d%b' % (
            self.writer.encode(), self.first, self.count, len(self.records), dropped,
        )  # fmt: skip
        crc = zlib.crc32(self.records, zlib.crc32(header))
        return b'%b,"crc32":"%08x"}\n%b' % (header, crc, self.records)


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


# Who holds which lock in this process: the lock's path and the thread. And what was asked of a thread by
# a signal handler that interrupted it there, to be done when it has given the lock back.
_holding: set[tuple[Path, int]] = set()
_deferred: dict[tuple[Path, int], list[Callable[[], None]]] = {}


def _after_fork_in_child() -> None:
    _holding.clear()
    _deferred.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Journal:
    """The journal of a session, to append to and to seal."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def locked(self, timeout: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold `journal.lock` meanwhile.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            JournalLockedError: Somebody else held it all the time; says who.
            InterruptedCallError: The very call that holds it was interrupted by this one.
        """
        path = self._session.journal_lock
        if (path, get_ident()) in _holding:
            raise InterruptedCallError(
                "a signal handler or a finalizer interrupted a call that holds the journal's lock; "
                "call this again later",
                path,
            )
        with self._held(timeout) as held:
            if not held:
                raise _locked_error(path, timeout)
            yield

    @contextmanager
    def locked_if_free(self) -> Iterator[bool]:
        """Hold `journal.lock` meanwhile if it is free now; yields whether it was. Never waits."""
        with self._held(0.0) as held:
            yield held

    @contextmanager
    def _held(self, timeout: float) -> Iterator[bool]:
        lock = FileLock(self._session.journal_lock)
        me = (lock.path, get_ident())
        interrupting = me in _holding
        try:
            held = not interrupting and lock.acquire(timeout)
            if held:
                _holding.add(me)
            yield held
        finally:
            lock.release()
            if not interrupting:
                _holding.discard(me)
                for call in _deferred.pop(me, []):
                    call()

    def when_released(self, call: Callable[[], None]) -> bool:
        """Have `call` made when this thread gives the lock back; False if it does not hold it."""
        me = (self._session.journal_lock, get_ident())
        if me in _holding:
            _deferred.setdefault(me, []).append(call)
        return me in _holding

    def is_held_by_another_thread(self) -> bool:
        """Whether a thread of this process, and not this one, holds the lock."""
        path, me = self._session.journal_lock, get_ident()
        return any(holder[0] == path and holder[1] != me for holder in list(_holding))

    def append(self, batches: Iterable[Batch]) -> None:
        """Append the batches, if there are any, with one write. The caller holds the lock.

        Raises:
            OSError: They could not all be written; then the journal is what it was before.
        """
        data = b"".join(batch.encode() for batch in batches)
        if not data:
            return
        fd = durable.open_private(self._session.journal, os.O_RDWR | os.O_CREAT)
        with durable.changing(fd):
            size = _repair_tail(fd)
            try:
                with durable.step("lengthen journal"):
                    os.ftruncate(fd, size + len(data))
                with durable.step("append to journal"):
                    durable.write_all(fd, data, size)
            except BaseException:
                # What half a batch would do is harmless (its writer sends it again), but it takes room.
                with suppress(OSError), durable.step("give up append"):
                    os.ftruncate(fd, size)
                raise

    def sync(self) -> None:
        """Make everything durable that was ever appended. The caller holds the lock.

        What the owner sealed meanwhile is included; what it has merged is durable anyway.

        Raises:
            OSError: It could not be made so.
        """
        for path in [*(path for _, path in self._session.sealed()), self._session.journal]:
            durable.sync(path)

    def seal(self, number: int) -> bool:
        """Give the journal its number; the next append starts a new one. The caller holds the lock.

        Returns:
            Whether there was a journal.
        """
        journal, sealed = self._session.journal, self._session.sealed_name(number)
        try:
            with durable.step("seal journal"):
                os.rename(journal, sealed)
        except FileNotFoundError:
            return False
        return True


def _locked_error(path: Path, timeout: float) -> JournalLockedError:
    pids = holders(path)
    who = ", ".join(map(process.describe, pids)) or "another process"
    return JournalLockedError(
        f"{path} is held by {who}; waited {timeout:g} s. Nothing is lost: "
        "the records stay staged, and the next flush takes them",
        path,
        pids,
    )


def _repair_tail(fd: int) -> int:
    """Make the journal end with a whole line: cut what a crash left of one, or add its newline.

    Returns:
        How long it is now.
    """
    size = os.fstat(fd).st_size
    tail = os.pread(fd, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
    rest = tail[max(tail.rfind(b"\n"), tail.rfind(b"\0")) + 1 :]  # NULs end a torn batch, and stay
    if not rest:
        return size
    if is_whole(rest) or len(rest) == MAX_LINE_BYTES:
        # A foreign record without its newline counts; a foreign monster becomes one line to set aside.
        with durable.step("complete torn tail"):
            durable.write_all(fd, b"\n", size)
        return size + 1
    with durable.step("cut torn tail"):
        os.ftruncate(fd, size - len(rest))
    return size - len(rest)


def is_whole(text: bytes) -> bool:
    """Whether a last line without its newline is complete all the same."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


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
        elif is_whole(line) and not line.startswith(_HEADER_START):
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
    start, records = batch.offset, batch.records
    text, nul, rest = records.partition(b"\0")
    if nul and len(records) == header.bytes and not rest.strip(b"\0"):
        return replace(batch, records=text[: text.rfind(b"\n") + 1], dropped={})  # torn
    records = _until_next_header(records)
    if len(records) < header.bytes:
        # The file was cut short. Its lines keep their numbers, as those of a torn batch do.
        whole = _first_lines(records, header.count, ended=is_whole(records.rpartition(b"\n")[2]))
        stream.seek(start + len(whole))
        return replace(batch, records=whole.removesuffix(b"\n") + b"\n" if whole else b"", dropped={})
    # Length or count may be what is wrong: the shorter of the two leaves more to others.
    records = _first_lines(records, header.count, ended=True)
    stream.seek(start + len(records))
    if records and not records.endswith(b"\n") and stream.read(1) not in (b"{", b""):
        stream.seek(start + len(records))  # the length ends within a line
        records += stream.readline(MAX_LINE_BYTES)
    stream.seek(start + len(records))
    return Damage(start - len(line), "a batch whose checksum, length or count is wrong", line + records)


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
