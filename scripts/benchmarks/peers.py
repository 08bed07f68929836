"""What is compared: m31a_mp and what a user would pick instead, each behind the same few methods."""

# ruff: noqa: PLC0415  # each peer is imported by the process that measures it, and need not be installed

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from time import time_ns
from typing import Any, ClassVar

import orjson
from filelock import FileLock

from m31a_mp import Collector, attach, load, verify

SESSION = "bench"

# The calls that everybody records, over and over: eight tools, two calls in three succeed.
CALLS = [(f"tool-{i % 8}", i % 3 != 0, i * 37 % 1000) for i in range(960)]

Record = Callable[[str, bool, int], object]
Totals = dict[str, tuple[int, int, int]]
"""By tool: calls, successes, milliseconds."""

_fork = get_context("fork")


class MismatchError(Exception):
    """What was counted is not what was recorded, or who should have recorded it failed."""


def feed(record: Record, records: int) -> None:
    """Record so many of the calls. What the loop costs is part of everybody's time."""
    for name, success, duration_ms in islice(cycle(CALLS), records):
        record(name, success, duration_ms)


def expected(fed: list[int]) -> Totals:
    """What must be counted when writers recorded so many calls each."""
    calls, successes, durations = Counter[str](), Counter[str](), Counter[str]()
    for times, some in (
        (sum(n // len(CALLS) for n in fed), CALLS),
        *((1, CALLS[: n % len(CALLS)]) for n in fed),
    ):
        for name, success, duration_ms in some:
            calls[name] += times
            successes[name] += times * success
            durations[name] += times * duration_ms
    return {name: (count, successes[name], durations[name]) for name, count in calls.items() if count}


class Peer:
    """A way to count the tool calls of several processes. These methods do nothing where it needs nothing."""

    name: ClassVar[str]
    module: ClassVar[str] = "sqlite3"
    """What must be importable."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self) -> None:
        """In the owning process, before there are writers."""

    def writer(self) -> Record:
        """In a writer: what records a call. It is safe from the death of the writer when it returns."""
        raise NotImplementedError

    def settle(self) -> None:
        """In a writer, after its last record."""

    def flush(self) -> None:
        """In the owning process, once a second."""

    def look(self) -> object:
        """In the owning process: the numbers as they are now, whatever the writers are doing."""
        raise NotImplementedError

    def finish(self) -> None:
        """In the owning process, when the writers are done."""

    def totals(self) -> Totals:
        """What was counted, after `finish`."""
        raise NotImplementedError

    def check(self, fed: list[int]) -> None:
        """Compare what was counted with what writers recorded.

        Raises:
            MismatchError: They differ.
        """
        counted, right = self.totals(), expected(fed)
        if counted != right:
            raise MismatchError(f"{self.name} counted {counted}, recorded were {right}")


class Ours(Peer):
    """This library."""

    name = "m31a_mp"
    module = "m31a_mp"

    def start(self) -> None:
        import m31a_mp.metrics.compactor  # noqa: F401  # as that of a peer, this import is not measured

        self.collector = Collector(SESSION, self.root)

    def writer(self) -> Record:
        self.recorder = attach(SESSION, self.root)
        return self.recorder.record_tool_call

    def settle(self) -> None:
        self.recorder.flush()

    def flush(self) -> None:
        self.collector.flush()

    def look(self) -> object:
        return self.collector.snapshot()

    def totals(self) -> Totals:
        self.collector.stop()
        if findings := verify(self.root, SESSION):
            raise MismatchError(f"verify() found {'; '.join(map(str, findings[:3]))}")
        metrics = load(self.root, SESSION)
        tools = metrics.tools if metrics else []
        return {tool.name: (tool.call_count, tool.success_count, tool.total_duration_ms) for tool in tools}


class Prometheus(Peer):
    """prometheus_client in multiprocess mode: a counter by name and success, a summary of the duration."""

    name = "prometheus_client"
    module = "prometheus_client"

    def start(self) -> None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.root)  # it looks there when it is imported
        import prometheus_client
        from prometheus_client import multiprocess

        registry = prometheus_client.CollectorRegistry()
        self.calls = prometheus_client.Counter("calls", "tool calls", ["name", "success"], registry=registry)
        self.durations = prometheus_client.Summary("duration", "in ms", ["name"], registry=registry)
        self.collector = multiprocess.MultiProcessCollector(None, str(self.root))

    def writer(self) -> Record:
        calls, durations = self.calls, self.durations

        def record(name: str, success: bool, duration_ms: int) -> None:
            calls.labels(name, success).inc()
            durations.labels(name).observe(duration_ms)

        return record

    def flush(self) -> None:
        self.look()

    def look(self) -> Any:
        return self.collector.collect()

    def totals(self) -> Totals:
        samples = [sample for metric in self.look() for sample in metric.samples]
        return _sum_samples(
            [
                (s.labels["name"], s.labels.get("success"), s.value)
                for s in samples
                if s.name in {"calls_total", "duration_sum"}
            ]
        )


def _sum_samples(samples: list[tuple[str, str | None, float]]) -> Totals:
    """From (name, success, value): a value without `success` is the sum of the durations."""
    sums: dict[str, list[int]] = {}
    for name, success, value in samples:
        entry = sums.setdefault(name, [0, 0, 0])
        entry[0] += int(value) if success else 0
        entry[1] += int(value) if success == "True" else 0
        entry[2] += int(value) if not success else 0
    return {name: (calls, successes, ms) for name, (calls, successes, ms) in sums.items()}


class OpenTelemetry(Peer):
    """The OpenTelemetry SDK: a counter and a histogram. Counts within one process only."""

    name = "opentelemetry-sdk"
    module = "opentelemetry.sdk"

    def start(self) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader])

    def writer(self) -> Record:
        meter = self.provider.get_meter("bench")
        add, observe = meter.create_counter("calls").add, meter.create_histogram("duration").record

        def record(name: str, success: bool, duration_ms: int) -> None:
            add(1, {"name": name, "success": success})
            observe(duration_ms, {"name": name})

        return record

    def totals(self) -> Totals:
        data: Any = self.reader.get_metrics_data()
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
        points = [(metric.name, point) for metric in metrics for point in metric.data.data_points]
        self.provider.shutdown()
        return _sum_samples(
            [
                (p.attributes["name"], str(p.attributes["success"]), p.value)
                if name == "calls"
                else (p.attributes["name"], None, p.sum)
                for name, p in points
            ]
        )


class Sqlite(Peer):
    """SQLite in WAL mode: a row for each call, in a transaction of its own."""

    name = "SQLite, WAL"

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.root / "calls.db", timeout=120, isolation_level=None)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def start(self) -> None:
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE calls (time INTEGER, name TEXT, success INTEGER, duration_ms INTEGER)"
            )
        connection.close()  # none may be open across a fork

    def writer(self) -> Record:
        execute = self._connect().execute

        def record(name: str, success: bool, duration_ms: int) -> None:
            execute("INSERT INTO calls VALUES (?, ?, ?, ?)", (time_ns(), name, success, duration_ms))

        return record

    def totals(self) -> Totals:
        query = "SELECT name, count(*), sum(success), sum(duration_ms) FROM calls GROUP BY name"
        return {name: (calls, successes, ms) for name, calls, successes, ms in self._connect().execute(query)}


class Queue(Peer):
    """multiprocessing.SimpleQueue to a process that collects."""

    name = "SimpleQueue"

    def start(self) -> None:
        self.queue = _fork.SimpleQueue()
        self.result = _fork.SimpleQueue()
        self.process = _fork.Process(target=self._collect, daemon=True)
        self.process.start()

    def _collect(self) -> None:
        sums: Totals = {}
        while (call := self.queue.get()) is not None:
            _count(sums, *call)
        self.result.put(sums)

    def writer(self) -> Record:
        put = self.queue.put
        return lambda name, success, duration_ms: put((name, success, duration_ms))

    def finish(self) -> None:
        self.queue.put(None)
        self.sums: Totals = self.result.get()
        self.process.join()

    def totals(self) -> Totals:
        return self.sums


def _count(sums: Any, name: str, success: bool, duration_ms: int) -> None:
    calls, successes, ms = sums.get(name, (0, 0, 0))
    sums[name] = calls + 1, successes + success, ms + duration_ms


class ManagerDict(Peer):
    """multiprocessing.Manager().dict(), under a lock, without which calls would be lost."""

    name = "Manager().dict()"

    def start(self) -> None:
        self.manager = _fork.Manager()
        self.shared = self.manager.dict()
        self.lock = _fork.Lock()

    def writer(self) -> Record:
        def record(name: str, success: bool, duration_ms: int) -> None:
            with self.lock:
                _count(self.shared, name, success, duration_ms)

        return record

    def finish(self) -> None:
        self.sums: Totals = dict(self.shared)
        self.manager.shutdown()

    def totals(self) -> Totals:
        return self.sums


class NaiveLock(Peer):
    """For each call: take a file lock, append a line, release."""

    name = "filelock, append, release"
    module = "filelock"

    def writer(self) -> Record:
        lock = FileLock(self.root / "calls.lock")
        fd = os.open(self.root / "calls.ndjson", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

        def record(name: str, success: bool, duration_ms: int) -> None:
            with lock:
                os.write(
                    fd, orjson.dumps(event(name, success, duration_ms), option=orjson.OPT_APPEND_NEWLINE)
                )

        return record

    def totals(self) -> Totals:
        sums: Totals = {}
        with open(self.root / "calls.ndjson", "rb") as lines:
            for line in lines:
                call = orjson.loads(line)
                _count(sums, call["name"], call["success"], call["duration_ms"])
        return sums


def event(name: str, success: bool, duration_ms: int) -> dict[str, object]:
    """The record of a call, as m31a_mp writes it."""
    return {
        "event": "tool_call",
        "time": time_ns(),
        "name": name,
        "success": success,
        "duration_ms": duration_ms,
    }


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (Ours, Prometheus, OpenTelemetry, Sqlite, Queue, ManagerDict, NaiveLock)
}
