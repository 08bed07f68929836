"""Forks and signals while coverage is measured.

To be imported before the library, whose own hooks are measured, too.
"""

import os
import threading
from contextlib import suppress

from coverage import Coverage


class Lock:
    """One that may be given back by whoever had the one in its place before a fork, and taken by a signal
    handler that interrupts who has it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self) -> None:
        self._lock.acquire()

    def release(self) -> None:
        with suppress(RuntimeError):
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _renew() -> None:
    """A fork while another thread is in that lock leaves the child with one that nobody gives back."""
    collector = getattr(Coverage.current(), "_collector", None)
    if collector:
        collector.data_lock = Lock()


os.register_at_fork(after_in_child=_renew)


def measure_no_more() -> None:
    """To be called where signals meet threads, before the threads start.

    While a signal waits for the main thread, and that for another thread, CPython 3.11 has the other one run
    in circles if it is measured: it tries for ever to handle the signal, before one and the same instruction.
    """
    if coverage := Coverage.current():
        coverage.stop()
