"""Waiting for signals and input at once. A signal is noted when it comes, and told between two steps."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self

_CHUNK = 1024


class SignalPipe:
    """Signals, from `__enter__` to `__exit__`, as bytes in a pipe that can be waited for.

    What the program does when one comes, a drawing for example, is not cut short. An ignored signal stays
    ignored, as `nohup` and a shell's `&` want it.
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
            # A pipe that is full already wakes: one signal more or less of the same kind says the same.
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
        """Wait for a signal, or for something to read elsewhere.

        Args:
            seconds: For how long at most.
            other: A descriptor that is waited for, too.

        Returns:
            The signals that came, and whether the descriptor has something.
        """
        descriptors = [self._reading_end] + ([] if other is None else [other])
        ready = select.select(descriptors, [], [], max(seconds, 0))[0]
        numbers = os.read(self._reading_end, _CHUNK) if self._reading_end in ready else b""
        return list(numbers), other in ready


def stop_until_continued() -> None:
    """Stop as Ctrl-Z does, until somebody continues this process."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)  # here it stops
    signal.signal(signal.SIGTSTP, before)


def _only_noted(_: int, __: object) -> None:
    """Do nothing: the interpreter has put the number into the pipe."""
