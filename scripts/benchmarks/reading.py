"""Measurements of those who read what was recorded: compaction, snapshot, flush."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchmarks.measuring import Clock, Crew, Sample, fork, wait_for
from benchmarks.peers import CALLS, PEERS, SESSION, MismatchError, Ours, feed
from m31a_mp import Collector, Usage, attach, compact, load, verify
from m31a_mp.journal.append import Journal


def _mixed_call(i: int) -> tuple[str, tuple[Any, ...]]:
    phase = f"phase-{i % 4}"
    if i % 50 < 3:
        return ("phase_transition", "heal_trigger", "bisect_trigger")[i % 50], (phase,)
    if i % 10 == 3:
        return "phase_duration", (phase, i, True)
    if i % 7 == 4:
        return "llm_interaction", (phase, Usage(i, 2 * i, 3 * i), i / 1024)  # sums of these need no rounding
    return "tool_call", (f"tool-{i % 8}", i % 3 != 0, i)


MIXED = [_mixed_call(i) for i in range(1000)]
"""The calls that the journal is made of: 74 % tool calls, 13 % of models, 9 % durations, 4 % the others."""


def mixed_journal(root: Path, records: int) -> Sample:
    """Make the journal that compactions are given; four processes write it, as in life."""
    clock = Clock()
    for pid in [fork(_record_mixed, root, records // len(MIXED) // 4) for _ in range(4)]:
        wait_for(pid)
    return clock.stop(records)


def _record_mixed(root: Path, times: int) -> None:
    recorder = attach(SESSION, root)
    calls = [(getattr(recorder, f"record_{name}"), arguments) for name, arguments in MIXED]
    for _ in range(times):
        for call, arguments in calls:
            call(*arguments)
    recorder.flush()
    recorder.stop()


def compaction(root: Path, source: str, records: int) -> Sample:
    """`compact()` of a journal that lies ready, and the memory that it takes at most."""
    _link_journal(Path(source), root)
    before = _peak_memory()
    clock = Clock()
    found = compact(root, SESSION)
    sample = clock.stop(records)
    sample["memory"] = _peak_memory() - before
    _check_mixed(root, records, found.records)
    return sample


def bare_loads(root: Path, source: str, records: int) -> Sample:
    """`for line in file: orjson.loads(line)`, and nothing else, over the same bytes."""
    _link_journal(Path(source), root)
    loads = orjson.loads
    clock = Clock()
    for path in journals(root):
        with open(path, "rb") as file:
            for line in file:
                loads(line)
    return clock.stop(records)


def _link_journal(source: Path, root: Path) -> None:
    """A session that has that journal; hard links, for a compaction only renames and deletes it."""
    (root / SESSION).mkdir(mode=0o700)
    for path in journals(source):
        os.link(path, root / SESSION / path.name)


def journals(root: Path) -> list[Path]:
    """The files of the session's journal."""
    return sorted((root / SESSION).glob("journal*.ndjson"))


def _peak_memory() -> int:
    """The most bytes that this process ever had in memory."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _check_mixed(root: Path, records: int, compacted: int) -> None:
    if findings := verify(root, SESSION):
        raise MismatchError(f"verify() found {'; '.join(map(str, findings[:3]))}")
    metrics = load(root, SESSION)
    if metrics is None or compacted != records:
        raise MismatchError(f"{compacted} records of {records} were compacted")
    tools, llms, phases = metrics.tools, metrics.llms, metrics.phases
    counted = {
        "tool_call": (sum(t.call_count for t in tools), sum(t.total_duration_ms for t in tools)),
        "llm_interaction": (
            sum(m.interaction_count for m in llms),
            sum(m.total_tokens for m in llms),
            sum(m.cost for m in llms),
        ),
        "phase_transition": sum(p.transition_count for p in phases),
        "heal_trigger": sum(p.heal_trigger_count for p in phases),
        "bisect_trigger": sum(p.bisect_trigger_count for p in phases),
    }
    if counted != (right := _expected_mixed(records // len(MIXED))):
        raise MismatchError(f"compaction counted {counted}, recorded were {right}")


def _expected_mixed(times: int) -> dict[str, Any]:
    of = {kind: [given for name, given in MIXED if name == kind] for kind in dict(MIXED)}
    return {
        "tool_call": (times * len(of["tool_call"]), times * sum(ms for *_, ms in of["tool_call"])),
        "llm_interaction": (
            times * len(of["llm_interaction"]),
            times * sum(usage.total_tokens for _, usage, _ in of["llm_interaction"]),
            times * sum(cost for *_, cost in of["llm_interaction"]),
        ),
        **{kind: times * len(of[kind]) for kind in ("phase_transition", "heal_trigger", "bisect_trigger")},
    }


def snapshot(root: Path, peer: str, writers: int, records: int) -> Sample:
    """Look at what living writers have just recorded, so many each. They are not asked."""
    one = PEERS[peer](root)
    one.start()
    one.look()  # whatever the first one does once

    def work(gate: Callable[[], object]) -> Sample:
        feed(one.writer(), records)
        gate()
        gate()
        one.settle()
        return {}

    crew = Crew(root, writers, work)
    crew.gate()
    clock = Clock()
    one.look()
    sample = clock.stop(writers * records)
    crew.gate()
    crew.results()
    one.finish()
    one.check([records] * writers)
    return sample


def lone_loads(root: Path, writers: int, records: int) -> Sample:
    """`orjson.loads` of the same records, one by one, from a list of lines."""
    one = Ours(root)
    one.start()
    write = one.writer()
    for _ in range(writers):
        feed(write, records)
    one.settle()
    lines = [line for path in journals(root) for line in path.read_bytes().splitlines()]
    lines = [line for line in lines if not line.startswith(b'{"batch"')]
    loads = orjson.loads
    clock = Clock()
    for line in lines:
        loads(line)
    sample = clock.stop(len(lines))
    one.check([records] * writers)
    return sample


def looks(root: Path, unmerged: int, times: int) -> Sample:
    """Look again and again, each time at 100 new records among many that are not merged."""
    one = Ours(root)
    one.start()
    write = one.writer()
    feed(write, unmerged)
    one.look()
    walls = []
    for _ in range(times):
        feed(write, 100)
        clock = Clock()
        one.look()
        walls.append(clock.stop(1)["wall"])
    one.settle()
    one.finish()
    one.check([unmerged, *[100] * times])
    return {"records": 1, "wall": median(walls), "cpu": median(walls)}


def flushes(root: Path, tools: int, times: int) -> Sample:
    """Flush one record into the metrics of many tools, and write as many bytes durably by hand."""
    path, copy = root / SESSION / "metrics.json", root / "copy"
    flushed, written = [], []
    with Collector(SESSION, root) as collector:
        for number in range(tools):
            collector.record_tool_call(f"tool {number}", True, number)
        collector.flush()
        data = path.read_bytes()
        for _ in range(times):
            collector.record_tool_call("tool 0", True, 0)
            clock = Clock()
            collector.flush()
            flushed.append(clock.stop(1)["wall"])
            clock = Clock()
            _write_durably(copy, data)
            written.append(clock.stop(1)["wall"])
    _check_calls(root, tools + times)
    return {"records": 1, "wall": median(flushed), "cpu": median(flushed), "by_hand": median(written)}


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _check_calls(root: Path, calls: int) -> None:
    if findings := verify(root, SESSION):
        raise MismatchError(f"verify() found {'; '.join(map(str, findings[:3]))}")
    metrics = load(root, SESSION)
    if metrics is None or metrics.totals.tool_calls != calls:
        raise MismatchError(f"{metrics and metrics.totals.tool_calls} calls of {calls} were counted")


def lock_hold(root: Path, writers: int, times: int) -> Sample:
    """The time for which a flush holds `journal.lock` while many idle writers have large segments."""
    records = 12_000  # the segments are of 1 MiB then
    held: list[float] = []
    hold = Journal.hold

    def timed(journal: Journal, call: Callable[[], object], timeout: float | None = None) -> object:
        def clocked() -> object:
            clock = Clock()
            try:
                return call()
            finally:
                held.append(clock.stop(1)["wall"])

        return hold(journal, clocked, timeout)

    with Collector(SESSION, root) as collector:

        def work(gate: Callable[[], object]) -> Sample:
            for _ in range(records):
                collector.record_tool_call("tool", True, 0)
            gate()
            gate()
            return {}

        crew = Crew(root, writers, work)
        crew.gate()
        collector.flush()
        Journal.hold = timed  # type: ignore[method-assign, assignment]
        for _ in range(times):
            collector.record_tool_call("tool", True, 0)
            collector.flush()
        crew.gate()
        crew.results()
    _check_calls(root, writers * records + times)
    return {"records": 1, "wall": median(held[:times]), "cpu": median(held[:times])}


def dead_writers(root: Path, peer: str, processes: int) -> Sample:
    """Take in what so many processes left that recorded three events each and died without closing."""
    one = PEERS[peer](root)
    one.start()
    one.flush()  # whatever the first one does once
    living: list[int] = []
    for _ in range(processes):
        if len(living) == 4:
            wait_for(living.pop(0))
        living.append(fork(lambda: feed(one.writer(), 3)))
    for pid in living:
        wait_for(pid)
    clock = Clock()
    one.flush()
    sample = clock.stop(processes)
    one.finish()
    one.check([3] * processes)
    return sample


def backlog(root: Path, writers: int, seconds: float) -> Sample:
    """Take in what writers recorded at full speed for so long while nobody flushed. None may be dropped."""
    one = Ours(root)
    one.start()

    def work(gate: Callable[[], object]) -> Sample:
        write, records = one.writer(), 0
        gate()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            feed(write, len(CALLS))
            records += len(CALLS)
        return {"records": records}

    crew = Crew(root, writers, work)
    crew.gate()
    fed = [result["records"] for result in crew.results()]
    clock = Clock()
    one.flush()
    sample = clock.stop(sum(fed))
    dropped = one.collector.snapshot().dropped
    one.finish()
    one.check(fed)
    return {**sample, "dropped": sum(dropped.values())}
