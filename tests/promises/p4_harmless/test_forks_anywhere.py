"""A fork at any moment of a call, which goes on in the child first, late, or last: both lose nothing."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from m31a_mp import Collector, Recorder, attach, compact, verify
from m31a_mp.segments import staging, writer
from m31a_mp.system import files
from metrics_of import SESSION
from moments import LONG, Moments, assert_exactly, traces_every_instruction
from workers import Worker, small_process, status_of_child

STEPS_OF_A_RECORD = [
    "allocate segment",
    "rename segment",
    "lengthen journal",
    "append to journal",
    "delete segment",
]


@pytest.mark.slow
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
    assert_exactly(collector, tmp_path, {LONG: 2000, "child": 1})


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


def leave_garbage(recorder: Recorder, _: int) -> None:
    """Leave a recorder of another session that only a collection of garbage lets go of."""
    gc.disable()
    gc.set_threshold(1)  # when it is enabled again, the next object starts one
    garbage: list[object] = [attach("other", os.path.dirname(recorder.directory or ""))]
    garbage.append(garbage)


def first_record_that_collects_garbage(recorder: Recorder, nth: int) -> None:
    gc.enable()
    first_record(recorder, nth)


def fill_segment(recorder: Recorder, nth: int) -> None:
    for _ in range(3):
        recorder.record_tool_call(f"before {nth}", True, 1)


Call = Callable[[Recorder, int], None]
# What comes before, the call, and how many records go straight to the journal.
CALLS: list[tuple[Call, Call, int]] = [
    (do_nothing, first_record, 1),
    (do_nothing, first_record, 0),
    (fill_segment, record_that_changes_segment, 0),
    (fill_segment, stop_recorder, 0),
]
CALL_NAMES = ["first record", "first record that makes a segment", "record that changes segment", "stop"]


class ForkingAgainAndAgain:
    """Makes a call again and again, each time with a fork one moment later. Both processes go on.

    In turn, the child goes on with the call before its parent does ("first"), when its parent has recorded
    more ("late"), or when its parent has handed all of that over ("last"). The moments can be dealt to
    several tests, which take a part of them each.
    """

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        sessions: Path,
        places: Path,
        prepare: Call,
        call: Call,
        straight: int,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self._numbers = partial(itertools.count, 1 + part, parts)
        self._straight = straight
        self._sessions = sessions
        self._places = places
        self._prepare = prepare
        self._call = call

    def run(self, moments: type[Moments | SystemCalls], orders: Sequence[str]) -> None:
        writer.FIRST_SEGMENT_BYTES, writer.MAX_SEGMENT_BYTES = 640, 1024
        staging.STRAIGHT_RECORDS = self._straight
        with self._places.open("w") as told:
            for nth in self._numbers():
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
            if pid == 0:
                os.close(release)  # else the child would outlive a parent that fails, and wait forever
                if order != "first":
                    os.read(hold, 1)
            elif order == "first":
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
            for nth, where in zip(self._numbers(), forks, strict=False)
            for what, counts in expected.items()
            if calls.get(f"{what} {nth}") not in counts
        ]
        assert wrong == []
        assert (metrics.dropped, metrics.rejected) == ({}, 0)
        assert verify(self._sessions, SESSION) == []


@pytest.fixture(scope="module")
def small() -> Iterator[Worker]:
    with small_process() as worker:
        yield worker


PARTS = 4


@pytest.mark.slow
@traces_every_instruction
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    ("prepare", "call", "straight", "least"),
    [
        (*CALLS[0], 80),
        (*CALLS[1], 80),
        (*CALLS[2], 200),
        (*CALLS[3], 150),
        (leave_garbage, first_record_that_collects_garbage, 0, 80),
        (leave_garbage, first_record_that_collects_garbage, 1, 80),
    ],
    ids=[*CALL_NAMES, "first record that collects garbage", "straight record that collects garbage"],
)
def test_fork_at_any_moment_of_a_call_at_which_signals_are_handled_loses_nothing_in_either_process(  # noqa: PLR0913, PLR0917
    prepare: Call,
    call: Call,
    straight: int,
    least: int,
    part: int,
    small: Worker,
    sessions: Path,
    tmp_path: Path,
) -> None:
    forking = ForkingAgainAndAgain(sessions, tmp_path / "places", prepare, call, straight, part, PARTS)
    # In a child, where nothing else traces.
    assert small.do(status_of_child, forking.run, Moments, ["first", "late", "last"]) == 0
    forking.assert_nothing_is_lost(least // PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["first", "late", "last"])
@pytest.mark.parametrize(
    ("prepare", "call", "straight", "least"),
    [(*calls, least) for calls, least in zip(CALLS, (3, 4, 10, 6), strict=True)],
    ids=CALL_NAMES,
)
def test_fork_right_before_a_system_call_loses_nothing_however_late_the_child_makes_it(  # noqa: PLR0913, PLR0917
    prepare: Call,
    call: Call,
    straight: int,
    least: int,
    order: str,
    small: Worker,
    sessions: Path,
    tmp_path: Path,
) -> None:
    forking = ForkingAgainAndAgain(sessions, tmp_path / "places", prepare, call, straight)
    assert small.do(status_of_child, forking.run, SystemCalls, [order]) == 0
    forking.assert_nothing_is_lost(least)
