"""Append to the journal of a session, and seal it."""

from __future__ import annotations

import os
from errno import ENOSPC

from m31a_mp.errors import JournalLockedError
from m31a_mp.journal.batch import MAX_LINE_BYTES, Batch
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from m31a_mp.system.flock import hold, holders, holds
from m31a_mp.system.turn import Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

LOCK_SECONDS = 5.0
"""Seconds that a call waits for `journal.lock` by default."""


class JournalTurn(Turn):
    """The turn of all processes: the holder of `journal.lock` has the turn."""

    def is_mine(self) -> bool:
        return holds(self.path)

    def _hold(self, call: Callable[[], object], timeout: float) -> bool:
        return files.operation(lambda: hold(self.path, call, timeout))

    def _missed(self, timeout: float) -> JournalLockedError:
        pids = holders(self.path)
        who = ", ".join(map(process.describe, pids)) or "another process"
        return JournalLockedError(
            f"{self.path} is held by {who}; waited {timeout:g} s. "
            "The records stay where they are; the next flush that gets the lock takes them",
            self.path,
            pids,
        )


class Journal:
    """Appends to the journal of a session, and seals it.

    Attributes:
        turn: The turn of the thread that holds `journal.lock`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.turn = JournalTurn("a call that holds the journal's lock", session.journal_lock)

    def hold(self, call: Callable[[], T], timeout: float | None = None) -> T:
        """Make a call while this thread holds `journal.lock`.

        Args:
            call: The call to make under the lock.
            timeout: Seconds to wait for the lock; None: `LOCK_SECONDS`.

        Returns:
            The result of `call`.

        Raises:
            JournalLockedError: Another thread or process held the lock for all of `timeout`; the error
                names the processes.
            InterruptedCallError: This call interrupted the call that holds the lock.
            ForkedError: A signal handler forked during the call, and this is the child.
        """
        return self.turn.take(call, LOCK_SECONDS if timeout is None else timeout)

    def append(self, batches: Iterable[Batch]) -> None:
        """Append the batches, if there are any, with one write. The caller holds the lock.

        Raises:
            OSError: Not all could be written. The journal is as it was before.
        """
        data = b"".join(part for batch in batches for part in (batch.header(), batch.records))
        if not data:
            return
        fd = files.open_private(self._session.journal, os.O_RDWR | os.O_CREAT)
        with files.changing(fd):
            size = _repair_tail(fd)
            files.check_size(size + len(data))
            try:
                with files.step("lengthen journal"):
                    os.ftruncate(fd, size + len(data))
                with files.step("append to journal"):
                    files.write_all(fd, data, size)
            except BaseException:
                # Half a batch would be harmless, because its writer appends it again, but it takes room.
                try:
                    with files.step("give up append"):
                        os.ftruncate(fd, size)
                except OSError:
                    pass
                raise

    def append_line(self, line: bytes, stored: list[int]) -> None:
        """Append one record on its own, as a program in another language does. The caller holds the lock.

        The record has no number, so that it must not be appended again if it may be in the journal.

        Args:
            line: The record's line, with its newline.
            stored: Gains an item if the record is in the journal, even if this call raises: a signal handler
                may raise at any point.

        Raises:
            OSError: The record could not be written. It is not in the journal.
        """
        fd = files.open_private(self._session.journal, os.O_RDWR | os.O_CREAT)
        with files.changing(fd):
            size = _repair_tail(fd)
            files.check_size(size + len(line))
            # One call of C code writes, and notes that: no handler runs in between.
            write = filter((len(line) - 1).__le__, map(os.pwrite, (fd,), (line,), (size,)))
            with files.step("append line"):
                stored.extend(write)
            if not stored:  # a full disk may cause a short write
                with files.step("cut short line"):
                    os.ftruncate(fd, size)
                raise OSError(ENOSPC, os.strerror(ENOSPC), self._session.journal)

    def sync(self) -> None:
        """Make all appended records durable. The caller holds the lock.

        This includes journals that the owner sealed meanwhile. Merged records are durable already.

        Raises:
            OSError: An fsync failed.
        """
        for _, path in self._session.sealed():
            files.sync(path)
        files.sync(self._session.journal)

    def seal(self, number: int) -> bool:
        """Rename the journal to its number; the next append starts a new journal. The caller holds the lock.

        Returns:
            Whether there was a journal.
        """
        try:
            with files.step("seal journal"):
                os.rename(self._session.journal, self._session.sealed_as(number))
        except FileNotFoundError:
            return False
        return True


def is_balanced(text: bytes) -> bool:
    """Whether all strings and braces are closed. Among the prefixes of a JSON object, only the whole is."""
    parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    outside = b"".join(parts[::2])
    return len(parts) % 2 == 1 and 0 < outside.count(b"{") == outside.count(b"}")


def _repair_tail(fd: int) -> int:
    """Make the journal end with a whole line: cut off a torn line, or add a missing newline.

    Returns:
        The length of the journal in bytes.
    """
    size = os.fstat(fd).st_size
    if not size or os.pread(fd, 1, size - 1) in {b"\n", b"\0"}:
        return size
    tail = os.pread(fd, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
    rest = tail[max(tail.rfind(b"\n"), tail.rfind(b"\0")) + 1 :]  # the NULs of a torn batch stay
    if is_balanced(rest) or len(rest) == MAX_LINE_BYTES:
        # A whole foreign record without its newline counts. A line over the limit is set aside when read.
        with files.step("complete torn tail"):
            files.write_all(fd, b"\n", size)
        return size + 1
    with files.step("cut torn tail"):
        os.ftruncate(fd, size - len(rest))
    return size - len(rest)
