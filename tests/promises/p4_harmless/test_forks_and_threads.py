"""Records in the middle of records: signal handlers, finalizers, collectors of garbage, threads, forks."""

from __future__ import annotations

import contextlib
import ctypes
import dis
import gc
import itertools
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from errno import ENOSPC
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import m31a_mp
from m31a_mp import Collector, Recorder, attach, compact, load, verify
from m31a_mp.segments import staging, writer
from m31a_mp.session.paths import Session
from m31a_mp.system import files, flock
from metrics_of import SESSION, calls, counted
from workers import BoomError, Counters, Forked

PACKAGE = os.path.dirname(m31a_mp.__file__)
# Long enough that a segment is full, and the way to the journal taken, every few hundred records.
LONG = "tool " + 300 * "x"


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
    assert_counted(collector, tmp_path, expected)


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


def test_four_threads_at_full_speed_drop_nothing(collector: Collector, tmp_path: Path) -> None:
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    "delete segment",
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

    monkeypatch.setattr(files, "reached", fork)
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


# --- at every moment at which the interpreter handles signals ---


traces_every_instruction = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="3.13 does not trace the instructions of a function that is new to it"
)


class Moments:
    """A trace function: calls another one at the nth moment of a call at which a signal handler may run.

    The interpreter runs those behind calls, at the beginning of functions and where a loop begins again.
    """

    def __init__(self, nth: int, function: Callable[[], object]) -> None:
        self._left = nth
        self._function = function
        self.where = ""

    def trace(self, call: Callable[[], object]) -> bool:
        """Make a call; returns whether it had so many moments."""
        sys._getframe().f_trace_opcodes = True  # which is how 3.12 knows that it is to trace any
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(None)
        return bool(self.where)

    def _enter(self, frame: FrameType, _: str, __: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if self.where or not code.co_filename.startswith((PACKAGE, contextlib.__file__)):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        codes = code.co_code
        last = "RESUME"  # where the function begins, which 3.12 does not show

        def step(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
            nonlocal last
            if event == "opcode":
                now = dis.opname[codes[frame.f_lasti]]
                # Of a call whose function is known, 3.11 makes one instruction out of PRECALL and CALL.
                if now not in {"CALL", "RESUME"} and last.startswith(
                    ("CALL", "PRECALL", "RESUME", "JUMP_BACKWARD")
                ):
                    self._pass(frame)
                last = now
            return None if self.where else step

        return step

    def _pass(self, frame: FrameType) -> None:
        self._left -= 1
        if self._left:
            return
        code = frame.f_code
        self.where = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
        sys.settrace(None)
        around: FrameType | None = frame
        while around:
            around.f_trace = None
            around = around.f_back
        self._function()


class SystemCalls:
    """Calls a function right before the nth of the system calls by which files are made and changed."""

    NAMES = ("open", "pwrite", "ftruncate", "rename", "unlink")

    def __init__(self, nth: int, function: Callable[[], object]) -> None:
        self._left = nth
        self._function = function
        self.where = ""

    def trace(self, call: Callable[[], object]) -> bool:
        """Make a call; returns whether it makes so many."""
        with pytest.MonkeyPatch.context() as patch:
            for name in self.NAMES:
                patch.setattr(os, name, partial(self._pass, name, getattr(os, name)))
            call()
        return bool(self.where)

    def _pass(self, name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self.where = f"{name}{arguments[:1]}"
            self._function()
        return real(*arguments, **options)


def first_record(recorder: Recorder, nth: int) -> None:
    recorder.record_tool_call(f"call {nth}", True, 1)


def record_that_changes_segment(recorder: Recorder, nth: int) -> None:
    recorder.record_tool_call(f"call {nth}".ljust(500), True, 1)


def stop_recorder(recorder: Recorder, _: int) -> None:
    recorder.stop()


def do_nothing(_: Recorder, __: int) -> None:
    pass


def fill_segment(recorder: Recorder, nth: int) -> None:
    for _ in range(3):
        recorder.record_tool_call(f"before {nth}", True, 1)


Call = Callable[[Recorder, int], None]
CALLS: list[tuple[Call, Call]] = [
    (do_nothing, first_record),
    (fill_segment, record_that_changes_segment),
    (fill_segment, stop_recorder),
]
CALL_NAMES = ["first record", "record that changes segment", "stop"]


class ForkingAgainAndAgain:
    """Makes a call again and again, each time with a fork one moment later. Both processes go on.

    In turn, the child goes on with the call before its parent does ("first"), when its parent has recorded
    more ("late"), or when its parent has handed all of that over ("last").
    """

    def __init__(self, sessions: Path, places: Path, prepare: Call, call: Call) -> None:
        self._sessions = sessions
        self._places = places
        self._prepare = prepare
        self._call = call

    def run(self, moments: type[Moments | SystemCalls], orders: Sequence[str]) -> None:
        writer.FIRST_SEGMENT_BYTES, writer.MAX_SEGMENT_BYTES = 640, 1024
        with self._places.open("w") as told:
            for nth in itertools.count(1):
                if not (where := self._fork_at(moments, nth, orders[nth % len(orders)])):
                    return
                told.write(where + "\n")

    def _fork_at(self, moments: type[Moments | SystemCalls], nth: int, order: str) -> str:
        """Returns where that was; nothing if the call has not so many moments."""
        staging._stagings.clear()  # as in a new process
        recorder = attach(SESSION, self._sessions)
        self._prepare(recorder, nth)
        hold, release = os.pipe()
        pid: int | None = None

        def fork() -> None:
            nonlocal pid
            pid = os.fork()
            if pid == 0 and order != "first":
                os.read(hold, 1)
            elif pid and order == "first":
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        moment = moments(nth, fork)
        if moment.trace(partial(self._call, recorder, nth)):
            for _ in range(2):
                recorder.record_tool_call(f"{'parent' if pid else 'child'} {nth}", True, 1)
            if not pid:
                os.kill(os.getpid(), signal.SIGKILL)
                raise AssertionError
            if order == "last":
                recorder.stop()
            os.write(release, b"x")
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, moment.where
            recorder.stop()
        os.close(hold)
        os.close(release)
        return moment.where

    def assert_nothing_is_lost(self, least: int) -> None:
        """Not what either process recorded before, while or after at least so many forks."""
        forks = self._places.read_text().splitlines()
        assert len(forks) >= least
        metrics = compact(self._sessions, SESSION).metrics
        calls = {tool.name.rstrip(): tool.call_count for tool in metrics.tools}
        expected = {"parent": {2}, "child": {2}}
        if self._prepare is fill_segment:
            expected["before"] = {3}
        if self._call is not stop_recorder:
            expected["call"] = {1, 2}  # twice if the child had it all to itself, the fork coming first
        wrong = [
            (f"{what} {nth}", calls.get(f"{what} {nth}"), where)
            for nth, where in enumerate(forks, 1)
            for what, counts in expected.items()
            if calls.get(f"{what} {nth}") not in counts
        ]
        assert wrong == []
        assert (metrics.dropped, metrics.rejected) == ({}, 0)
        assert verify(self._sessions, SESSION) == []


@pytest.mark.slow
@traces_every_instruction
@pytest.mark.parametrize(
    ("prepare", "call", "least"),
    [
        (*CALLS[0], 80),
        (*CALLS[1], 200),
        (*CALLS[2], 150),
    ],
    ids=CALL_NAMES,
)
def test_fork_at_any_moment_of_a_call_at_which_signals_are_handled_loses_nothing_in_either_process(
    prepare: Call, call: Call, least: int, sessions: Path, tmp_path: Path
) -> None:
    forking = ForkingAgainAndAgain(sessions, tmp_path / "places", prepare, call)
    with Forked(forking.run, Moments, ["first", "late", "last"]) as child:  # where nothing else traces
        assert child.wait() == 0
    forking.assert_nothing_is_lost(least)


@pytest.mark.parametrize("order", ["first", "late", "last"])
@pytest.mark.parametrize(
    ("prepare", "call", "least"),
    [(*calls, least) for calls, least in zip(CALLS, (4, 10, 6), strict=True)],
    ids=CALL_NAMES,
)
def test_fork_right_before_a_system_call_loses_nothing_however_late_the_child_makes_it(  # noqa: PLR0913, PLR0917
    prepare: Call,
    call: Call,
    least: int,
    order: str,
    sessions: Path,
    tmp_path: Path,
) -> None:
    forking = ForkingAgainAndAgain(sessions, tmp_path / "places", prepare, call)
    with Forked(forking.run, SystemCalls, [order]) as child:
        assert child.wait() == 0
    forking.assert_nothing_is_lost(least)


class ForkOnce:
    """Forks when it is called for the first time, as a signal handler would."""

    def __init__(self) -> None:
        self._pid: int | None = None

    def __call__(self) -> None:
        if self._pid is None:
            self._pid = os.fork()

    def at(self, point: str) -> Callable[[str], None]:
        """A function to be called at every point, which forks at this one."""
        return lambda reached: self() if reached == point else None

    def is_child(self) -> bool:
        assert self._pid is not None
        return self._pid == 0

    def wait(self) -> int:
        assert self._pid
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def test_fork_while_a_writer_is_made_gives_the_child_another_one(sessions: Path) -> None:
    def record_in_both() -> None:
        fork = ForkOnce()

        urandom = os.urandom

        def fork_with_identity(size: int) -> bytes:
            identity = urandom(size)
            fork()
            return identity

        recorder = attach(SESSION, sessions)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "urandom", fork_with_identity)
            recorder.record_tool_call("one", True, 1)
        for _ in range(3 if fork.is_child() else 100):
            recorder.record_tool_call("child" if fork.is_child() else "parent", True, 1)
        assert fork.is_child() or fork.wait() == 0

    with Forked(record_in_both) as child:
        assert child.wait() == 0
    compact(sessions, SESSION)
    assert counted(sessions) == {"one": 1, "child": 3, "parent": 100}


@pytest.mark.parametrize("call", ["stop", "flush that tells of drops"])
def test_records_of_a_child_forked_in_the_middle_of_handing_over_are_counted(
    call: str, sessions: Path
) -> None:
    def hand_over_in_both() -> None:
        fork = ForkOnce()
        recorder = attach(SESSION, sessions)
        recorder.record_tool_call("parent", True, 1)
        if call != "stop":
            recorder.stop()
            stage = staging.staging(Session.named(SESSION, sessions))
            dropper = stage._new_writer()
            dropper._drop("no_space", OSError(ENOSPC, "full"))
            stage._free.append(dropper)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "reached", fork.at("before append to journal"))
            if call == "stop":
                recorder.stop()
            else:
                with suppress(files.ForkedError):  # in the child
                    recorder.flush()
        if fork.is_child():
            for _ in range(5):
                recorder.record_tool_call("child", True, 1)
            recorder.stop()
        else:
            recorder.stop()
            assert fork.wait() == 0

    with Forked(hand_over_in_both) as child:
        assert child.wait() == 0
    metrics = compact(sessions, SESSION).metrics
    assert calls(metrics) == {"parent": 1, "child": 5}
    assert metrics.dropped == ({} if call == "stop" else {"no_space": 1})
    assert verify(sessions, SESSION) == []


@forks_with_threads
def test_threads_of_a_child_forked_while_another_thread_flushes_can_do_everything(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def reached(point: str) -> None:
        if point == "before fsync directory" and threading.current_thread() is flushing:
            inside.set()
            go_on.wait()

    def own() -> None:
        with Collector("child", tmp_path) as mine:
            mine.record_tool_call("child", True, 1)

    def own_in_new_threads() -> None:
        for _ in range(4):  # one of them gets the identity of the flushing thread, which is none here
            run_threads([own])

    collector.record_tool_call("parent", True, 1)
    monkeypatch.setattr(files, "reached", reached)
    flushing = threading.Thread(target=collector.flush)
    flushing.start()
    try:
        inside.wait()
        with Forked(own_in_new_threads) as child:
            assert child.wait() == 0
    finally:
        go_on.set()
        flushing.join()
    metrics = load(tmp_path, "child")
    assert metrics
    assert metrics.tools[0].call_count == 4
    assert_counted(collector, tmp_path, {"parent": 1})


# --- durable records of a signal handler ---


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


def test_exceptions_of_signal_handlers_anywhere_leave_nothing_behind_that_stops_later_calls(
    tmp_path: Path,
) -> None:
    armed = False

    def strike(*_: object) -> None:
        if armed:
            raise BoomError

    def record_and_be_interrupted() -> None:
        nonlocal armed
        recorder = attach(SESSION, tmp_path)
        moments = random.Random(3)
        raised = 0
        kept = None
        signal.signal(signal.SIGALRM, strike)
        while raised < 1000:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 3e-4))
            try:
                armed = True
                recorder.record_tool_call("tool", True, 1)
                recorder.flush()
                recorder.stop()
                armed = False
            except BoomError as error:  # one for each alarm
                raised += 1
                armed = False
                kept = error  # with its traceback, and all that the calls had in their variables
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert not any(not file.closed for file in flock._files.values()), kept
            assert not any((file := known()) and not file.closed for known in files._changing.values())
            assert files._under_way() is None
        recorder.record_tool_call("after", True, 1)
        recorder.flush()

    with Forked(record_and_be_interrupted) as child:
        assert child.wait() == 0
    assert compact(tmp_path, SESSION).unreadable == []
    assert counted(tmp_path)["after"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_exception_of_a_signal_handler_in_the_middle_of_a_fork_costs_neither_process_a_record(
    tmp_path: Path,
) -> None:
    def interrupt() -> None:
        raise BoomError

    with Collector(SESSION, tmp_path) as collector:
        for forks in itertools.count(1):
            collector.record_tool_call("parent", True, 1)
            moments, pids = Moments(forks, interrupt), list[int]()
            moments.trace(lambda pids=pids: pids.append(os.fork()))  # type: ignore[misc]
            if pids == [0]:
                collector.record_tool_call("child", True, 1)
                os._exit(0 if moments.where else 1)
            assert not moments.where, "Python code runs in the parent, where a handler may cut it short"
            collector.record_tool_call("parent", True, 1)
            collector.flush()  # which needs the locks that a fork under way would keep it from
            if os.waitpid(pids[0], 0)[1]:
                break
        assert forks > 20
    assert counted(tmp_path) == {"parent": 2 * forks, "child": forks}
    assert verify(tmp_path, SESSION) == []


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_fork_of_c_code_that_runs_no_hooks_starts_with_its_own_segments(
    tmp_path: Path, durability: str
) -> None:
    with Collector(SESSION, tmp_path, durability=durability) as collector:
        fork = ctypes.PyDLL(None).fork
        collector.record_tool_call("before", True, 1)
        pid = fork()
        if not pid:
            status = 1
            try:
                for _ in range(50):
                    collector.record_tool_call("child", True, 1)
                collector.flush()
                collector.stop()
                status = 0
            finally:
                os._exit(status)
        for _ in range(50):
            collector.record_tool_call("parent", True, 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        collector.flush()
        assert counted(tmp_path) == {"before": 1, "child": 50, "parent": 50}
        assert verify(tmp_path, SESSION) == []


def test_fork_of_c_code_does_not_take_the_locks_of_its_parent(tmp_path: Path) -> None:
    with Collector(SESSION, tmp_path) as collector:
        collector.record_tool_call("before", True, 1)
        ready, go = os.pipe()
        pid = ctypes.PyDLL(None).fork()
        if not pid:
            try:
                collector.record_tool_call("child", True, 1)  # and so it hears of the fork
                os.read(ready, 1)
            finally:
                os._exit(0)
        collector.stop()
        Collector(SESSION, tmp_path).stop()
        os.write(go, b"x")
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(go)
    assert counted(tmp_path)["before"] == 1
