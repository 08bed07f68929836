#!/usr/bin/env python3
"""Kill writers and owners of one session at random, and count what is left.

Every process acknowledges each record after the call returned, by one byte in a file of its own that
needs nothing of the library. After each round everything is killed, the session is compacted, and
the numbers are compared: all that was acknowledged must be counted, and nothing twice. Of a process that
was killed, the one record that it was about to acknowledge may be counted as well.

Some writers measure their calls, and also acknowledge that each one began. Every call that began must be
counted once: as one that ended if that was acknowledged, and else as interrupted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.segments import writer

SESSION = "torture"
ROUND_SECONDS = 5.0
START_METHODS = ("fork", "forkserver", "spawn", "subprocess")


Process = subprocess.Popen[bytes] | BaseProcess


def record_for_ever(root: str, name: str, seed: int) -> None:
    """A writer: fast or slow, with large segments or small ones."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        writer.FIRST_SEGMENT_BYTES = writer.MAX_SEGMENT_BYTES = 4096
    pause = chance.choice([0.0, 0.0, 0.001])
    recorder = attach(SESSION, root)
    begun = _acknowledgements(root, name, "begun") if chance.random() < 0.5 else None
    acknowledged = _acknowledgements(root, name)
    while True:
        if begun is None:
            recorder.record_tool_call(name, success=True, duration_ms=1)
        else:
            with recorder.tool_call(name):
                os.write(begun, b".")
        os.write(acknowledged, b".")
        if pause:
            time.sleep(pause)
        elif chance.random() < 0.001:
            recorder.flush()


def own_for_ever(root: str, name: str, seed: int) -> None:
    """An owner: flushes, looks, records."""
    chance = random.Random(seed)
    collector = Collector(SESSION, root)
    acknowledged = _acknowledgements(root, name)
    while True:
        collector.record_tool_call(name, success=True, duration_ms=1)
        os.write(acknowledged, b".")
        chance.choice([collector.flush, collector.snapshot])()


def _acknowledgements(root: str, name: str, of: str = "acknowledged") -> int:
    return os.open(Path(root, of, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


CHILDREN = {target.__name__: target for target in (record_for_ever, own_for_ever)}


@dataclass
class Tally:
    """What came of it."""

    records: int = 0
    kills: int = 0
    interrupted: int = 0
    lost: int = 0
    duplicated: int = 0
    findings: list[str] = field(default_factory=list)

    def is_clean(self) -> bool:
        """Whether every number is right, and nothing is damaged or left behind."""
        return not (self.lost or self.duplicated or self.findings)

    def __str__(self) -> str:
        numbers = {
            "records": self.records,
            "kills": self.kills,
            "interrupted": self.interrupted,
            "lost": self.lost,
            "duplicated": self.duplicated,
        }
        return "  ".join(f"{name} {number}" for name, number in numbers.items())


class Storm:
    """One session, its processes, and the count of what they acknowledged."""

    def __init__(self, root: Path, seed: int, writers: int) -> None:
        self.root = root
        self.chance = random.Random(seed)
        self.writers = writers
        self.tally = Tally()
        self._started = 0
        self._alive: list[Process] = []
        self._owner: Process | None = None
        for of in ("acknowledged", "begun"):
            (root / of).mkdir()

    def round(self, seconds: float) -> None:
        """Start and kill for so long; then kill everybody, compact, compare."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._owner is None:
                self._owner = self._start(own_for_ever, "spawn")
            while len(self._alive) < self.writers:
                self._alive.append(self._start(record_for_ever, self.chance.choice(START_METHODS)))
            time.sleep(self.chance.uniform(0, 0.2))
            if self.chance.random() < 0.2:
                self._kill(self._owner)
                self._owner = None
            else:
                self._kill(self._alive.pop(self.chance.randrange(len(self._alive))))
        for process in [*self._alive, *([self._owner] if self._owner else [])]:
            self._kill(process)
        self._alive.clear()
        self._owner = None
        self.compare()

    def compare(self) -> None:
        """Hold what was counted against what was acknowledged."""
        compact(self.root, SESSION)
        metrics = load(self.root, SESSION)
        tools = metrics.tools if metrics else []
        counted = {tool.name: tool.call_count for tool in tools}
        ended = {tool.name: tool.call_count - tool.interrupted_count for tool in tools}
        self.tally.records = sum(counted.values())
        self.tally.interrupted = sum(tool.interrupted_count for tool in tools)
        self.tally.lost = self.tally.duplicated = 0
        self._compare(ended, self._acknowledged("acknowledged"))
        begun = self._acknowledged("begun")
        self._compare({name: counted.get(name, 0) for name in begun}, begun)
        self.tally.findings = [str(finding) for finding in verify(self.root, SESSION)]
        if metrics and metrics.running:
            self.tally.findings.append(f"{len(metrics.running)} calls of dead processes are under way")
        # What a writer leaves that dies while it makes a segment is deleted when it is a minute old.
        left = list((self.root / SESSION / "segments").glob("[!.]*"))
        self.tally.findings += [f"{path.name} was left behind" for path in left]

    def _acknowledged(self, of: str) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.root / of).iterdir()}

    def _compare(self, counted: dict[str, int], acknowledged: dict[str, int]) -> None:
        for name in counted.keys() | acknowledged.keys():
            surplus = counted.get(name, 0) - acknowledged.get(name, 0)
            self.tally.lost += max(0, -surplus)
            self.tally.duplicated += max(0, surplus - 1)

    def _start(self, target: Callable[[str, str, int], None], method: str) -> Process:
        self._started += 1
        name, seed = f"{self._started:05d}-{method}", self.chance.randrange(1 << 32)
        if method == "subprocess":
            command = [sys.executable, __file__, "--child", target.__name__, str(self.root), name, str(seed)]
            return subprocess.Popen(command)
        process = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]  # any context has it
            target=target, args=(str(self.root), name, seed)
        )
        process.start()
        return process  # type: ignore[no-any-return]

    def _kill(self, process: Process) -> None:
        process.kill()
        process.wait() if isinstance(process, subprocess.Popen) else process.join()
        self.tally.kills += 1


def main() -> int:
    """Rage for so long; 0 if nothing was lost, doubled, damaged or left behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="to repeat the same choices")
    parser.add_argument("--writers", type=int, default=16, help="how many at once (default: 16)")
    parser.add_argument("--child", nargs=4, metavar=("WHAT", "ROOT", "NAME", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, root, name, seed = arguments.child
        CHILDREN[what](root, name, int(seed))
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as root:
        storm = Storm(Path(root), seed, arguments.writers)
        end = time.monotonic() + arguments.seconds
        while (left := end - time.monotonic()) > 0:
            storm.round(min(ROUND_SECONDS, left))
            print(f"{max(0, end - time.monotonic()):5.0f} s left  {storm.tally}", flush=True)
            if not storm.tally.is_clean():
                break
    for finding in storm.tally.findings:
        print(finding)
    print(storm.tally)
    return 0 if storm.tally.is_clean() else 1


if __name__ == "__main__":
    sys.exit(main())
