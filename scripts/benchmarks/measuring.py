"""What measurements share: the clock, forked writers, and how often something took how long.

A measurement runs in a process of its own, in a directory of its own, and returns a sample: how many
`records` were recorded or read (or how many processes were run), the `wall` time and the `cpu` time that it
took in seconds, and what else there is to say. What was recorded is counted, outside of the time: if a
number is wrong, there is no sample but a `MismatchError`.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median
from typing import Any

import orjson

from benchmarks.peers import MismatchError

Sample = dict[str, Any]

# Whoever waits longer for the others than this waits for somebody who is gone.
PATIENCE_SECONDS = 120.0

_fork = get_context("fork")

# A tail is counted in steps of 100 ns, and what takes longer than 1 ms one by one.
_STEP_NS, _STEPS = 100, 10_000


class Clock:
    """Wall time, and the CPU time of this process and of its children that have ended."""

    def __init__(self) -> None:
        gc.collect()  # everybody starts with the same heap; the collector stays on
        self._cpu = cpu_seconds()
        self._wall = time.perf_counter()

    def stop(self, records: int) -> Sample:
        """What it took for so many."""
        wall = time.perf_counter() - self._wall
        return {"records": records, "wall": wall, "cpu": cpu_seconds() - self._cpu}


def cpu_seconds() -> float:
    usages = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Crew:
    """Forked writers. They and their owner meet at a gate, as often as they like."""

    def __init__(self, root: Path, writers: int, work: Callable[[Callable[[], object]], Sample]) -> None:
        """Start them.

        Args:
            root: Where they leave what they return.
            writers: How many.
            work: What each does; it is given the gate.
        """
        self._barrier = _fork.Barrier(writers + 1)
        self._root = root / "crew"
        self._root.mkdir()
        self._pids = [fork(self._run, work, i) for i in range(writers)]

    def _run(self, work: Callable[[Callable[[], object]], Sample], index: int) -> None:
        (self._root / str(index)).write_bytes(orjson.dumps(work(self.gate), option=orjson.OPT_NON_STR_KEYS))

    def gate(self) -> None:
        """Wait until all have come here."""
        self._barrier.wait(PATIENCE_SECONDS)

    def results(self) -> list[Sample]:
        """What they returned, when the last has ended."""
        for pid in self._pids:
            wait_for(pid)
        return [orjson.loads((self._root / str(i)).read_bytes()) for i in range(len(self._pids))]


def fork(work: Callable[..., object], *arguments: Any) -> int:
    """A child that does the work and ends without cleaning up. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(pid: int) -> None:
    """Wait until a child has ended, well."""
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise MismatchError(f"a writer ended with status {status}")


class Tail:
    """How often something took how long."""

    def __init__(self, overhead: int) -> None:
        self.overhead = overhead
        self.seen = Counter[int]()

    def add(self, took: int) -> None:
        took = max(0, took - self.overhead)
        self.seen[took // _STEP_NS * _STEP_NS if took < _STEP_NS * _STEPS else took] += 1


def clock_overhead(clock: Callable[[], int]) -> int:
    return int(median(-(clock() - clock()) for _ in range(10_000)))


def percentiles(key: str, tails: list[dict[str, int]]) -> Sample:
    """Of all writers together, in seconds; a step counts as its end."""
    seen = sum(
        (Counter({int(took): times for took, times in tail.items()}) for tail in tails), Counter[int]()
    )
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {f"{key}_{name}": (_percentile(seen, share) + _STEP_NS) / 1e9 for name, share in shares.items()}


def _percentile(seen: Counter[int], share: float) -> int:
    left = share * seen.total()
    for took, times in sorted(seen.items()):
        left -= times
        if left <= 0:
            return took
    return max(seen)
