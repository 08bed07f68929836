"""Scenarios in a process of their own, which is killed at a step of them."""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
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
    """A scenario in a child, which is killed when it reaches a point for the nth time.

    Attributes:
        acknowledged: How many records it acknowledged.
        points: The points that it reached.
        left: What a death at each of them leaves, if `look`: the number of records that were acknowledged
            by then, and a digest of all files; an empty one if another thread was at work, too.
        status: How the child ended.
    """

    def __init__(
        self, scenario: Scenario, sessions: Path, die_at: tuple[str, int] = ("", 1), *, look: bool = False
    ) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            be_child(scenario, sessions, die_at, writing, look=look)
        os.close(writing)
        with closing(os.fdopen(reading, "rb")) as stream:
            lines = stream.read().decode().splitlines()
        self.acknowledged = 0
        self.points: list[str] = []
        self.left: list[tuple[int, str]] = []
        for line in lines:
            if line == ACKNOWLEDGED:
                self.acknowledged += 1
            else:
                point, _, digest = line.partition("\t")
                self.points.append(point)
                self.left.append((self.acknowledged, digest))
        self.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def be_child(scenario: Scenario, sessions: Path, die_at: tuple[str, int], pipe: int, *, look: bool) -> None:
    me = os.getpid()
    point_of_death, left = die_at

    def report(line: str) -> None:
        os.write(pipe, f"{line}\n".encode())

    def reached(point: str) -> None:
        nonlocal left
        if os.getpid() == me:  # not in a child of the scenario's own
            is_alone = threading.active_count() == 1  # otherwise another thread changes files meanwhile
            report(f"{point}\t{digest_of(sessions) if look and is_alone else ''}")
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


def digest_of(directory: Path) -> str:
    """A digest of the names, times and contents of all files under a directory."""
    digest = sha256()
    for path in sorted(directory.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        digest.update(b"%b\0%d %d\0" % (os.fsencode(path), path.lstat().st_mtime_ns, len(data)) + data)
    return digest.hexdigest()


def cases(scenario: Scenario, sessions: Path) -> Iterator[tuple[str, int]]:
    """Every point that the scenario reaches, the first and the last time it does.

    A killed process leaves its files and nothing else. Of the points that leave the same files, and come
    after the same number of acknowledged records, there is one: the end of a step and the beginning of the
    next one are most often the same death.
    """
    run = Run(scenario, sessions, look=True)
    assert run.status == 0
    seen: set[tuple[int, str]] = set()
    for point in dict.fromkeys(run.points):
        reached = [number for number, other in enumerate(run.points) if other == point]
        for number in dict.fromkeys((reached[0], reached[-1])):
            _, digest = run.left[number]
            if not digest or run.left[number] not in seen:
                seen.add(run.left[number])
                yield point, reached.index(number) + 1
