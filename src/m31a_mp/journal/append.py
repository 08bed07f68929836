"""The journal of a session, to append to and to seal."""

from __future__ import annotations

import os

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
"""How long a call waits for `journal.lock` that is not told how long."""


class JournalTurn(Turn):
    """The turn of all processes: whoever holds `journal.lock` has it."""

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
    """The journal of a session, to append to and to seal.

    Attributes:
        turn: Has whoever holds `journal.lock`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.turn = JournalTurn("a call that holds the journal's lock", session.journal_lock)

    def hold(self, call: Callable[[], T], timeout: float | None = None) -> T:
        """Make a call while this thread holds `journal.lock`.

        Args:
            call: What to do under the lock.
            timeout: Seconds to wait for it; None: `LOCK_SECONDS`.

        Returns:
            What `call` returned.

        Raises:
            JournalLockedError: Somebody else held it all the time; says who.
            InterruptedCallError: The very call that holds it was interrupted by this one.
            ForkedError: A signal handler forked in the middle of it, and this is the child.
        """
        return self.turn.take(call, LOCK_SECONDS if timeout is None else timeout)

    def append(self, batches: Iterable[Batch]) -> None:
        """Append the batches, if there are any, with one write. The caller holds the lock.

        Raises:
            OSError: They could not all be written; then the journal is what it was before.
        """
        data = b"".join(part for batch in batches for part in (batch.header(), batch.records))
        if not data:
            return
        fd = files.open_private(self._session.journal, os.O_RDWR | os.O_CREAT)
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
        for _, path in self._session.sealed():
            files.sync(path)
        files.sync(self._session.journal)

    def seal(self, number: int) -> bool:
        """Give the journal its number; the next append starts a new one. The caller holds the lock.

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
    """Whether all strings and braces end: of the beginnings of a JSON object, only the whole does that."""
    parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    outside = b"".join(parts[::2])
    return len(parts) % 2 == 1 and 0 < outside.count(b"{") == outside.count(b"}")


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
