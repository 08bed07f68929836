"""Exceptions of signal handlers, which may come between any two steps: nothing is held afterwards."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from m31a_mp import Collector, SessionOwnedError, attach, compact, load, save, verify
from m31a_mp.model import SessionMetrics
from m31a_mp.session.paths import Session
from m31a_mp.system import files, flock
from m31a_mp.system.flock import FileLock
from metrics_of import SESSION, counted
from moments import Moments
from workers import BoomError, Forked

INTERRUPTS = 1000


class Alarm:
    """Raises in the middle of calls, and keeps the exception: an `except` block and a REPL do so, too."""

    def __init__(self) -> None:
        self._moments = random.Random(5)
        self._is_armed = False
        self._longest = 1e-4
        self.kept: BoomError | None = None
        self.raised = 0
        signal.signal(signal.SIGALRM, self._strike)

    def _strike(self, *_: object) -> None:
        if self._is_armed:
            self._is_armed = False
            raise BoomError

    def interrupt(self, call: Callable[[], object]) -> None:
        started = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, self._moments.uniform(1e-6, self._longest))
        try:
            self._is_armed = True
            call()
            self._is_armed = False
            # As long as the call takes, on this machine: so each moment of it is met.
            self._longest = max(1e-5, 0.9 * self._longest + 0.1 * (time.perf_counter() - started))
        except BoomError as error:
            self.kept = error
            self.raised += 1
        signal.setitimer(signal.ITIMER_REAL, 0)


def assert_nothing_is_held(session: Session) -> None:
    assert all(file.closed for file in flock._files.values())
    assert files._under_way() is None
    journal = FileLock(session.journal_lock)
    assert journal.acquire()
    journal.release()


def interrupt_flush(sessions: Path) -> None:
    session = Session.named("s", sessions)
    alarm = Alarm()
    collector = Collector("s", sessions)
    while alarm.raised < INTERRUPTS:
        collector.record_tool_call("bash", True, 1)
        alarm.interrupt(collector.flush)
        assert_nothing_is_held(session)
        assert not collector._turn.is_mine()
        assert collector._lease
        assert collector._lease.held
    collector.stop()
    Collector("s", sessions).stop()  # the session was given up


def interrupt_stop(sessions: Path) -> None:
    session = Session.named("s", sessions)
    alarm = Alarm()
    while alarm.raised < INTERRUPTS:
        collector = Collector("s", sessions)
        collector.record_tool_call("bash", True, 1)
        alarm.interrupt(collector.stop)
        assert_nothing_is_held(session)
        collector.stop()
        assert collector._lease is None
        del collector


def interrupt_opening(sessions: Path) -> None:
    alarm = Alarm()
    opened: list[Collector] = []
    while alarm.raised < INTERRUPTS:
        alarm.interrupt(lambda: opened.append(Collector("s", sessions)))
        while opened:
            opened.pop().stop()
        Collector("s", sessions).stop()


def interrupt_compact_and_save(sessions: Path) -> None:
    alarm = Alarm()
    attach("s", sessions).record_tool_call("bash", True, 1)
    while alarm.raised < INTERRUPTS:
        alarm.interrupt(lambda: compact(sessions, "s"))
        compact(sessions, "s")
        alarm.interrupt(lambda: save(sessions, "s", SessionMetrics("s")))
        compact(sessions, "s")


def interrupt_durable_records(sessions: Path) -> None:
    session = Session.named("s", sessions)
    alarm = Alarm()
    session.make()
    recorder = attach("s", sessions, durability="disk")
    while alarm.raised < INTERRUPTS:
        alarm.interrupt(lambda: recorder.record_tool_call("bash", True, 1))
        assert_nothing_is_held(session)
        assert not recorder._staging._group_commit._committing.locked()
        assert not recorder._staging._group_commit._turn.is_mine()


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        interrupt_flush,
        interrupt_stop,
        interrupt_opening,
        interrupt_compact_and_save,
        interrupt_durable_records,
    ],
)
def test_exception_of_a_signal_handler_leaves_nothing_held_though_it_is_kept(
    sessions: Path, body: Callable[[Path], None]
) -> None:
    with Forked(lambda: body(sessions)) as child:
        assert child.wait() == 0


@pytest.mark.slow
def test_stop_that_was_interrupted_can_be_called_again_by_another_owner(sessions: Path) -> None:
    collector = Collector("s", sessions)
    with pytest.raises(SessionOwnedError):
        Collector("s", sessions)
    collector.stop()
    Collector("s", sessions).stop()


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

    gc.collect()  # what other tests have left is let go of in each child, with moments of its own
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


# `work(name)` says whether the import of that module was interrupted. orjson imports those from uuid on, and
# would crash.
INTERRUPTING = """
import os, sys

class Interrupt(Exception):
    pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise Interrupt

def is_interrupted(name, call):
    finder = Finder()
    finder.name = name
    sys.meta_path.insert(0, finder)
    try:
        call()
    except Interrupt:
        sys.meta_path.remove(finder)
    return finder not in sys.meta_path

{work}

for name in {names}:
    if not os.fork():
        os._exit(0 if work(name) else 1)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
IMPORTED = [
    "m31a_mp.journal.reader",
    "orjson",
    "uuid",
    "platform",
    "dataclasses",
    "inspect",
    "json",
    "json.decoder",
]
MAKING_A_FIRST_CALL = """
from m31a_mp import Collector

def work(name):
    first, sessions = sys.argv[1:]
    collector = Collector(name, sessions)
    collector.record_tool_call("tool", True, 1)
    was_interrupted = is_interrupted(name, getattr(collector, first))
    collector.record_tool_call("tool", True, 1)
    assert collector.snapshot().tools[0].call_count == 2
    collector.stop()
    return was_interrupted
"""
IMPORTING_A_NAME = """
def work(name):
    was_interrupted = is_interrupted(name, lambda: exec(sys.argv[1]))
    exec(sys.argv[1])
    return was_interrupted
"""


def assert_interrupts_harm_nothing(work: str, names: list[str], *arguments: str) -> None:
    program = INTERRUPTING.format(work=work, names=names)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-S", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": path})
    assert (done.stdout.split(), done.stderr) == (["0"] * len(names), "")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["snapshot", "flush"])
def test_exception_of_a_handler_at_an_import_of_a_first_call_harms_nothing(
    first: str, tmp_path: Path
) -> None:
    assert_interrupts_harm_nothing(MAKING_A_FIRST_CALL, IMPORTED, first, str(tmp_path))
    for name in IMPORTED:
        metrics = load(tmp_path, name)
        assert metrics
        assert [tool.call_count for tool in metrics.tools] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["load", "compact", "verify", "SessionMetrics", "merge", "gather"])
def test_exception_of_a_handler_at_an_import_of_a_public_name_harms_nothing(name: str) -> None:
    assert_interrupts_harm_nothing(IMPORTING_A_NAME, IMPORTED[1:], f"from m31a_mp import {name}")
