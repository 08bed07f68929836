"""Forks and signals while coverage is measured.

To be imported before the library, whose own hooks are measured, too.
"""

import os
import pickle
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

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


class HandOver:
    """A directory of what forked children have run of the code and their parents have not: a file for each.

    Coverage's own way is a database for each child, with all that its parent has run once more. That takes
    a tenth of a second of the processor, for a child that may need a hundredth for what it is there for.
    """

    def __init__(self, measured: Coverage, directory: Path) -> None:
        self._measured = measured
        self._directory = directory
        self._inherited: dict[str, int] = {}

    def _lines(self) -> dict[str, set[Any]]:
        """What was run of each file, as coverage keeps it until it makes a database of it."""
        assert self._measured._collector
        lines: dict[str, set[Any]] = self._measured._collector.data
        return lines

    def begin(self) -> None:
        """To be called in a forked child: it hands over when it exits, where it would make a database."""
        self._inherited = {name: len(lines) for name, lines in self._lines().copy().items()}
        self._measured.save = self._give  # type: ignore[method-assign]

    def _give(self) -> None:
        files = self._lines().copy().items()
        if news := {name: lines for name, lines in files if len(lines) > self._inherited.get(name, 0)}:
            unfinished = self._directory / f".{os.getpid()}"
            unfinished.write_bytes(pickle.dumps(news))
            unfinished.rename(self._directory / os.urandom(8).hex())

    def take(self) -> None:
        """Count what children have run as run here; the next ones need not tell of it again."""
        for path in self._directory.glob("[!.]*"):
            for name, lines in pickle.loads(path.read_bytes()).items():
                self._lines().setdefault(name, set()).update(lines)
            path.unlink()


_hand_over: HandOver | None = None


def hand_over_in(directory: Path) -> HandOver | None:
    """From now on, forked children of this process hand over; nothing if nothing is measured."""
    global _hand_over  # noqa: PLW0603  # there is one for the process, as there is one measurement
    measured = Coverage.current()
    _hand_over = HandOver(measured, directory) if measured else None
    return _hand_over


def _renew() -> None:
    """A fork while another thread is in that lock leaves the child with one that nobody gives back."""
    collector = getattr(Coverage.current(), "_collector", None)
    if collector:
        collector.data_lock = Lock()
    if _hand_over:
        _hand_over.begin()


os.register_at_fork(after_in_child=_renew)


def measure_no_more() -> None:
    """To be called where signals meet threads, before the threads start.

    While a signal waits for the main thread, and that for another thread, CPython 3.11 has the other one run
    in circles if it is measured: it tries for ever to handle the signal, before one and the same instruction.
    """
    if coverage := Coverage.current():
        coverage.stop()
