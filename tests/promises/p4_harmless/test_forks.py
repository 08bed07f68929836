"""Forks at any moment: parent, child and grandchild record on, and nothing is lost or locked."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from errno import ENOSPC
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from m31a_mp import Collector, Recorder, attach, compact, load, verify
from m31a_mp.segments import staging
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from metrics_of import SESSION, calls, counted, loaded, tools_of
from moments import LONG, Alarms, assert_exactly, run_threads
from workers import Counters, Forked


def test_recorder_made_before_the_fork_records_in_parent_child_and_grandchild(tmp_path: Path) -> None:
    recorder: Recorder = attach(SESSION, tmp_path)
    recorder.record_tool_call("tool", True, 1)

    def have_a_child() -> None:
        recorder.record_tool_call("tool", True, 10)
        with Forked(recorder.record_tool_call, "tool", True, 100) as grandchild:
            assert grandchild.wait() == 0
        recorder.record_tool_call("tool", True, 1000)

    with Forked(have_a_child) as child:
        assert child.wait() == 0
    recorder.record_tool_call("tool", True, 10_000)

    compact(tmp_path, SESSION)
    tool = tools_of(loaded(tmp_path))["tool"]
    assert (tool.call_count, tool.total_duration_ms) == (5, 11_111)
    recorder.stop()


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

    assert_exactly(collector, tmp_path, dict.fromkeys(names, 10_000) | {"child": 2000})


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

    assert_exactly(collector, tmp_path, {LONG: recorded, "child": 100})


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


@pytest.mark.usefixtures("segments_at_once")
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
@pytest.mark.usefixtures("segments_at_once")
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
    assert_exactly(collector, tmp_path, {"parent": 1})


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
