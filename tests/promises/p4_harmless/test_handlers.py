"""Records in the middle of records: of signal handlers, finalizers, collectors of garbage, and arguments."""

from __future__ import annotations

import gc
import numbers
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from m31a_mp import Collector, Recorder, attach, compact, load, verify
from m31a_mp.segments import staging
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from metrics_of import SESSION, counted
from moments import LONG, Alarms, Handler, Moments, assert_exactly, traces_every_instruction
from workers import Counters, Forked


def record_under_alarms(recorder: Recorder, numbers: Counters, function: Handler) -> None:
    """Count the records of the program, and the alarms."""
    alarms = Alarms(function, 3000)
    while not alarms.done():
        recorder.record_tool_call(LONG, True, 1)
        numbers[0] += 1
    numbers[1] = alarms.count


@pytest.mark.slow
def test_signal_handler_that_records_in_the_middle_of_records_loses_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    numbers = Counters(tmp_path / "numbers", 2)

    def handler(_: FrameType | None) -> None:
        collector.record_tool_call("handler", True, 1)
        collector.record_tool_call(LONG.upper(), True, 1)

    with Forked(record_under_alarms, collector, numbers, handler) as child:
        assert child.wait() == 0
    expected = {LONG: numbers[0], "handler": numbers[1], LONG.upper(): numbers[1]}
    assert_exactly(collector, tmp_path, expected)


@pytest.mark.slow
def test_signal_handler_that_looks_and_hands_over_in_the_middle_of_records_loses_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    numbers = Counters(tmp_path / "numbers", 2)

    def record_all() -> None:
        alarms = Alarms(handler, 200)
        while not alarms.done():
            collector.record_tool_call(LONG, True, 1)
            numbers[0] += 1
        numbers[1] = alarms.count

    def handler(_: FrameType | None) -> None:
        collector.record_tool_call("handler", True, 1)
        assert collector.snapshot().tools

    with Forked(record_all) as child:
        assert child.wait() == 0
    assert_exactly(collector, tmp_path, {LONG: numbers[0], "handler": numbers[1]})


@pytest.mark.slow
def test_owners_signal_handler_that_records_in_the_middle_of_flush_loses_nothing(tmp_path: Path) -> None:
    numbers = Counters(tmp_path / "numbers", 2)

    def own() -> None:
        collector = Collector(SESSION, tmp_path)
        alarms = Alarms(lambda _: collector.record_tool_call("handler", True, 1), 300)
        while not alarms.done():
            collector.record_tool_call("tool", True, 1)
            numbers[0] += 1
            collector.flush()
        numbers[1] = alarms.count
        collector.stop()

    with Forked(own) as child:
        assert child.wait() == 0
    assert counted(tmp_path) == {"tool": numbers[0], "handler": numbers[1]}
    assert verify(tmp_path, SESSION) == []


class Cycle:
    """Garbage that only the garbage collector finds, and that records when it is found."""

    def __init__(self, finalized: Callable[[], object]) -> None:
        self._finalized = finalized
        self._self = self

    def __del__(self) -> None:
        self._finalized()


@pytest.fixture
def eager_gc() -> Iterator[None]:
    """The garbage collector runs every few allocations: in the middle of records, too."""
    gc.collect()
    thresholds = gc.get_threshold()
    gc.set_threshold(2, 5, 5)
    yield
    gc.set_threshold(*thresholds)
    gc.collect()


@pytest.mark.usefixtures("eager_gc")
def test_finalizers_and_gc_callbacks_that_record_in_the_middle_of_records_lose_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    finalized = called = 0

    def finalize() -> None:
        nonlocal finalized
        finalized += 1
        collector.record_tool_call("finalizer", True, 1)

    def callback(phase: str, _: dict[str, int]) -> None:
        nonlocal called
        called += phase == "start"
        if phase == "start":
            collector.record_tool_call("callback" + LONG, True, 1)

    gc.callbacks.append(callback)
    try:
        for _ in range(5000):
            Cycle(finalize)
            collector.record_tool_call(LONG, True, 1)
    finally:
        gc.callbacks.remove(callback)
    gc.collect()

    assert finalized == 5000
    assert called > 100
    assert_exactly(collector, tmp_path, {LONG: 5000, "finalizer": 5000, "callback" + LONG: called})


class RecordingNumber:
    """A number whose checking records, as one of NumPy's could."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __index__(self) -> int:
        self._recorder.record_tool_call("inner", True, 1)
        return 7


numbers.Integral.register(RecordingNumber)


def test_argument_that_records_while_it_is_checked_loses_neither_record(
    collector: Collector, tmp_path: Path
) -> None:
    number = RecordingNumber(collector)
    for _ in range(100):
        collector.record_heal_duration("outer", number)  # type: ignore[arg-type]  # it is registered as one

    collector.flush()
    assert counted(tmp_path)["inner"] >= 100
    assert [phase.heal_duration_ms for phase in collector.snapshot().phases] == [700]


class DurableRecords:
    """Records to the disk, with a signal handler that does so too one moment later each time."""

    def __init__(self, sessions: Path, places: Path) -> None:
        self._recorder = attach(SESSION, sessions, durability="disk")
        self._stage = staging.staging(Session.named(SESSION, sessions))
        self._places = places
        self._inside, self._go_on = threading.Event(), threading.Event()
        self._other: threading.Thread | None = None

    def run(self, other: str, most: int) -> None:
        files.reached = self._reached
        with self._places.open("w") as told:
            for nth in range(1, most + 1):
                if not (where := self._interrupt_at(nth, other)):
                    return
                told.write(where + "\n")

    def _interrupt_at(self, nth: int, other: str) -> str:
        self._inside.clear()
        self._go_on.clear()
        thread = threading.Thread(target=self._record, args=("other",))
        if other == "syncs":
            self._other = thread
            thread.start()
            self._inside.wait()

        def handler() -> None:
            if other == "syncs":
                self._go_on.set()  # and it finishes, while the call that is interrupted here waits for it
                while self._stage._group_commit._committing.locked():
                    os.sched_yield()
            elif other == "comes":
                before = next(self._stage._group_commit._tickets)
                thread.start()
                while next(self._stage._group_commit._tickets) == before + 1:
                    before += 1
                    os.sched_yield()
            self._record("handler")

        moments = Moments(nth, handler)
        was_there = moments.trace(partial(self._record, "main"))
        self._other = None
        self._go_on.set()
        if was_there or other == "syncs":
            thread.join()
        return moments.where

    def _record(self, name: str) -> None:
        self._recorder.record_tool_call(name, True, 1)

    def _reached(self, point: str) -> None:
        if point == "before fsync journal.ndjson" and threading.current_thread() is self._other:
            self._inside.set()
            self._go_on.wait()


@pytest.mark.slow
@traces_every_instruction
@pytest.mark.timeout(30)
@pytest.mark.parametrize(("other", "most", "least"), [("syncs", 40, 40), ("comes", 1000, 150)])
def test_durable_record_of_a_signal_handler_returns_whatever_other_threads_do_with_the_disk(
    other: str, most: int, least: int, sessions: Path, tmp_path: Path
) -> None:
    records = DurableRecords(sessions, tmp_path / "places")
    with Forked(records.run, other, most) as child:
        assert child.wait() == 0
    moments = len((tmp_path / "places").read_text().splitlines())
    assert moments >= least
    compact(sessions, SESSION)
    calls = counted(sessions)
    assert (calls["other"], calls["handler"]) == (moments, moments)
    assert moments <= calls["main"] <= moments + 1  # the last one without a moment to interrupt it


# The steps of a record: the first, one that starts a segment, one that fills it, and one with an fsync.
STEPS_OF_RECORDS = [
    "append line",
    "make segment",
    "allocate segment",
    "lengthen journal",
    "append to journal",
    "delete segment",
    "fsync journal.ndjson",
]


@pytest.mark.parametrize("error", [TimeoutError, ValueError])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_RECORDS)
def test_exception_of_a_handler_reaches_the_program_and_no_record_is_lost(
    step: str, side: str, error: type[Exception], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual handler of an alarm raises TimeoutError, which is an OSError, but not one of the system."""
    recorder = attach(SESSION, session.sessions_dir, durability="disk" if "fsync" in step else "process")

    def strike(point: str) -> None:
        if point == f"{side} {step}":
            raise error("time is up")

    recorded, raised = 0, False
    with monkeypatch.context() as patch:
        patch.setattr(files, "reached", strike)
        for _ in range(300):
            try:
                recorder.record_tool_call(LONG, True, 1)
                recorded += 1
            except error:
                raised = True
                break
    assert raised
    recorder.record_tool_call(LONG, True, 1)
    recorder.stop()
    metrics = compact(session.sessions_dir, SESSION).metrics
    assert recorded + 1 <= metrics.tools[0].call_count <= recorded + 2
    assert (metrics.dropped, verify(session.sessions_dir, SESSION)) == ({}, [])


# A signal arrives in the middle of the first look or merge of a process, which imports.
IMPORTING = """
import signal, sys
from m31a_mp import Collector, InterruptedCallError
first, second, sessions = sys.argv[1:]
collector = Collector("s", sessions)
collector.record_tool_call("tool", True, 1)

def handler(*_):
    try:
        getattr(collector, second)()
    except InterruptedCallError:
        print("refused")

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "m31a_mp.model":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGTERM)

signal.signal(signal.SIGTERM, handler)
sys.meta_path.insert(0, Finder())
getattr(collector, first)()
assert not [finder for finder in sys.meta_path if type(finder) is Finder]
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["snapshot", "flush", "stop"])
@pytest.mark.parametrize("second", ["snapshot", "flush", "stop"])
def test_call_of_a_signal_handler_that_interrupts_an_import_is_refused_and_stop_is_made_later(
    first: str, second: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", IMPORTING, first, second, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("" if second == "stop" else "refused\n", "")
    assert verify(tmp_path, "s") == []
    metrics = load(tmp_path, "s")
    assert metrics
    assert [tool.call_count for tool in metrics.tools] == [1]
