"""Wait for signals and input together. A signal is noted on arrival, and reported between two steps."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self

_CHUNK = 1024


class SignalPipe:
    """Receives signals as bytes in a pipe, from `__enter__` to `__exit__`.

    A signal does not interrupt the program, for instance while it draws. An ignored signal stays ignored,
    which `nohup` and a shell's `&` rely on.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = numbers
        self._stack = ExitStack()
        self._reading_end = -1

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._reading_end, writing_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, self._reading_end)
            stack.callback(os.close, writing_end)
            # A full pipe is no error: it wakes the reader already, and further signals add nothing.
            before = signal.set_wakeup_fd(writing_end, warn_on_full_buffer=False)
            stack.callback(signal.set_wakeup_fd, before)
            for number in self._numbers:
                if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                    stack.callback(signal.signal, number, signal.signal(number, _only_noted))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self, seconds: float, other: int | None = None) -> tuple[list[int], bool]:
        """Wait for a signal, or for input on another descriptor.

        Args:
            seconds: The longest wait.
            other: The other descriptor; None for none.

        Returns:
            The received signals, and whether the descriptor has input.
        """
        descriptors = [self._reading_end] + ([] if other is None else [other])
        ready = select.select(descriptors, [], [], max(seconds, 0))[0]
        numbers = os.read(self._reading_end, _CHUNK) if self._reading_end in ready else b""
        return list(numbers), other in ready


def stop_until_continued() -> None:
    """Stop like at Ctrl-Z, until this process is continued."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)  # the process stops here
    signal.signal(signal.SIGTSTP, before)


def _only_noted(_: int, __: object) -> None:
    """Do nothing: the interpreter has already written the number to the pipe."""
