"""Forks while coverage is measured. To be imported before the library, whose own hooks are measured, too."""

import os
import threading
from contextlib import suppress

from coverage import Coverage


class Lock:
    """One that may be given back by whoever had the one in its place before a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

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
