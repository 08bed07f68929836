"""The thread that keeps `metrics.json` fresh, if its owner wants one."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

from m31a_mp.system.log import warn

# How long to wait for a thread that has nothing left to do: enough for one that is ready to run. One that
# waits for something that the waiting thread holds, perhaps a handler of the log, must not lock it up.
_JOIN_SECONDS = 1.0


def check_interval(field: str, value: object) -> float:
    """Seconds: a finite number above 0."""
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
    """Calls a method every so often, from a daemon thread: that does not keep the program from ending.

    It does not keep the method's object alive either, and ends when that is gone. A forked child has no such
    thread.
    """

    def __init__(self, method: Callable[[], object], seconds: float) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system does not allow for one more.
        """
        # A simple queue takes something from a finalizer and from a signal handler, wherever they come; the
        # lock inside of an Event may be held by the very call that they interrupt.
        self._ended: SimpleQueue[object] = SimpleQueue()
        weak = weakref.WeakMethod(method, self._ended.put)
        arguments = (weak, min(seconds, threading.TIMEOUT_MAX), self._ended)
        self._thread = threading.Thread(target=_repeat, args=arguments, name="m31a_mp refresh", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Have the thread make no more calls. May be called anywhere, and again."""
        self._ended.put(None)

    def join(self) -> None:
        """Wait until the thread is gone that was told to end; at most for a second."""
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
        del method  # while this thread sleeps, the object is not its own


def _is_put(queue: SimpleQueue[object], seconds: float) -> bool:
    """Wait so long for something to be put there; returns whether it was."""
    try:
        queue.get(timeout=seconds)
    except Empty:
        return False
    return True
