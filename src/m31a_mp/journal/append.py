"""The journal of a session, to append to and to seal."""

from __future__ import annotations

import os
from _thread import get_ident

from m31a_mp.errors import InterruptedCallError, JournalLockedError
from m31a_mp.journal.batch import MAX_LINE_BYTES, Batch
from m31a_mp.session.paths import Session
from m31a_mp.system import files, fork, process
from m31a_mp.system.flock import hold, holders, holds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

LOCK_SECONDS = 5.0
"""How long a call waits for `journal.lock` that is not told how long."""
# Calls that a signal handler or a finalizer asked of a thread that it interrupted while that held a lock, to
# be made when the thread has given the lock back; by the lock's path and the thread.
_deferred: dict[tuple[str, int], list[Callable[[], None]]] = {}
fork.after_in_child("journal")(_deferred.clear)


class Journal:
    """The journal of a session, to append to and to seal."""

    def __init__(self, session: Session) -> None:
        self._session = session

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
        path = self._session.lock_name
        seconds = LOCK_SECONDS if timeout is None else timeout
        if holds(path):
            raise InterruptedCallError(
                "a signal handler or a finalizer interrupted a call that holds the journal's lock; "
                "call this again later",
                path,
            )
        returned: list[T] = []
        if not self._hold(lambda: returned.append(call()), seconds):
            raise _locked_error(path, seconds)
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
