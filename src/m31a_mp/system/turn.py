"""Turns: calls that are made one at a time, also when a signal handler interrupts one.

A thread waits for its turn. A signal handler or a finalizer that interrupts the thread with the turn cannot
wait, because that thread continues only when the handler has returned. The handler's call is therefore
refused, or made when the turn is over.
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
    """The turn among the threads of one process. A forked child starts with a free turn."""

    def __init__(self, name: str, path: str) -> None:
        """Create a free turn.

        Args:
            name: The name, for error messages, of a call that has the turn: "a call that ...".
            path: The file or directory for error messages.
        """
        self.path = path
        self._name = name
        # The generation is a part of the keys: a child must find neither a lock that a thread of its parent
        # holds nor calls deferred in the parent.
        self._locks: dict[int, RLock] = {}
        self._later: dict[tuple[int, int], list[Callable[[], object]]] = {}

    def is_mine(self) -> bool:
        """Whether this thread has the turn."""
        return self._lock()._is_owned()  # type: ignore[attr-defined, no-any-return]  # noqa: SLF001  # as threading.Condition

    def take(self, call: Callable[[], T], timeout: float = FOREVER) -> T:
        """Wait for the turn, then make a call.

        Args:
            call: The call to make.
            timeout: Seconds to wait for the turn; `FOREVER`: no limit.

        Returns:
            The result of `call`.

        Raises:
            InterruptedCallError: This thread has the turn already: a handler interrupted it.
            TimeoutError: Another thread had the turn for all of `timeout`.
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
        """Make a call if no thread has the turn, including this one. Return whether it was made."""
        return not self.is_mine() and self._take(call, 0.0)

    def later(self, call: Callable[[], object]) -> bool:
        """Defer a call until this thread's turn is over. Return False if this thread has no turn."""
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
        """Make a call in the turn. Return False if the turn was not free within `timeout`."""
        lock = self._lock()
        if timeout == FOREVER:
            with lock:  # C code releases the lock, even if a signal handler raises at any point
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


IMPORTS = Turn("a call that imports", __file__)
"""The turn of the imports for a first merge and a first look. A signal handler that interrupts an import, and
imports the same module, would get one whose names are not there yet."""
