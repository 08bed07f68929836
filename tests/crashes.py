"""Scenarios in a process of their own, which is killed at a step of them."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from m31a_mp import Recorder
from m31a_mp.system import files

TOOL = "tool"

ACKNOWLEDGED = "acknowledged"

Acknowledge = Callable[[], None]
Scenario = Callable[[Path, Acknowledge], None]


def record_calls(recorder: Recorder, acknowledge: Acknowledge, count: int) -> None:
    for _ in range(count):
        recorder.record_tool_call(TOOL, success=True, duration_ms=1)
        acknowledge()


class Run:
    """A scenario in a child, which is killed when it reaches a point for the nth time."""

    def __init__(self, scenario: Scenario, sessions: Path, die_at: tuple[str, int] = ("", 1)) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            be_child(scenario, sessions, die_at, writing)
        os.close(writing)
        with closing(os.fdopen(reading, "rb")) as stream:
            lines = stream.read().decode().splitlines()
        self.acknowledged = lines.count(ACKNOWLEDGED)
        self.points = [line for line in lines if line != ACKNOWLEDGED]
        self.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def be_child(scenario: Scenario, sessions: Path, die_at: tuple[str, int], pipe: int) -> None:
    me = os.getpid()
    point_of_death, left = die_at

    def report(line: str) -> None:
        os.write(pipe, f"{line}\n".encode())

    def reached(point: str) -> None:
        nonlocal left
        if os.getpid() == me:  # not in a child of the scenario's own
            report(point)
            left -= point == point_of_death
            if not left:
                os.kill(me, signal.SIGKILL)

    files.reached = reached
    try:
        scenario(sessions, lambda: report(ACKNOWLEDGED))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def cases(scenario: Scenario, sessions: Path) -> Iterator[tuple[str, int]]:
    """Every point that the scenario reaches, the first and the last time it does."""
    run = Run(scenario, sessions)
    assert run.status == 0
    for point in dict.fromkeys(run.points):
        yield point, 1
        if (last := run.points.count(point)) > 1:
            yield point, last
