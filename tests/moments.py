"""Calls at any moment of other calls: of signal handlers, of threads, at every instruction."""

from __future__ import annotations

import contextlib
import dis
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import m31a_mp
from m31a_mp import Collector, verify
from metrics_of import SESSION, counted

PACKAGE = os.path.dirname(m31a_mp.__file__)
# Long enough that a segment is full, and the way to the journal taken, every few hundred records.
LONG = "tool " + 300 * "x"


def assert_exactly(collector: Collector, sessions_dir: Path, expected: dict[str, int]) -> None:
    """Exactly these calls are in `metrics.json`, nothing is damaged, and ten more records come through."""
    collector.flush()
    assert counted(sessions_dir) == expected
    assert verify(sessions_dir, SESSION) == []
    for i in range(10):
        collector.record_tool_call("after", True, i)
    collector.flush()
    assert counted(sessions_dir) == expected | {"after": 10}


Handler = Callable[[FrameType | None], object]


class Alarms:
    """Calls a function from a signal handler again and again, at moments that nobody foresees.

    Only for a forked child, which has the alarm clock for itself. The next alarm is set when the program is
    back from the last one, so that a slow function does not interrupt itself forever.
    """

    def __init__(self, function: Handler, limit: int) -> None:
        self._function = function
        self._moments = random.Random(limit)
        self._limit = limit
        self._set = False
        self.count = 0
        signal.signal(signal.SIGALRM, self._strike)

    def done(self) -> bool:
        """Whether there were enough; sets the next one if there is none under way."""
        if not self._set and self.count < self._limit:
            self._set = True
            signal.setitimer(signal.ITIMER_REAL, self._moments.uniform(2e-6, 300e-6))
        return self.count >= self._limit

    def _strike(self, _: int, frame: FrameType | None) -> None:
        self.count += 1
        self._function(frame)
        self._set = False


def run_threads(functions: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own, all at once; raises what one of them raised."""
    errors: list[BaseException] = []
    together = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        try:
            together.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


traces_every_instruction = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="3.13 does not trace the instructions of a function that is new to it"
)


class Moments:
    """A trace function: calls another one at the nth moment of a call at which a signal handler may run.

    The interpreter runs those behind calls, at the beginning of functions and where a loop begins again.
    """

    def __init__(self, nth: int, function: Callable[[], object]) -> None:
        self._left = nth
        self._function = function
        # Kept beyond `settrace(None)`: 3.11 calls it once more if a collection of garbage, while it makes the
        # frame object for that call, reaches the moment. It would call whatever lies there by then.
        self._tracer = self._enter
        self.where = ""

    def trace(self, call: Callable[[], object]) -> bool:
        """Make a call; returns whether it had so many moments."""
        sys._getframe().f_trace_opcodes = True  # which is how 3.12 knows that it is to trace any
        sys.settrace(self._tracer)
        try:
            call()
        finally:
            sys.settrace(None)
        return bool(self.where)

    def _enter(self, frame: FrameType, _: str, __: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if self.where or not code.co_filename.startswith((PACKAGE, contextlib.__file__)):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        codes = code.co_code
        last = "RESUME"  # where the function begins, which 3.12 does not show

        def step(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
            nonlocal last
            if event == "opcode":
                now = dis.opname[codes[frame.f_lasti]]
                # Of a call whose function is known, 3.11 makes one instruction out of PRECALL and CALL.
                if now not in {"CALL", "RESUME"} and last.startswith(
                    ("CALL", "PRECALL", "RESUME", "JUMP_BACKWARD")
                ):
                    self._pass(frame)
                last = now
            return None if self.where else step

        return step

    def _pass(self, frame: FrameType) -> None:
        self._left -= 1
        if self._left:
            return
        code = frame.f_code
        self.where = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
        sys.settrace(None)
        around: FrameType | None = frame
        while around:
            around.f_trace = None
            around = around.f_back
        self._function()
