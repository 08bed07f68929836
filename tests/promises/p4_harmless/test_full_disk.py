"""A disk that is full, or fails: the program goes on, what was kept is counted once, what was not is told."""

from __future__ import annotations

import gc
import itertools
import logging
import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EIO, ENOSPC
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from m31a_mp import Collector, MetricsError, Recorder, attach, compact, load, verify
from m31a_mp.journal.append import Journal
from m31a_mp.model import SessionMetrics
from m31a_mp.segments import staging, writer
from m31a_mp.segments.staging import Staging
from m31a_mp.segments.writer import Writer
from m31a_mp.session.paths import Session
from workers import Counters, Forked

SESSION = "s"
_PAGE = 4096


class Disk:
    """A small file system of its own; what is in the way of the sessions is one file, or many names."""

    def __init__(self, root: Path) -> None:
        self.sessions = root / "sessions"
        self._filler = root / "filler"
        self._names = root / "names"
        self.sessions.mkdir()
        self._names.mkdir()
        self._filler.touch()

    def fill(self, leave: int = 0) -> None:
        """Take all room but `leave` bytes."""
        with self._filler.open("ab", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(_PAGE))
        if leave:
            os.truncate(self._filler, self._filler.stat().st_size - leave)

    def fill_names(self, leave: int = 0) -> None:
        """Take all inodes but that many."""
        made: list[Path] = []
        with suppress(OSError):
            while True:
                made.append(self._names / str(len(made)))
                made[-1].touch()
        for path in made[:leave]:
            path.unlink()

    def make_room(self) -> None:
        os.truncate(self._filler, 0)
        for path in self._names.iterdir():
            path.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 1 MiB with 64 inodes.

    It is mounted in the mount namespace of a process that does nothing else, and reached through /proc: it
    is gone with that process, which ends with this one, however this one ends.
    """
    mount = (
        f"mount -t tmpfs -o size=1m,nr_inodes=64,mode=0700 m31a_mp '{tmp_path}' && echo mounted && exec cat"
    )
    for namespace in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        with suppress(FileNotFoundError), _Holder(["unshare", *namespace, "sh", "-c", mount]) as holder:
            if holder.mounted:
                root = Path(f"/proc/{holder.pid}/root{tmp_path}")
                yield Disk(root)
                return
    pytest.skip("mounting a tmpfs takes `unshare --mount`, which is not allowed here, or not there")


class _Holder:
    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout
        self.pid = self._process.pid
        self.mounted = self._process.stdout.readline() == b"mounted\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(autouse=True)
def _own_staging(new_process: Callable[[], None]) -> None:
    """What this process stages in a test is let go of at the end of it."""
    new_process()


class Tally:
    """What became of the calls of some processes, each with its row of shared numbers."""

    CALLS, KEPT, KEPT_MS, DROPPED, WARNINGS, GO, DONE = range(7)

    def __init__(self, path: Path, rows: int) -> None:
        self._numbers = Counters(path, rows * 7)
        self.rows = range(rows)

    def get(self, row: int, what: int) -> int:
        return self._numbers[row * 7 + what]

    def put(self, row: int, what: int, value: int) -> None:
        self._numbers[row * 7 + what] = value

    def add(self, row: int, what: int, value: int = 1) -> None:
        self.put(row, what, self.get(row, what) + value)

    def wait_for(self, row: int, what: int, least: int) -> None:
        self._numbers.wait_for(row * 7 + what, least)

    def go(self, *rows: int) -> None:
        """Let these processes do their next step, all at once, and wait until it is done."""
        for row in rows:
            self.add(row, self.GO)
        for row in rows:
            self.wait_for(row, self.DONE, self.get(row, self.GO))

    def total(self, what: int) -> int:
        return sum(self.get(row, what) for row in self.rows)

    def check(self, metrics: SessionMetrics | None, reason: str = "no_space") -> None:
        """Every call was either counted once with its value, or is told as dropped."""
        assert metrics is not None
        counted = {tool.name: (tool.call_count, tool.total_duration_ms) for tool in metrics.tools}
        assert counted == {
            f"tool {row}": (self.get(row, self.KEPT), self.get(row, self.KEPT_MS))
            for row in self.rows
            if self.get(row, self.KEPT)
        }
        dropped = self.total(self.DROPPED)
        assert metrics.dropped == ({reason: dropped} if dropped else {})
        assert self.total(self.KEPT) + dropped == self.total(self.CALLS)
        assert metrics.rejected == 0
        for row in self.rows:
            assert self.get(row, self.WARNINGS) == (self.get(row, self.DROPPED) > 0), row


class Recording(logging.Handler):
    """Records in one process, and notes for each call what became of it."""

    def __init__(self, tally: Tally, row: int, recorder: Recorder) -> None:
        super().__init__()
        self._tally = tally
        self._row = row
        self._recorder = recorder
        self._was_dropped = False

    def emit(self, record: logging.LogRecord) -> None:
        if "dropped" in record.getMessage():
            self._tally.add(self._row, Tally.WARNINGS)

    def __enter__(self) -> Self:
        self._patch = pytest.MonkeyPatch()
        drop = Writer._drop

        def noted(writer: Writer, reason: str, error: Exception | None = None) -> None:
            self._was_dropped = True
            drop(writer, reason, error)

        self._patch.setattr(Writer, "_drop", noted)
        logging.getLogger("m31a_mp").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("m31a_mp").removeHandler(self)
        self._patch.undo()

    def record(self) -> bool:
        """Record one call; returns whether it was kept."""
        tally, row = self._tally, self._row
        number = tally.get(row, Tally.CALLS) + 1
        # No two of them alike, and no small sum of some the same as that of others.
        duration = number * 2_654_435_761 % 2**32
        self._was_dropped = False
        self._recorder.record_tool_call(f"tool {row}", True, duration)
        tally.put(row, Tally.CALLS, number)
        if self._was_dropped:
            tally.add(row, Tally.DROPPED)
        else:
            tally.add(row, Tally.KEPT)
            tally.add(row, Tally.KEPT_MS, duration)
        return not self._was_dropped

    def record_until(self, kept: bool, count: int) -> None:
        while count:
            count -= self.record() is kept


def _worker(tally: Tally, row: int, recorder: Recorder, *steps: tuple[bool, int]) -> None:
    """Do a step, record until so many calls were kept or dropped, when the test says go."""
    with Recording(tally, row, recorder) as recording:
        for number, (kept, count) in enumerate(steps, 1):
            tally.wait_for(row, Tally.GO, number)
            recording.record_until(kept, count)
            tally.add(row, Tally.DONE)


def _ten_more_come_through(disk: Disk) -> None:
    with Collector(SESSION, disk.sessions) as collector:
        for _ in range(5):
            collector.record_tool_call("more", True, 1)
            attach(SESSION, disk.sessions).record_tool_call("more", True, 1)
        collector.flush()
        metrics = load(disk.sessions, SESSION)
        assert metrics
        assert [tool.call_count for tool in metrics.tools if tool.name == "more"] == [10]
    assert verify(disk.sessions, SESSION) == []


KEPT, DROPPED = True, False
DURABILITIES = ["process", "disk"]


@pytest.mark.slow
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("fill", [Disk.fill, Disk.fill_names])
def test_disk_full_before_the_first_record_drops_it_and_goes_on_when_there_is_room(
    fill: Callable[[Disk], None], durability: str, disk: Disk, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "tally", 1)
    with Collector(SESSION, disk.sessions) as collector:
        fill(disk)
        recorder = attach(SESSION, disk.sessions, durability=durability)
        with Forked(_worker, tally, 0, recorder, (DROPPED, 500), (KEPT, 100)) as process:
            tally.go(0)
            assert collector.snapshot().tools == []
            disk.make_room()
            tally.go(0)
            assert process.wait() == 0
        collector.flush()
        tally.check(load(disk.sessions, SESSION))
        assert tally.total(Tally.KEPT) == 100
    _ten_more_come_through(disk)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_drops_of_a_process_that_never_found_room_are_told_by_its_flush(
    durability: str, disk: Disk, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "tally", 1)
    with Collector(SESSION, disk.sessions, durability=durability) as collector:
        disk.fill()
        with Recording(tally, 0, collector) as recording:
            recording.record_until(DROPPED, 7)
        disk.make_room()
        collector.flush()
        tally.check(load(disk.sessions, SESSION))
        collector.flush()
        tally.check(load(disk.sessions, SESSION))
    tally.check(load(disk.sessions, SESSION))


@pytest.mark.slow
@pytest.mark.parametrize("durability", DURABILITIES)
def test_disk_that_fills_up_again_and_again_under_busy_writers_costs_only_what_is_told(
    durability: str, disk: Disk, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "tally", 4)
    others = tally.rows[1:]
    # So much that what they leave of the disk takes in all that they have staged when the filler goes.
    room = 160 * 1024
    steps = [(KEPT, 50), (DROPPED, 200)] * 3
    with Collector(SESSION, disk.sessions, durability=durability) as collector:
        recorder = attach(SESSION, disk.sessions, durability=durability)
        disk.fill(leave=room)
        workers = [Forked(_worker, tally, row, recorder, *steps) for row in others]
        with workers[0], workers[1], workers[2], Recording(tally, 0, collector) as recording:
            for _ in range(3):
                tally.go(*others)
                before = tally.total(Tally.CALLS)
                for row in others:
                    tally.add(row, Tally.GO)
                while tally.total(Tally.CALLS) < before + 300:
                    os.sched_yield()
                disk.fill()  # under their feet: they are at full speed
                for row in others:
                    tally.wait_for(row, Tally.DONE, tally.get(row, Tally.GO))
                recording.record_until(DROPPED, 10)
                disk.fill()  # once more: a segment that was given up meanwhile has left its room
                try:
                    collector.flush()  # finds room only if the first segments that it moves leave enough
                except OSError as error:
                    assert error.errno == ENOSPC  # noqa: PT017  # it may also succeed
                tally.check(collector.snapshot())
                disk.make_room()
                collector.flush()
                recording.record_until(KEPT, 10)
                tally.check(collector.snapshot())
                disk.fill(leave=room)
            assert [worker.wait() for worker in workers] == [0, 0, 0]
        disk.make_room()
        collector.flush()
        tally.check(load(disk.sessions, SESSION))
    _ten_more_come_through(disk)


@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.usefixtures("segments_at_once")
def test_disk_too_full_for_journal_or_metrics_fails_the_flush_and_loses_nothing(
    durability: str, room: int, disk: Disk, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "tally", 2)
    with Collector(SESSION, disk.sessions) as collector, Recording(tally, 0, collector) as recording:
        recording.record_until(KEPT, 5)
        recorder = attach(SESSION, disk.sessions, durability=durability)
        with Forked(_worker, tally, 1, recorder, (KEPT, 5), (KEPT, 5), (KEPT, 5)) as process:
            tally.go(1)
            collector.flush()
            before = (disk.sessions / SESSION / "metrics.json").read_bytes()
            disk.fill(leave=room * _PAGE)
            tally.go(1)
            recording.record_until(KEPT, 5)
            for _ in range(3):
                with pytest.raises(OSError, match="No space") as raised:
                    collector.flush()
                assert raised.value.errno == ENOSPC
                assert (disk.sessions / SESSION / "metrics.json").read_bytes() == before
                tally.check(collector.snapshot())
            tally.go(1)
            assert process.wait() == 0
        disk.make_room()
        collector.flush()
        tally.check(load(disk.sessions, SESSION))
        assert tally.total(Tally.DROPPED) == 0
    _ten_more_come_through(disk)


def test_flush_on_a_disk_that_the_session_itself_filled_gives_back_the_journals_room_and_goes_on(
    disk: Disk, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "tally", 1)
    with Collector(SESSION, disk.sessions) as collector, Recording(tally, 0, collector) as recording:
        disk.fill(leave=768 * 1024)
        recording.record_until(DROPPED, 1)
        journal = (disk.sessions / SESSION / "journal.ndjson").stat().st_size
        assert journal > 256 * 1024
        collector.flush()  # the records have left room for metrics.json, and for the way to it
        disk.make_room()
        recording.record_until(KEPT, 1)
        collector.flush()
        tally.check(load(disk.sessions, SESSION))
    _ten_more_come_through(disk)


@pytest.mark.parametrize("fill", [Disk.fill, Disk.fill_names])
def test_collector_opened_on_a_full_disk_raises_and_can_be_opened_when_there_is_room(
    fill: Callable[[Disk], None], disk: Disk, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "tally", 2)
    recorder = attach(SESSION, disk.sessions)
    with Forked(_worker, tally, 0, recorder, (KEPT, 5)) as process:
        tally.go(0)
        assert process.wait() == 0
    fill(disk)

    def open_it() -> None:
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                Collector(SESSION, disk.sessions)
        tally.put(1, Tally.GO, 1)
        tally.wait_for(1, Tally.GO, 2)
        with Collector(SESSION, disk.sessions) as collector, Recording(tally, 1, collector) as recording:
            recording.record_until(KEPT, 5)

    with Forked(open_it) as process:
        tally.wait_for(1, Tally.GO, 1)
        disk.make_room()
        tally.put(1, Tally.GO, 2)
        assert process.wait() == 0
    tally.check(load(disk.sessions, SESSION))
    _ten_more_come_through(disk)


@pytest.mark.usefixtures("segments_at_once")
def test_writer_killed_on_a_full_disk_has_its_records_counted_and_its_drops_told(
    disk: Disk, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "tally", 1)
    recorder = attach(SESSION, disk.sessions)
    with Forked(_worker, tally, 0, recorder, (KEPT, 5), (DROPPED, 50), (KEPT, 1)) as process:
        tally.go(0)
        disk.fill()
        tally.go(0)
        process.kill()
    with pytest.raises(OSError, match="No space"):
        compact(disk.sessions, SESSION)
    disk.make_room()
    tally.check(compact(disk.sessions, SESSION).metrics)
    _ten_more_come_through(disk)


_FILE_CALLS = [
    *(["open", "pread", "pwrite", "ftruncate", "fchmod", "fsync", "rename", "replace"]),
    *(["unlink", "link", "rmdir", "mkdir", "chmod", "stat", "lstat", "access", "listdir", "scandir"]),
]


class Faults:
    """Lets the Nth of the calls fail that concern the sessions, or all from the Nth on."""

    def __init__(self, patch: pytest.MonkeyPatch, sessions: Path) -> None:
        self._sessions = str(sessions)
        self._at = 0
        self._on = False
        self.calls = 0
        self.injected: list[str] = []
        for name in _FILE_CALLS:
            patch.setattr(os, name, self._failing(name, getattr(os, name)))
        patch.setattr(mmap, "mmap", self._failing("mmap", mmap.mmap))

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._on and self._concerns(name, arguments[0]):
                self.calls += 1
                if self._ends >= self.calls >= self._at:
                    self.injected.append(name)
                    return self._failure.fail(real, arguments)
            return real(*arguments, **options)

        return call

    def _concerns(self, name: str, target: object) -> bool:
        if self._failure.only and name not in self._failure.only:
            return False
        # Descriptors are only the library's; paths may also be those of /proc and of the interpreter.
        return isinstance(target, int) or os.fspath(target).startswith(self._sessions)  # type: ignore[call-overload]

    def start(self, failure: Failure, at: int, *, forever: bool) -> None:
        self._failure = failure
        self._at, self._ends = at, 10**9 if forever else at
        self.calls = 0
        self.injected = []
        self._on = True

    def stop(self) -> None:
        self._on = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        on, self._on = self._on, False
        try:
            yield
        finally:
            self._on = on


class Failure(NamedTuple):
    """A way for a call to fail, the calls that it is for (none: all), and what drops it should be."""

    fail: Callable[[Callable[..., Any], tuple[Any, ...]], Any]
    only: tuple[str, ...]
    reason: str


def _error(number: int, *only: str) -> Failure:
    def fail(_: Callable[..., Any], __: tuple[Any, ...]) -> Any:
        raise OSError(number, os.strerror(number), "injected")

    return Failure(fail, only, "io_error" if number == EIO else "no_space")


def _half(real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    fd, data, offset = arguments
    return real(fd, data[: len(data) // 2], offset)


SHORT = Failure(_half, ("pwrite",), "no_space")


@pytest.fixture
def faults(sessions: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch, sessions)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few records fill a segment, and room is looked for at every call."""
    monkeypatch.setattr(writer, "FIRST_SEGMENT_BYTES", 512)
    monkeypatch.setattr(writer, "MAX_SEGMENT_BYTES", 1024)
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(logging.getLogger("m31a_mp"), "disabled", True)  # it would keep tracebacks


class Calls:
    """Records calls of one tool, each with a bit of its own for its duration; knows which were kept."""

    def __init__(self, recorder: Recorder, tool: str) -> None:
        self.recorder = recorder
        self.tool = tool
        self.kept = 0
        self.dropped = 0
        self._kept_ms = 0

    def record(self, count: int) -> int:
        """Returns how many were kept."""
        before = self.kept
        for _ in range(count):
            duration, drops = 1 << (self.kept + self.dropped), len(_drops)
            self.recorder.record_tool_call(self.tool, True, duration)
            if len(_drops) == drops:
                self.kept += 1
                self._kept_ms += duration
            else:
                self.dropped += 1
        return self.kept - before

    def expected(self) -> dict[str, tuple[int, int]]:
        """How often and how long the tool was called, if each kept record counts once."""
        return {self.tool: (self.kept, self._kept_ms)} if self.kept else {}


_drops: list[str] = []
"""The reasons of all drops, in this process."""


@pytest.fixture
def _drops_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    drop = Writer._drop

    def noted(writer: Writer, reason: str, error: Exception | None = None) -> None:
        _drops.append(reason)
        drop(writer, reason, error)

    _drops.clear()
    monkeypatch.setattr(Writer, "_drop", noted)


class Life:
    """A session whose owner and one worker record while calls fail; both come to their end."""

    def __init__(self, sessions: Path, durability: str, reason: str) -> None:
        self._reason = reason
        self._sessions = sessions
        self._durability = durability
        self._descriptors = _descriptors()
        # Each has a staging of its own, as in two processes.
        self._worker = self._calls("worker")
        self._stage_of_worker = staging._stagings.popitem()[1]()
        self._owner = self._calls("owner")

    def _calls(self, name: str) -> Calls:
        return Calls(attach(SESSION, self._sessions, durability=self._durability), name)

    def run(self, faults: Faults) -> None:
        """Fill segments with the lock free and held, flush, have the worker die, flush, stop."""
        collector = None
        with suppress(OSError, MetricsError):
            collector = Collector(SESSION, self._sessions, durability=self._durability)
            self._owner.recorder = collector
        # In the durability "disk" each record makes many calls.
        before, held, after = (12, 12, 5) if self._durability == "process" else (3, 2, 1)
        self._owner.record(before)
        self._worker.record(before)
        _flush(collector)
        with suppress(OSError, MetricsError):
            Journal(Session.named(SESSION, self._sessions)).hold(lambda: self._owner.record(held))
        self._worker.record(after)
        assert self._stage_of_worker
        self._worker_had_a_segment = any(one.names() for one in self._stage_of_worker._writers)
        self._stage_of_worker.abandon()  # as its death would, see the fixture `dead`
        _flush(collector)
        self._owner.record(1)
        with faults.paused():
            assert self._owner.record(2) == 2, "not kept although nothing fails any more"
        self._owner.recorder.stop()
        faults.stop()
        self._owner.recorder.stop()  # what it could not tell it can tell now

    def check(self) -> None:
        """Count everything, as its next owner would."""
        found = compact(self._sessions, SESSION)
        counted = {tool.name: (tool.call_count, tool.total_duration_ms) for tool in found.metrics.tools}
        assert counted == self._owner.expected() | self._worker.expected()
        assert found.metrics.rejected == 0
        assert found.metrics.dropped.keys() <= {self._reason}
        told = found.metrics.dropped.get(self._reason, 0)
        if self._worker_had_a_segment:
            assert told == self._owner.dropped + self._worker.dropped
        else:
            # One that never had a segment has nothing that its drops could be told by after its death.
            assert told in {self._owner.dropped, self._owner.dropped + self._worker.dropped}
        assert verify(self._sessions, SESSION) == []

    def check_that_it_goes_on(self) -> None:
        before = load(self._sessions, SESSION)
        assert before
        with Collector(SESSION, self._sessions, durability=self._durability) as collector:
            for _ in range(10):
                collector.record_tool_call("more", True, 1)
            collector.flush()
            after = load(self._sessions, SESSION)
            assert after
            assert [tool.call_count for tool in after.tools[len(before.tools) :]] == [10]
        assert verify(self._sessions, SESSION) == []
        left = sorted(os.listdir(self._sessions / SESSION))
        assert left == ["journal.lock", "metrics.json", "owner.lock", "segments"]
        assert os.listdir(self._sessions / SESSION / "segments") == []
        staging._abandon_all()
        staging._active.clear()
        if _descriptors() > self._descriptors:
            gc.collect()  # a traceback may have held what is let go of by now
        assert _descriptors() <= self._descriptors, "descriptors leaked"


def _flush(collector: Collector | None) -> None:
    with suppress(OSError, MetricsError):
        if collector:
            collector.flush()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _lives(
    sessions: Path, faults: Faults, failure: Failure, durability: str, *, forever: bool
) -> Iterator[str]:
    """A life for each call that is made in one, until one comes to its end without a failure."""
    gc.collect()
    for number in itertools.count(1):
        staging._stagings.clear()
        writer._warned.clear()
        life = Life(sessions / str(number), durability, failure.reason)
        faults.start(failure, number, forever=forever)
        try:
            life.run(faults)
            life.check()
            life.check_that_it_goes_on()
        except BaseException as error:
            error.add_note(f"call {number} failed: {faults.injected[:3]}")
            raise
        finally:
            faults.stop()
        if not faults.injected:
            return
        yield faults.injected[0]


@pytest.mark.slow
@pytest.mark.usefixtures("dead", "_quick", "_drops_noted")
@pytest.mark.parametrize(
    ("number", "forever", "durability"),
    [
        pytest.param(ENOSPC, False, "process", id="ENOSPC once"),
        pytest.param(EIO, True, "process", id="EIO from then on"),
        pytest.param(EDQUOT, False, "disk", id="EDQUOT once, to the disk"),
        pytest.param(ENOSPC, True, "disk", id="ENOSPC from then on, to the disk"),
    ],
)
def test_whichever_call_fails_what_was_kept_is_counted_once_and_what_was_not_is_told(
    number: int, forever: bool, durability: str, sessions: Path, faults: Faults
) -> None:
    failed = list(_lives(sessions, faults, _error(number), durability, forever=forever))
    assert set(failed) >= {"open", "pwrite", "ftruncate", "rename", "mmap", "unlink"}


@pytest.mark.slow
@pytest.mark.usefixtures("dead", "_quick", "_drops_noted")
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_whichever_write_is_cut_short_what_was_kept_is_counted_once(
    forever: bool, durability: str, sessions: Path, faults: Faults
) -> None:
    assert set(_lives(sessions, faults, SHORT, durability, forever=forever)) == {"pwrite"}


class Ledger:
    """What a power cut would leave: of each file the bytes of its last fsync that did not fail.

    After one that failed the kernel may have dropped the bytes, and call the next one a success all the
    same: nothing that is done to that file makes it safe again.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._fsync = os.fsync
        self._safe: dict[int, bytes] = {}
        self._spoiled: dict[int, int] = {}  # kept open, or the numbers of their inodes would come again
        self.fsyncs: list[str] = []
        self.fails: Callable[[str], bool] = lambda _: False
        patch.setattr(os, "fsync", self._watched)

    def _watched(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        inode = os.fstat(fd).st_ino
        self.fsyncs.append(path.name)
        if self.fails(path.name):
            if inode not in self._spoiled:
                self._spoiled[inode] = os.dup(fd)
            raise OSError(EIO, "injected")
        self._fsync(fd)
        if inode not in self._spoiled and path.is_file():
            self._safe[inode] = path.read_bytes()

    def survives(self, session: Session) -> bytes:
        """Everything in the files of the session that a power cut would leave."""
        files = [session.metrics, session.rejected, session.journal, *(path for _, path in session.sealed())]
        there = filter(os.path.exists, files)
        return b"".join(self._safe.get(os.stat(path).st_ino, b"") for path in there)

    def close(self) -> None:
        for fd in self._spoiled.values():
            os.close(fd)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    ledger = Ledger(monkeypatch)
    yield ledger
    ledger.close()


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_flush_after_one_whose_fsync_failed_writes_the_files_anew(
    failures: int, session: Session, ledger: Ledger
) -> None:
    collector = Collector(SESSION, session.sessions_dir)
    collector.flush()
    for first in itertools.count(1):
        collector.record_tool_call(f"tool {first}", True, 1)
        with Path(session.journal).open("ab") as journal:
            journal.write(b"garbage %d\n" % first)
        calls = itertools.count(1)
        ledger.fails = lambda _, first=first, calls=calls: first <= next(calls) < first + failures  # type: ignore[misc]
        failed = _flushes_that_failed(collector)
        survivors = ledger.survives(session)
        for number in range(1, first + 1):
            assert b'"tool %d"' % number in survivors
            assert b"garbage %d\\n" % number in survivors
        if not failed:
            break
    assert first > 3  # the rejected lines, the metrics, and the directory after each
    collector.stop()
    assert len(verify(session.sessions_dir, SESSION)) == first


def _flushes_that_failed(collector: Collector) -> int:
    """Flush until it succeeds."""
    for failed in itertools.count():
        try:
            collector.flush()
        except OSError:
            continue
        return failed
    raise AssertionError


@pytest.fixture
def failed_syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads whose record was staged and not put on the disk, which the log says only once."""
    failed: list[str] = []
    sync = Staging._sync

    def noted(self: Staging) -> None:
        try:
            sync(self)
        except OSError:
            failed.append(threading.current_thread().name)
            raise

    monkeypatch.setattr(Staging, "_sync", noted)
    return failed


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [1, 3])
def test_durable_record_after_a_failed_fsync_of_the_journal_is_safe_in_a_new_file(
    first: int, failures: int, session: Session, ledger: Ledger, failed_syncs: list[str]
) -> None:
    calls = itertools.count(1)
    ledger.fails = lambda name: "journal" in name and first <= next(calls) < first + failures
    recorder = attach(SESSION, session.sessions_dir, durability="disk")
    safe = []
    for number in range(8):
        failed = len(failed_syncs)
        recorder.record_tool_call(f"tool {number}", True, 1)
        if len(failed_syncs) == failed:
            safe.append(b'"tool %d"' % number)
        survivors = ledger.survives(session)
        assert [name for name in safe if name not in survivors] == []
    assert next(calls) > first + failures
    assert len(compact(session.sessions_dir, SESSION).metrics.tools) == 8
    assert verify(session.sessions_dir, SESSION) == []


def test_thread_that_waited_while_anothers_fsync_failed_is_not_told_that_its_record_is_safe(
    session: Session, ledger: Ledger, failed_syncs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = attach(SESSION, session.sessions_dir, durability="disk")
    staged = threading.Semaphore(0)
    put = Staging.put

    def counted(self: Staging, *arguments: Any) -> None:
        put(self, *arguments)
        staged.release()

    monkeypatch.setattr(Staging, "put", counted)
    threads = [
        threading.Thread(target=recorder.record_tool_call, args=(name, True, 1), name=name)
        for name in ("one", "other")
    ]
    calls = itertools.count(1)

    def fails(name: str) -> bool:
        call = next(calls) if "journal" in name else 0
        if call == 1:  # both are staged while this one is under way, and wait for their turn
            for thread in threads:
                thread.start()
                staged.acquire()
        return call in {2, 3}  # of the journal, and of the file that was to take its place

    ledger.fails = fails
    recorder.record_tool_call("first", True, 1)
    for thread in threads:
        thread.join()
    survivors = ledger.survives(session)
    for name in {"first", "one", "other"} - set(failed_syncs):
        assert b'"%b"' % name.encode() in survivors
    assert len(compact(session.sessions_dir, SESSION).metrics.tools) == 3
