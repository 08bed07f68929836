"""Measurements of writers: one, many, and the slowest of their records."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median

import orjson

from benchmarks.measuring import Clock, Crew, Sample, Tail, clock_overhead, cpu_seconds, percentiles
from benchmarks.peers import CALLS, PEERS, SESSION, MismatchError, Ours, Peer, Record, event, feed
from m31a_mp import verify


def record(root: Path, peer: str, records: int) -> Sample:
    """One writer, until everything is handed over."""
    one = PEERS[peer](root)
    one.start()
    write = one.writer()
    feed(write, len(CALLS))  # every name was seen before
    clock = Clock()
    feed(write, records)
    one.settle()
    one.finish()
    sample = clock.stop(records)
    one.check([len(CALLS), records])
    return sample


def measured_call(root: Path, records: int) -> Sample:
    """`with tool_call()` around nothing, until everything is handed over: two records each."""
    one = Ours(root)
    one.start()
    feed(one.writer(), len(CALLS))
    tool_call = one.recorder.tool_call
    clock = Clock()
    for name, _, _ in islice(cycle(CALLS), records):
        with tool_call(name):
            pass
    one.settle()
    sample = clock.stop(records)
    one.collector.flush()
    tools = one.collector.snapshot().tools
    one.finish()
    calls, successes = sum(tool.call_count for tool in tools), sum(tool.success_count for tool in tools)
    before = sum(success for _, success, _ in CALLS)
    if (calls, successes) != (len(CALLS) + records, before + records):
        raise MismatchError(f"{calls} calls and {successes} successes were counted")
    one.collector.stop()
    if findings := verify(root, SESSION):
        raise MismatchError(f"verify() found {'; '.join(map(str, findings[:3]))}")
    return sample


def floor(root: Path, records: int) -> Sample:
    """orjson.dumps of a dict that is ready and a store into a mapped file; nothing else."""
    memory, dumps = _mapped_file(root), orjson.dumps
    ready = [event(*call) for call in CALLS]
    clock = Clock()
    for fields in islice(cycle(ready), records):
        line = dumps(fields)
        memory[: len(line)] = line
    return _checked_floor(clock.stop(records), memory)


def floor_and_dict(root: Path, records: int) -> Sample:
    """As the floor, but the dict is made for each record, with the time in it."""
    memory, dumps, now = _mapped_file(root), orjson.dumps, time.time_ns
    clock = Clock()
    for name, success, duration_ms in islice(cycle(CALLS), records):
        line = dumps(
            {
                "event": "tool_call",
                "time": now(),
                "name": name,
                "success": success,
                "duration_ms": duration_ms,
            }
        )
        memory[: len(line)] = line
    return _checked_floor(clock.stop(records), memory)


def _mapped_file(root: Path) -> mmap.mmap:
    with open(root / "floor", "w+b") as file:
        file.truncate(1 << 20)
        return mmap.mmap(file.fileno(), 1 << 20)


def _checked_floor(sample: Sample, memory: mmap.mmap) -> Sample:
    name, success, duration_ms = CALLS[(sample["records"] - 1) % len(CALLS)]
    stored = orjson.loads(memory[: memory.find(b"}") + 1])
    if stored != {**event(name, success, duration_ms), "time": stored["time"]}:
        raise MismatchError(f"the floor stored {stored}")
    return sample


def scaling(root: Path, peer: str, writers: int, records: int) -> Sample:
    """So many records by so many writers, from when the first may until the last has."""
    one = PEERS[peer](root)
    one.start()
    each = records // writers

    def work(gate: Callable[[], object]) -> Sample:
        write = one.writer()
        feed(write, len(CALLS) // 8)  # a record is known to work before the time begins
        gate()
        start = time.perf_counter()  # the same clock in all processes
        feed(write, each)
        return {"start": start, "end": time.perf_counter()}

    crew = Crew(root, writers, work)
    crew.gate()
    results = crew.results()
    wall = max(result["end"] for result in results) - min(result["start"] for result in results)
    one.finish()
    one.check([len(CALLS) // 8, each] * writers)
    return {"records": each * writers, "wall": wall, "cpu": cpu_seconds()}


def tail(root: Path, peer: str, writers: int, seconds: float) -> Sample:
    """Writers at full speed for so long, and an owner that flushes once a second."""
    one = PEERS[peer](root)
    one.start()
    crew = Crew(root, writers, lambda gate: _write_and_time(one, gate, seconds))
    crew.gate()
    start = time.perf_counter()
    flushes = []
    while (left := start + seconds - time.perf_counter()) > 0:
        time.sleep(min(1.0, left))
        before = time.perf_counter()
        one.flush()
        flushes.append(time.perf_counter() - before)
    results = crew.results()
    wall = time.perf_counter() - start
    one.finish()
    one.check([result["records"] for result in results])
    records = sum(result["records"] for result in results)
    return {
        "records": records,
        "wall": wall,
        "cpu": cpu_seconds(),
        **percentiles("cpu", [result["cpu"] for result in results]),
        **percentiles("wall", [result["wall"] for result in results]),
        "clock": median(result["clock"] for result in results),
        "waits": sum(result["waits"] for result in results),
        "flush": 0.0 if type(one).flush is Peer.flush else max(flushes),
    }


def _write_and_time(one: Peer, gate: Callable[[], object], seconds: float) -> Sample:
    """What each record took: CPU time of this writer, less what reading its clock takes, and wall time."""
    write = one.writer()
    cpu, wall = Tail(clock_overhead(time.thread_time_ns)), Tail(0)
    gate()
    waits = getrusage(RUSAGE_SELF).ru_nvcsw
    end = time.monotonic() + seconds
    records = 0
    while time.monotonic() < end:
        _time_each(write, cpu, wall)
        records += len(CALLS)
    waits = getrusage(RUSAGE_SELF).ru_nvcsw - waits
    return {"records": records, "cpu": cpu.seen, "wall": wall.seen, "clock": cpu.overhead, "waits": waits}


def _time_each(write: Record, cpu: Tail, wall: Tail) -> None:
    cpu_time, wall_time = time.thread_time_ns, time.perf_counter_ns
    for name, success, duration_ms in CALLS:
        wall_before = wall_time()
        cpu_before = cpu_time()
        write(name, success, duration_ms)
        cpu_after = cpu_time()
        wall_after = wall_time()
        cpu.add(cpu_after - cpu_before)
        wall.add(wall_after - wall_before)
