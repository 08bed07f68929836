"""What a record and a flush ask of the system, counted and not timed: it follows the news, not history."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import orjson
import pytest

from m31a_mp import Collector, Usage, attach, load, verify
from m31a_mp.kinds.call import callers_part
from m31a_mp.metrics import file as metrics_file
from m31a_mp.segments.staging import Staging
from m31a_mp.session.paths import Session
from workers import Forked, locked, perform

# --- What Python asks of the system -------------------------------------------------------------------

# Functions in C that are no system call, of modules most of whose functions are one.
CLOCKS = {"time.time_ns", "time.monotonic", "time.monotonic_ns"}
HARMLESS = {*CLOCKS, "_thread.get_ident", "mmap.write", "mmap.tell"}
SYSTEM_MODULES = {
    module.__name__
    for module in map(sys.modules.__getitem__, ("posix", "fcntl", "mmap", "time", "_io", "_thread"))
}


@dataclass
class Asked:
    """What was called of the system meanwhile, and what was opened."""

    calls: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    bytes_read: int = 0
    """By read calls of any kind, of any file; what a mapped file gives is not in it."""


_watching: list[Asked] = []


def _on_audit_event(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event.split(".", maxsplit=1)[0] in {"object", "sys"}:
        return  # a hook stays for ever; these two are about Python itself
    _watching[-1].events.append(event)
    if event == "open" and not isinstance(arguments[0], int):  # a descriptor is open already
        _watching[-1].opened.append(os.path.basename(os.fsdecode(arguments[0])))


def _on_call(_: FrameType, event: str, function: Any) -> None:
    if event != "c_call":
        return
    owner = function.__self__
    module = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__
    name = f"{module}.{function.__name__}"
    if module in SYSTEM_MODULES and name not in HARMLESS:
        _watching[-1].calls.append(name)


@pytest.fixture(scope="module", autouse=True)
def _audit() -> None:
    sys.addaudithook(_on_audit_event)


@contextmanager
def watched() -> Iterator[Asked]:
    """Note what the system is asked for: calls of C functions, audit events, and the kernel's own count."""
    asked = Asked()
    before = _bytes_read()
    own = _bytes_read() - before  # what looking takes
    _watching.append(asked)
    sys.setprofile(_on_call)
    try:
        yield asked
    finally:
        sys.setprofile(None)
        _watching.pop()
        asked.bytes_read = _bytes_read() - before - 2 * own


def _bytes_read() -> int:
    # Of this thread: pytest-xdist has a thread that reads messages.
    counts = Path("/proc/thread-self/io").read_bytes().split()
    return int(counts[counts.index(b"rchar:") + 1])


def test_watched_sees_what_the_system_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with watched() as asked:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, bytes(5000), 0)
        os.pread(fd, 3000, 0)
        memory = mmap.mmap(fd, 5000)
        memory.flush()
        path.read_bytes()
    assert {"posix.open", "posix.pwrite", "posix.pread", "mmap.flush"} <= set(asked.calls)
    assert asked.opened == ["file", "file"]
    assert "mmap.__new__" in asked.events
    assert asked.bytes_read == 8000
    memory.close()
    os.close(fd)


# --- A record -----------------------------------------------------------------------------------------

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("tool_call", ("bash", True, 12)),
    ("llm_interaction", ("plan", Usage(900, 100, 1000), 0.25)),
    ("phase_transition", ("plan",)),
    ("phase_duration", ("plan", 12, True)),
    ("heal_trigger", ("plan",)),
    ("bisect_trigger", ("plan",)),
]


def test_first_record_of_a_process_opens_two_files_and_makes_none(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        perform(collector, [CALLS[0]])
        with watched() as asked:
            perform(collector, [CALLS[0]])
        assert asked.opened == ["journal.lock", "journal.ndjson"]
        assert len(asked.calls) < 30
        assert asked.bytes_read < 100  # of the journal only its last byte


@pytest.mark.usefixtures("segments_at_once")
def test_measured_call_with_room_in_its_segment_makes_no_system_call(sessions: Path) -> None:
    recorder = attach("s", sessions)
    with recorder.tool_call("bash"):
        pass
    with watched() as asked:
        for _ in range(20):
            with recorder.tool_call("bash"):
                pass
    assert (asked.calls, asked.opened, asked.bytes_read) == ([], [], 0)


@pytest.mark.parametrize("call", CALLS, ids=[name for name, _ in CALLS])
@pytest.mark.usefixtures("segments_at_once")
def test_record_with_room_in_its_segment_makes_no_system_call(
    sessions: Path, call: tuple[str, tuple[Any, ...]]
) -> None:
    recorder = attach("s", sessions)
    perform(recorder, [call])  # makes the segment
    with watched() as asked:
        perform(recorder, [call] * 50)
    assert (asked.calls, asked.events, asked.bytes_read) == ([], [], 0)


def test_system_calls_of_many_records_are_those_of_full_segments(sessions: Path) -> None:
    recorder = attach("s", sessions)
    per_thousand = []
    for _ in range(20):
        with watched() as asked:
            perform(recorder, [CALLS[0]] * 1000)
        per_thousand.append(len(asked.calls))
    assert per_thousand.count(0) >= 15  # a segment takes ten thousand records, when it has grown
    assert sum(per_thousand) < 1000


# --- A flush ------------------------------------------------------------------------------------------


def die_after(records: int, sessions: Path) -> None:
    """A process records and dies without closing anything."""
    with Forked(perform, attach("s", sessions), [CALLS[0]] * records) as writer:
        assert writer.wait() == 0


def flushes(sessions: Path, times: int, records: int) -> Iterator[Asked]:
    """Some dead writers, some records of the owner's, a flush; again and again."""
    with Collector("s", sessions) as collector:
        for _ in range(times):
            for _ in range(3):
                die_after(records, sessions)
            perform(collector, [CALLS[0]] * records)
            with watched() as asked:
                collector.flush()
            yield asked


@pytest.mark.slow
def test_files_opened_by_a_flush_do_not_grow_with_what_was_before(sessions: Path) -> None:
    opened = [len(asked.opened) for asked in flushes(sessions, times=12, records=5)]
    assert len(set(opened[1:])) == 1  # the first also makes what is not there yet
    metrics = load(sessions, "s")
    assert metrics
    assert metrics.tools[0].call_count == 12 * 4 * 5


def test_flush_reads_no_journal_that_an_earlier_one_read(sessions: Path) -> None:
    read: list[str] = []
    for asked in flushes(sessions, times=5, records=5):
        sealed = {name for name in asked.opened if name.startswith("journal.0")}
        assert sealed
        assert not sealed & set(read)
        read += sealed
    assert [path.name for path in (sessions / "s").glob("journal.*ndjson")] == []


def test_flush_after_a_long_history_reads_only_what_is_new(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        for _ in range(5):
            perform(collector, [CALLS[0]] * 20_000)
            collector.flush()
        perform(collector, [CALLS[0]] * 10)
        staged = sum(path.stat().st_size for path in (sessions / "s" / "segments").iterdir())
        with watched() as asked:
            collector.flush()
    # 9 MB were merged before. Now it reads the beginning of a segment, which has a megabyte that is not
    # filled, its journal of a kilobyte, metrics.json.
    assert staged == 1024 * 1024
    assert asked.bytes_read < 64 * 1024


def test_flush_of_one_record_encodes_one_entry_and_reads_no_metrics(
    sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = metrics_file._entry

    def count(entry: dict[str, Any]) -> orjson.Fragment:
        encoded.append(entry["name"])
        return encode(entry)

    monkeypatch.setattr(metrics_file, "_entry", count)
    with Collector("s", sessions) as collector:
        for number in range(500):
            collector.record_tool_call(f"tool {number}", True, number)
        collector.flush()
        assert len(encoded) == 500
        encoded.clear()
        collector.record_tool_call("tool 5", True, 7)
        with watched() as asked:
            collector.flush()
        assert encoded == ["tool 5"]
        assert "metrics.json" not in asked.opened
    metrics = load(sessions, "s")
    assert metrics
    assert [(tool.name, tool.call_count) for tool in metrics.tools[4:7]] == [
        ("tool 4", 1), ("tool 5", 2), ("tool 6", 1),
    ]  # fmt: skip


def test_flush_beside_many_running_calls_encodes_and_asks_about_only_the_new_one(
    sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    asked: list[str] = []
    encode = metrics_file._entry

    def count(entry: dict[str, Any]) -> orjson.Fragment:
        encoded.append(entry["name"])
        return encode(entry)

    def ask(call: str) -> str:
        asked.append(call)
        return callers_part(call)

    with Collector("s", sessions) as collector, ExitStack() as running:
        for number in range(500):
            running.enter_context(collector.tool_call(f"tool {number}"))
        collector.flush()
        monkeypatch.setattr(metrics_file, "_entry", count)
        monkeypatch.setattr("m31a_mp.metrics.interrupted.callers_part", ask)
        with collector.tool_call("another"):
            collector.flush()
            metrics = load(sessions, "s")
            assert metrics == collector.snapshot()
            assert [call.name for call in metrics.running] == [*(f"tool {n}" for n in range(500)), "another"]
        assert encoded == ["another"]
        assert len(asked) <= 2 * 501  # for the flush and the snapshot, once each
        collector.flush()
        metrics = load(sessions, "s")
        assert metrics
        assert len(metrics.running) == 500


@pytest.mark.slow
@pytest.mark.parametrize("look", [Collector.flush, Collector.snapshot])
def test_idle_writers_with_large_segments_cost_a_page_or_two_each(
    sessions: Path, look: Callable[[Collector], object]
) -> None:
    writers = 12
    with Collector("s", sessions) as collector:
        stagings = [Staging(Session.named("s", sessions)) for _ in range(writers)]
        for staging in stagings:
            for _ in range(20_000):
                staging.put("heal_trigger", ',"phase":"plan"')
        collector.flush()
        sizes = [path.stat().st_size for path in (sessions / "s" / "segments").iterdir()]
        assert sizes.count(1024 * 1024) >= writers
        with watched() as asked:
            look(collector)
        assert asked.bytes_read < writers * 40 * 1024
        assert collector.snapshot().phases[0].heal_trigger_count == writers * 20_000


def test_flush_after_workers_that_record_little_opens_no_file_for_any_of_them(sessions: Path) -> None:
    opened = []
    with Collector("s", sessions) as collector:
        for workers in (1, 20):
            for _ in range(workers):
                die_after(3, sessions)
            with watched() as asked:
                collector.flush()
            opened.append(len(asked.opened))
            collector.flush()
        assert opened[0] == opened[1]
        assert collector.snapshot().tools[0].call_count == 63


def test_backlog_of_many_writers_is_taken_in_whole_and_each_byte_read_a_few_times(sessions: Path) -> None:
    session, writers, records = Session.named("s", sessions), 8, 12_000
    with Collector("s", sessions) as collector:
        stagings = [Staging(session) for _ in range(writers)]
        with locked(session):  # so nothing can be handed over
            for staging in stagings:
                for _ in range(records):
                    staging.put("heal_trigger", ',"phase":"plan"')
        staged = sum(path.stat().st_size for path in (sessions / "s" / "segments").iterdir())
        with watched() as asked:
            collector.flush()
        assert asked.bytes_read < 3 * staged
        metrics = collector.snapshot()
        assert (metrics.phases[0].heal_trigger_count, metrics.dropped) == (writers * records, {})


def test_flush_without_news_reads_no_journal(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        perform(collector, [CALLS[0]] * 1000)
        collector.flush()
        with watched() as asked:
            collector.flush()
        assert not [name for name in asked.opened if name.endswith(".ndjson")]


def test_handing_over_to_a_long_journal_reads_only_its_end(sessions: Path) -> None:
    recorder = attach("s", sessions)
    perform(recorder, [CALLS[0]] * 20_000)
    recorder.flush()
    perform(recorder, [CALLS[0]] * 10)
    with watched() as asked:
        recorder.flush()
    journal = sessions / "s" / "journal.ndjson"
    assert journal.stat().st_size > 1_500_000
    # Of the journal 64 KiB at most; the rest of it are segments, none of which is larger than 1 MiB.
    assert asked.opened.count("journal.ndjson") <= 2
    assert asked.bytes_read < 64 * 1024 + 1024 * 1024
    assert verify(sessions, "s") == []
