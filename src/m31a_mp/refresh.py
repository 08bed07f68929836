"""The optional thread of an owner that keeps `metrics.json` fresh."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

from m31a_mp.system.log import warn

# The longest wait for the thread to end. Without a limit, a deadlock is possible: the thread may wait for
# something that the joining thread holds, for instance a log handler.
_JOIN_SECONDS = 1.0


def check_interval(field: str, value: object) -> float:
    """Return the seconds, if they are a finite number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{field} must be a number of seconds or None, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"{field} must be finite and above 0, not {seconds}")
    return seconds


class Refresher:
    """Calls a method at an interval, in a daemon thread, which does not keep the program from ending.

    The thread does not keep the method's object alive either, and ends when the object is gone. A forked
    child does not have the thread.
    """

    def __init__(self, method: Callable[[], object], seconds: float) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system refuses another thread.
        """
        # Finalizers and signal handlers may put into a SimpleQueue at any point. The lock inside an Event may
        # be held by the call that they interrupt.
        self._ended: SimpleQueue[object] = SimpleQueue()
        weak = weakref.WeakMethod(method, self._ended.put)
        arguments = (weak, min(seconds, threading.TIMEOUT_MAX), self._ended)
        self._thread = threading.Thread(target=_repeat, args=arguments, name="m31a_mp refresh", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop the calls of the thread. May be called from anywhere, and repeatedly."""
        self._ended.put(None)

    def join(self) -> None:
        """Wait until the thread has ended, for at most a second. Call `end` before."""
        if self._thread.ident != threading.get_ident():
            self._thread.join(_JOIN_SECONDS)


def _repeat(
    weak: weakref.WeakMethod[Callable[[], object]], seconds: float, ended: SimpleQueue[object]
) -> None:
    warned = False
    while not _is_put(ended, seconds):
        method = weak()
        if method is None:
            return
        try:
            method()
            warned = False
        except Exception as error:
            warned = warned or warn("metrics.json is not fresh: %s", error)
        del method  # the sleeping thread must not keep the object alive


def _is_put(queue: SimpleQueue[object], seconds: float) -> bool:
    """Wait up to `seconds` for an item in the queue. Return whether there was one."""
    try:
        queue.get(timeout=seconds)
    except Empty:
        return False
    return True
