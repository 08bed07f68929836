"""Records in the middle of records: signal handlers, finalizers, collectors of garbage, threads, forks."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from m31a_mp import Collector, Recorder, durable, load, verify, writer
from workers import Counters, Forked

SESSION = "session"
# Long enough that a segment is full, and the way to the journal taken, every few hundred records.
LONG = "tool " + 300 * "x"


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    with Collector(SESSION, tmp_path) as collector:
        yield collector


def counted(sessions_dir: Path) -> dict[str, int]:
    metrics = load(sessions_dir, SESSION)
    assert metrics is not None
    assert (metrics.dropped, metrics.rejected) == ({}, 0)
    return {tool.name: tool.call_count for tool in metrics.tools}


def assert_counted(collector: Collector, sessions_dir: Path, expected: dict[str, int]) -> None:
    """Exactly these calls are in `metrics.json`, nothing is damaged, and ten more records come through."""
    collector.flush()
    assert counted(sessions_dir) == expected
    assert verify(sessions_dir, SESSION) == []
    for i in range(10):
        collector.record_tool_call("after", True, i)
    collector.flush()
    assert counted(sessions_dir) == expected | {"after": 10}


Handler = Callable[[FrameType | None], object]


class Alarms:
    """Calls a function from a signal handler again and again, at moments that nobody foresees.

    Only for a forked child, which has the alarm clock for itself. The next alarm is set when the program is
    back from the last one, so that a slow function does not interrupt itself forever.
    """

    def __init__(self, function: Handler, limit: int) -> None:
        self._function = function
        self._moments = random.Random(limit)
        self._limit = limit
        self._set = False
        self.count = 0
        signal.signal(signal.SIGALRM, self._strike)

    def done(self) -> bool:
        """Whether there were enough; sets the next one if there is none under way."""
        if not self._set and self.count < self._limit:
            self._set = True
            signal.setitimer(signal.ITIMER_REAL, self._moments.uniform(2e-6, 300e-6))
        return self.count >= self._limit

    def _strike(self, _: int, frame: FrameType | None) -> None:
        self.count += 1
        self._function(frame)
        self._set = False


def record_under_alarms(recorder: Recorder, numbers: Counters, function: Handler) -> None:
    """Count the records of the program, and the alarms."""
    alarms = Alarms(function, 3000)
    while not alarms.done():
        recorder.record_tool_call(LONG, True, 1)
        numbers[0] += 1
    numbers[1] = alarms.count


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
    assert_counted(collector, tmp_path, expected)


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
    assert_counted(collector, tmp_path, {LONG: numbers[0], "handler": numbers[1]})


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
    assert_counted(collector, tmp_path, {LONG: 5000, "finalizer": 5000, "callback" + LONG: called})


class RecordingText(str):
    """A name whose checking records."""

    __slots__ = ("recorder",)
    recorder: Recorder

    def encode(self, *arguments: Any, **options: Any) -> bytes:
        self.recorder.record_tool_call("inner", True, 1)
        return super().encode(*arguments, **options)


def test_argument_that_records_while_it_is_checked_loses_neither_record(
    collector: Collector, tmp_path: Path
) -> None:
    name = RecordingText("outer")
    name.recorder = collector
    for _ in range(100):
        collector.record_heal_trigger(name)

    collector.flush()
    assert counted(tmp_path)["inner"] >= 100
    assert [phase.heal_trigger_count for phase in collector.snapshot().phases] == [100]


# --- threads ---


def run_threads(functions: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own, all at once; raises what one of them raised."""
    errors: list[BaseException] = []
    together = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        try:
            together.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def test_eight_threads_that_record_through_one_collector_lose_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    def record(name: str) -> None:
        for _ in range(5000):
            collector.record_tool_call(name, True, 1)
            collector.record_tool_call("everybody's" + LONG, True, 1)

    run_threads([partial(record, f"thread {i}") for i in range(8)])

    expected = {f"thread {i}": 5000 for i in range(8)} | {"everybody's" + LONG: 40_000}
    assert_counted(collector, tmp_path, expected)


def test_threads_that_flush_look_and_stop_a_recorder_while_others_record_lose_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    recording = 4

    def record(name: str) -> None:
        nonlocal recording
        try:
            for _ in range(5000):
                collector.record_tool_call(name + LONG, True, 1)
        finally:
            recording -= 1

    def meanwhile(function: Callable[[], object]) -> None:
        while recording:
            function()

    recorder = Recorder(collector._session)
    run_threads(
        [
            *[partial(record, f"thread {i}") for i in range(4)],
            lambda: meanwhile(collector.flush),
            lambda: meanwhile(collector.snapshot),
            lambda: meanwhile(recorder.flush),
            lambda: meanwhile(recorder.stop),
        ]
    )

    assert_counted(collector, tmp_path, {f"thread {i}{LONG}": 5000 for i in range(4)})


def test_four_threads_at_full_speed_drop_nothing_however_small_their_backlog(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of them drains for all, and needs the interpreter for it: with the others never letting go of it
    # they soon have staged all that they may.
    monkeypatch.setattr(writer, "BACKLOG_BYTES", 4 * writer.MAX_SEGMENT_BYTES)

    def record(name: str) -> None:
        for i in range(25_000):
            collector.record_tool_call(name, True, i)

    names = [f"thread {i}{LONG}" for i in range(4)]
    run_threads([partial(record, name) for name in names])

    assert_counted(collector, tmp_path, dict.fromkeys(names, 25_000))


# --- forks ---

forks_with_threads = pytest.mark.filterwarnings(
    r"ignore:This process \(pid=\d+\) is multi-threaded, use of fork\(\) may lead:DeprecationWarning"
)


@forks_with_threads
def test_two_hundred_forks_while_four_threads_record_ten_thousand_records_lose_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    forks = 0
    turn = threading.Condition()

    def record(name: str) -> None:
        # As many for each fork as lets the threads be in the middle of it whenever one happens.
        for i in range(10_000):
            if i % 50 == 0:
                with turn:
                    turn.wait_for(lambda i=i: forks * 50 >= i)  # type: ignore[misc]
            collector.record_tool_call(name, True, 1)

    def record_in_child() -> None:
        for i in range(10):
            collector.record_tool_call("child", True, i)

    def fork() -> None:
        nonlocal forks
        while forks < 200:
            with Forked(record_in_child) as child:
                with turn:
                    forks += 1
                    turn.notify_all()
                assert child.wait() == 0

    names = [f"thread {i}{LONG}" for i in range(4)]
    run_threads([*[partial(record, name) for name in names], fork])

    assert_counted(collector, tmp_path, dict.fromkeys(names, 10_000) | {"child": 2000})


@forks_with_threads
def test_forks_while_other_threads_flush_and_hand_over_lose_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    forks_left, recorded = 50, 0

    def record_and_hand_over() -> None:
        nonlocal recorded
        while forks_left:
            for _ in range(100):
                collector.record_tool_call(LONG, True, 1)
                recorded += 1
            Recorder.flush(collector)

    def flush() -> None:
        while forks_left:
            collector.flush()

    def use_it_all() -> None:
        collector.record_tool_call("child", True, 1)
        collector.flush()
        collector.record_tool_call("child", True, 1)
        collector.stop()

    def fork() -> None:
        nonlocal forks_left
        try:
            while forks_left:
                with Forked(use_it_all) as child:
                    forks_left -= 1
                    assert child.wait() == 0
        finally:
            forks_left = 0

    run_threads([record_and_hand_over, flush, fork])

    assert_counted(collector, tmp_path, {LONG: recorded, "child": 100})


def is_recording(frame: FrameType | None) -> bool:
    while frame:
        if frame.f_code is Recorder.record_tool_call.__code__:
            return True
        frame = frame.f_back
    return False


def test_fork_in_a_signal_handler_in_the_middle_of_records_loses_nothing_in_either_process(
    collector: Collector, tmp_path: Path
) -> None:
    numbers = Counters(tmp_path / "numbers", 2)
    names = [f"tool {i}{LONG * 10}" for i in range(3)]  # every fifth record needs a new segment at first

    def record_and_fork() -> None:
        children: list[int] = []
        is_child = False

        def handler(frame: FrameType | None) -> None:
            nonlocal is_child
            if is_recording(frame):
                if pid := os.fork():
                    children.append(pid)
                else:
                    is_child = True

        alarms = Alarms(handler, 400)
        while not alarms.done():
            # In a child it ends, too, and must neither raise nor harm what the parent records.
            collector.record_tool_call(names[numbers[0] % 3], True, 1)
            if is_child:
                collector.record_tool_call("child", True, 1)
                os._exit(0)
            numbers[0] += 1
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)
        numbers[1] = len(children)

    with Forked(record_and_fork) as child:
        assert child.wait() == 0
    collector.flush()
    calls = counted(tmp_path)
    assert numbers[1] > 50
    assert calls.pop("child") == numbers[1]
    # A record that the child had all to itself, the fork coming first, counts for both.
    assert 0 <= sum(calls.values()) - numbers[0] <= numbers[1]
    assert verify(tmp_path, SESSION) == []


STEPS_OF_A_RECORD = [
    "allocate segment",
    "rename segment",
    "lengthen journal",
    "append to journal",
    "advance segment",
    "delete own segment",
]


@pytest.mark.parametrize("child_goes_on", ["first", "late"])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_A_RECORD)
def test_child_forked_at_a_step_of_a_record_harms_nothing_when_it_goes_on(  # noqa: PLR0913, PLR0917
    step: str,
    side: str,
    child_goes_on: str,
    collector: Collector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold, release = os.pipe()
    pid: int | None = None

    def fork(point: str) -> None:
        # As a signal handler would. The child goes on with the record before its parent does, or when its
        # parent is far ahead.
        nonlocal pid
        if point == f"{side} {step}" and pid is None:
            pid = os.fork()
            if pid == 0 and child_goes_on == "late":
                os.read(hold, 1)
            elif pid and child_goes_on == "first":
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(durable, "reached", fork)
    recorded = 0
    try:
        while recorded < 2000:
            collector.record_tool_call(LONG, True, 1)
            if pid == 0:
                collector.record_tool_call("child", True, 1)
                os._exit(0)
            recorded += 1
    except BaseException:
        if pid == 0:
            traceback.print_exc()
            os._exit(1)
        raise
    finally:
        os.write(release, b"x")
        assert pid, f"records do not pass through {step}"
        _, status = os.waitpid(pid, 0)
        os.close(hold)
        os.close(release)

    assert status == 0
    assert_counted(collector, tmp_path, {LONG: 2000, "child": 1})
