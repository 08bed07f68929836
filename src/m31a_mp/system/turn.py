"""Calls that are made one at a time, and what a signal handler in the middle of one of them gets.

A thread waits for its turn. A signal handler or a finalizer that interrupted the very thread whose turn it is
cannot wait: that thread goes on only when the handler has returned. So the handler's call is refused, or is
made when the turn is over.
"""

from __future__ import annotations

from _thread import RLock, get_ident

from m31a_mp.errors import InterruptedCallError
from m31a_mp.system import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

FOREVER = -1.0


class Turn:
    """The turn of the threads of one process. A forked child begins anew: its parent has the thread."""

    def __init__(self, name: str, path: str) -> None:
        """Nobody's turn yet.

        Args:
            name: What has the turn, as an error calls it: "a call that ...".
            path: The file or directory that an error is about.
        """
        self.path = path
        self._name = name
        # By the generation of the process: a child finds neither the lock of a thread that it has not got nor
        # what that was to do.
        self._locks: dict[int, RLock] = {}
        self._later: dict[tuple[int, int], list[Callable[[], object]]] = {}

    def is_mine(self) -> bool:
        """Whether this very thread has the turn."""
        return self._lock()._is_owned()  # type: ignore[attr-defined, no-any-return]  # noqa: SLF001  # as threading.Condition

    def take(self, call: Callable[[], T], timeout: float = FOREVER) -> T:
        """Make a call when it is this thread's turn.

        Args:
            call: What to do.
            timeout: Seconds to wait for the turn.

        Returns:
            What `call` returned.

        Raises:
            InterruptedCallError: This thread has the turn: a handler interrupted it.
            TimeoutError: Another one had the turn all the time.
        """
        if self.is_mine():
            raise InterruptedCallError(
                f"a signal handler or a finalizer interrupted {self._name}; call this again later", self.path
            )
        returned: list[T] = []
        if not self._take(lambda: returned.append(call()), timeout):
            raise self._missed(timeout)
        return returned[0]

    def take_if_free(self, call: Callable[[], object]) -> bool:
        """Make a call if it is nobody's turn, this thread's neither. Returns whether it was made."""
        return not self.is_mine() and self._take(call, 0.0)

    def later(self, call: Callable[[], object]) -> bool:
        """Have a call made when this thread's turn is over. Returns False if it has not got the turn."""
        is_mine = self.is_mine()
        if is_mine:
            self._later.setdefault(self._key(), []).append(call)
        return is_mine

    def _take(self, call: Callable[[], object], timeout: float) -> bool:
        try:
            return self._hold(call, timeout)
        finally:
            for deferred in self._later.pop(self._key(), []):
                deferred()

    def _hold(self, call: Callable[[], object], timeout: float) -> bool:
        """Make a call in the turn; returns False if that was not to be had."""
        lock = self._lock()
        if timeout == FOREVER:
            with lock:  # which is over when its block is, wherever an exception of a signal handler comes
                call()
            return True
        if not lock.acquire(timeout=timeout):
            return False
        try:
            call()
        finally:
            lock.release()
        return True

    def _missed(self, timeout: float) -> Exception:
        return TimeoutError(f"another thread was in {self._name} for {timeout:g} s")

    def _lock(self) -> RLock:
        fork.settle()
        return self._locks.get(fork.generation) or self._locks.setdefault(fork.generation, RLock())

    @staticmethod
    def _key() -> tuple[int, int]:
        return fork.generation, get_ident()
