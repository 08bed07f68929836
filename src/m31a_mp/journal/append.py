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
import zlib
from _thread import get_ident

from m31a_mp.errors import InterruptedCallError, JournalLockedError
from m31a_mp.session.paths import Session
from m31a_mp.system import files, fork, process
from m31a_mp.system.flock import hold, holders, holds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

MAX_LINE_BYTES = 64 * 1024
LOCK_SECONDS = 5.0


# So much at a time stays in the processor's cache.
_PART_BYTES = 64 * 1024


def count_lines(text: bytes | memoryview) -> int:
    """How often a newline stands there; in half the time of `text.count()`."""
    parts = (bytes(text[start : start + _PART_BYTES]) for start in range(0, len(text), _PART_BYTES))
    return sum(len(part) - len(part.replace(b"\n", b"")) for part in parts)


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

    __slots__ = ("count", "dropped", "first", "offset", "records", "writer")

    def __init__(
        self,
        writer: str,
        first: int,
        records: bytes | memoryview,
        dropped: dict[str, int] | None = None,
        offset: int = 0,
    ) -> None:
        self.writer = writer
        self.first = first
        self.records = records
        self.dropped = dropped or {}
        self.offset = offset
        self.count = count_lines(records)

    def header(self) -> bytes:
        """The line that stands before its records in the journal."""
        counts = ",".join(f'"{reason}":{count}' for reason, count in self.dropped.items())
        dropped = b',"dropped":{%b}' % counts.encode() if counts else b""
        header = b'{"batch":"%b","first":%d,"count":%d,"bytes":%d%b' % (
            self.writer.encode(), self.first, self.count, len(self.records), dropped,
        )  # fmt: skip
        crc = zlib.crc32(self.records, zlib.crc32(header))
        return b'%b,"crc32":"%08x"}\n' % (header, crc)


# Calls that a signal handler or a finalizer asked of a thread that it interrupted while that held a lock, to
# be made when the thread has given the lock back; by the lock's path and the thread.
_deferred: dict[tuple[str, int], list[Callable[[], None]]] = {}

fork.after_in_child(_deferred.clear)


class Journal:
    """The journal of a session, to append to and to seal."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def hold(self, call: Callable[[], T], timeout: float = LOCK_SECONDS) -> T:
        """Make a call while this thread holds `journal.lock`.

        Args:
            call: What to do under the lock.
            timeout: Seconds to wait for it.

        Returns:
            What `call` returned.

        Raises:
            JournalLockedError: Somebody else held it all the time; says who.
            InterruptedCallError: The very call that holds it was interrupted by this one.
            ForkedError: A signal handler forked in the middle of it, and this is the child.
        """
        path = self._session.lock_name
        if holds(path):
            raise InterruptedCallError(
                "a signal handler or a finalizer interrupted a call that holds the journal's lock; "
                "call this again later",
                path,
            )
        returned: list[T] = []
        if not self._hold(lambda: returned.append(call()), timeout):
            raise _locked_error(path, timeout)
        return returned[0]

    def hold_if_free(self, call: Callable[[], object]) -> bool:
        """Make a call while this thread holds `journal.lock`, if that is free now; never waits.

        Returns:
            Whether it was free, and the call made.
        """
        return not holds(self._session.lock_name) and self._hold(call, 0.0)

    def _hold(self, call: Callable[[], object], timeout: float) -> bool:
        path = self._session.lock_name
        try:
            return files.operation(lambda: hold(path, call, timeout))
        finally:
            for deferred in _deferred.pop((path, get_ident()), []):
                deferred()

    def when_released(self, call: Callable[[], None]) -> bool:
        """Have `call` made when this thread gives the lock back; False if it does not hold it."""
        path = self._session.lock_name
        is_held = holds(path)
        if is_held:
            _deferred.setdefault((path, get_ident()), []).append(call)
        return is_held

    def append(self, batches: Iterable[Batch]) -> None:
        """Append the batches, if there are any, with one write. The caller holds the lock.

        Raises:
            OSError: They could not all be written; then the journal is what it was before.
        """
        data = b"".join(part for batch in batches for part in (batch.header(), batch.records))
        if not data:
            return
        fd = files.open_private(self._session.journal_name, os.O_RDWR | os.O_CREAT)
        with files.changing(fd):
            size = _repair_tail(fd)
            try:
                with files.step("lengthen journal"):
                    os.ftruncate(fd, size + len(data))
                with files.step("append to journal"):
                    files.write_all(fd, data, size)
            except BaseException:
                # What half a batch would do is harmless (its writer sends it again), but it takes room.
                try:
                    with files.step("give up append"):
                        os.ftruncate(fd, size)
                except OSError:
                    pass
                raise

    def sync(self) -> None:
        """Make everything durable that was ever appended. The caller holds the lock.

        What the owner sealed meanwhile is included; what it has merged is durable anyway.

        Raises:
            OSError: It could not be made so.
        """
        for name in self._session.sealed_names():
            files.sync(f"{self._session.root}/{name}")
        files.sync(self._session.journal_name)

    def seal(self, number: int) -> bool:
        """Give the journal its number; the next append starts a new one. The caller holds the lock.

        Returns:
            Whether there was a journal.
        """
        journal, sealed = self._session.journal, self._session.sealed_name(number)
        try:
            with files.step("seal journal"):
                os.rename(journal, sealed)
        except FileNotFoundError:
            return False
        return True


def is_balanced(text: bytes) -> bool:
    """Whether all strings and braces end: of the beginnings of a JSON object, only the whole does that."""
    parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    outside = b"".join(parts[::2])
    return len(parts) % 2 == 1 and 0 < outside.count(b"{") == outside.count(b"}")


def _locked_error(path: str, timeout: float) -> JournalLockedError:
    pids = holders(path)
    who = ", ".join(map(process.describe, pids)) or "another process"
    return JournalLockedError(
        f"{path} is held by {who}; waited {timeout:g} s. "
        "The records stay where they are; the next flush that gets the lock takes them",
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
    if is_balanced(rest) or len(rest) == MAX_LINE_BYTES:
        # A foreign record without its newline counts; a foreign monster becomes one line to set aside.
        with files.step("complete torn tail"):
            files.write_all(fd, b"\n", size)
        return size + 1
    with files.step("cut torn tail"):
        os.ftruncate(fd, size - len(rest))
    return size - len(rest)
