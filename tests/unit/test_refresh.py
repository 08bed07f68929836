"""The thread that keeps `metrics.json` fresh, and how it ends."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from coverage_locks import measure_no_more
from m31a_mp import Collector, attach, compact, load, refresh, verify
from m31a_mp.metrics import compactor
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from metrics_of import calls
from workers import Forked

pytestmark = pytest.mark.usefixtures("segments_at_once")  # what a flush moves to the journal

NAME = "m31a_mp refresh"
SOON = 0.001
NEVER = 1e300  # longer than the system can wait


def refreshers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert not refreshers()
    yield
    assert not refreshers()


def await_that(condition: Callable[[], object]) -> None:
    """Let others run until it is so; the test's time limit ends it."""
    while not condition():
        time.sleep(0.0005)


def calls_published(sessions: Path) -> dict[str, int]:
    """What `metrics.json` says, without asking anybody else."""
    metrics = load(sessions, "s")
    return calls(metrics) if metrics else {}


def await_published(sessions: Path, wanted: dict[str, int]) -> None:
    await_that(lambda: calls_published(sessions) == wanted)


class Gate:
    """Stops the refreshing thread in the middle of a flush, where it holds the journal's lock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
        self._point = point
        self.reached = threading.Event()
        self.open = threading.Event()
        monkeypatch.setattr(files, "reached", self._stop_here)

    def _stop_here(self, point: str) -> None:
        if point == self._point and threading.current_thread().name == NAME:
            self.reached.set()
            self.open.wait()


class TestFresh:
    def test_without_interval_or_disabled_there_is_no_thread(self, sessions: Path) -> None:
        with Collector("s", sessions), Collector("t", sessions, enabled=False, flush_interval=SOON):
            assert not refreshers()

    def test_records_of_all_processes_are_published_without_a_flush(self, sessions: Path) -> None:
        with Collector("s", sessions, flush_interval=SOON) as collector:
            for i in range(1, 4):
                collector.record_tool_call("owner", True, 1)
                with Forked(attach("s", sessions).record_tool_call, "worker", True, 1) as child:
                    assert child.wait() == 0
                await_published(sessions, {"owner": i, "worker": i})
        assert verify(sessions, "s") == []

    def test_thread_ends_with_stop_and_the_session_is_free(self, sessions: Path) -> None:
        with Collector("s", sessions, flush_interval=NEVER):
            assert [thread.daemon for thread in refreshers()] == [True]
        assert not refreshers()
        with Collector("s", sessions, flush_interval=SOON) as collector:
            collector.stop()
            collector.stop()
            assert not refreshers()

    @pytest.mark.slow
    def test_collector_that_cannot_be_made_leaves_no_thread(self, sessions: Path) -> None:
        with Collector("s", sessions), pytest.raises(RuntimeError):
            Collector("s", sessions, flush_interval=SOON)
        assert not refreshers()

    def test_where_no_thread_can_be_started_the_session_is_given_back(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                Collector("s", sessions, flush_interval=1)
        Collector("s", sessions).stop()

    def test_recorder_made_of_the_collector_has_no_thread(self, sessions: Path) -> None:
        with Collector("s", sessions, flush_interval=NEVER) as collector:
            function, arguments = collector.__reduce__()
            assert callable(function)
            assert isinstance(arguments, tuple)
            function(*arguments)
            assert len(refreshers()) == 1


@pytest.mark.parametrize("enabled", [True, False])
class TestInterval:
    @pytest.mark.parametrize("value", ["1", True, False, [1], 1j, Decimal(1), object()])
    def test_what_is_no_number_is_a_type_error(self, sessions: Path, enabled: bool, value: Any) -> None:
        with pytest.raises(TypeError, match="flush_interval must be a number of seconds or None"):
            Collector("s", sessions, enabled, flush_interval=value)
        assert not sessions.exists()

    @pytest.mark.parametrize("value", [0, 0.0, -1, -1e-9, float("nan"), float("inf"), -float("inf"), 10**400])
    def test_number_that_is_no_interval_is_a_value_error(
        self, sessions: Path, enabled: bool, value: float
    ) -> None:
        with pytest.raises(ValueError, match="flush_interval must be finite and above 0"):
            Collector("s", sessions, enabled, flush_interval=value)
        assert not sessions.exists()

    @pytest.mark.parametrize("value", [1, 5e-324, 1e308, 2**1000])
    def test_any_other_number_is_taken(self, sessions: Path, enabled: bool, value: float) -> None:
        with Collector("s", sessions, enabled, flush_interval=value) as collector:
            collector.record_tool_call("bash", True, 1)
        assert calls_published(sessions) == ({"bash": 1} if enabled else {})


class TestStop:
    def test_stop_in_the_middle_of_a_refresh_waits_for_that_and_nothing_else(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = Collector("s", sessions, flush_interval=SOON)
        gate = Gate(monkeypatch, "after append to journal")
        collector.record_tool_call("bash", True, 1)
        gate.reached.wait()
        stopping = threading.Thread(target=collector.stop)
        stopping.start()
        gate.open.set()
        stopping.join()
        assert not refreshers()
        assert calls_published(sessions) == {"bash": 1}
        Collector("s", sessions).stop()

    def test_refresh_whose_turn_comes_after_stop_leaves_the_session_alone(self, sessions: Path) -> None:
        collector = Collector("s", sessions, flush_interval=NEVER)
        collector.stop()
        collector.record_tool_call("late", True, 1)
        collector._refresh()
        assert calls_published(sessions) == {}
        collector.flush()
        assert calls_published(sessions) == {"late": 1}

    def test_refresh_that_waits_while_stop_is_put_off_does_not_hold_it_up(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refresh, "_JOIN_SECONDS", None)  # whoever waits in vain, waits for ever
        collector = Collector("s", sessions, flush_interval=SOON)
        called = threading.Event()
        waiting = collector._refresh

        def interrupted() -> None:
            called.wait()  # the thread wants the turn
            collector.stop()  # as from a signal handler, which interrupts the thread that has it
            assert collector._lease

        take = collector._turn.take
        monkeypatch.setattr(collector._turn, "take", _announced(take, called))
        take(interrupted)
        assert not collector._lease
        assert not refreshers()
        waiting()

    def test_stop_on_the_refreshing_thread_itself_ends_both(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        collector = Collector("s", sessions, flush_interval=SOON)

        def stop(_: str) -> None:
            if threading.current_thread().name == NAME:
                collector.stop()  # as from a finalizer

        monkeypatch.setattr(files, "reached", stop)
        collector.record_tool_call("bash", True, 1)
        await_that(lambda: not refreshers())
        assert calls_published(sessions) == {"bash": 1}
        assert not caplog.records
        Collector("s", sessions).stop()

    def test_stop_from_many_threads_stops_once(self, sessions: Path) -> None:
        collector = Collector("s", sessions, flush_interval=SOON)
        collector.record_tool_call("bash", True, 1)
        threads = [threading.Thread(target=collector.stop) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not refreshers()
        assert calls_published(sessions) == {"bash": 1}

    def test_stop_by_a_signal_handler_in_the_middle_of_anything(self, sessions: Path) -> None:
        def own() -> None:
            measure_no_more()
            for i in range(1, 31):
                collector = Collector("s", sessions, flush_interval=SOON)
                stopped: list[int] = []

                def stop(*_: object, stopped: list[int] = stopped, own: Collector = collector) -> None:
                    own.stop()
                    stopped.append(1)

                signal.signal(signal.SIGALRM, stop)
                signal.setitimer(signal.ITIMER_REAL, i * 2e-4)
                while not stopped:
                    collector.record_tool_call("bash", True, 1)
                    collector.flush()
                await_that(lambda: not refreshers())
                assert collector._lease is None

        with Forked(own) as child:
            assert child.wait() == 0
        assert verify(sessions, "s") == []

    def test_collector_that_is_dropped_takes_its_thread_along(self, sessions: Path) -> None:
        collector = Collector("s", sessions, flush_interval=NEVER)
        collector.record_tool_call("bash", True, 1)
        gone = weakref.ref(collector)
        del collector
        gc.collect()
        assert gone() is None
        await_that(lambda: not refreshers())
        with Collector("s", sessions):
            assert calls_published(sessions) == {"bash": 1}

    def test_collector_that_is_dropped_in_the_middle_of_a_refresh_goes_when_that_ends(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = Collector("s", sessions, flush_interval=SOON)
        gate = Gate(monkeypatch, "after append to journal")
        collector.record_tool_call("bash", True, 1)
        gate.reached.wait()
        del collector
        gate.open.set()
        await_that(lambda: not refreshers())
        assert calls_published(sessions) == {"bash": 1}
        Collector("s", sessions).stop()


def _announced(function: Callable[..., Any], called: threading.Event) -> Callable[..., Any]:
    def announced(*arguments: Any) -> Any:
        if threading.current_thread().name == NAME:
            called.set()
        return function(*arguments)

    return announced


class TestTrouble:
    def test_errors_are_logged_once_and_it_goes_on(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        compact_session = compactor.compact_session
        outcomes: list[Exception | None] = []

        def fail(*args: Any, **kwargs: Any) -> Any:
            outcomes.append(failure)
            if failure:
                raise failure
            return compact_session(*args, **kwargs)

        def await_tries() -> None:
            tries = len(outcomes) + 3
            await_that(lambda: len(outcomes) >= tries)

        failure: Exception | None = OSError("the disk is on fire")
        caplog.set_level(logging.WARNING, "m31a_mp")
        with Collector("s", sessions, flush_interval=SOON) as collector:
            monkeypatch.setattr(compactor, "compact_session", fail)
            await_tries()
            assert len(caplog.records) == 1
            assert "not fresh: the disk is on fire" in caplog.text
            failure = None
            collector.record_tool_call("bash", True, 1)
            await_published(sessions, {"bash": 1})
            await_tries()
            failure = ValueError("and again")
            await_tries()
            failure = None
        assert [record.name for record in caplog.records] == ["m31a_mp"] * 2
        assert all(record.levelno == logging.WARNING for record in caplog.records)

    def test_trouble_with_the_files_passes(self, sessions: Path, caplog: pytest.LogCaptureFixture) -> None:
        session = Session.named("s", sessions)
        with Collector("s", sessions, flush_interval=SOON) as collector:

            def replace() -> None:
                Path(session.metrics).unlink()
                Path(session.metrics).mkdir()

            collector._turn.take(replace)  # else the thread may publish in between
            collector.record_tool_call("bash", True, 1)
            await_that(lambda: caplog.records)
            Path(session.metrics).rmdir()
            await_published(sessions, {"bash": 1})
        assert verify(sessions, "s") == []


class TestFork:
    @pytest.mark.parametrize("point", ["after append to journal", "folded"])
    def test_child_forked_in_the_middle_of_a_refresh_goes_its_own_way(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, point: str
    ) -> None:
        def work() -> None:
            assert threading.active_count() == 1
            collector.record_tool_call("child", True, 1)
            if point == "folded":  # the turn is taken in the parent, and the journal is free
                collector.flush()
                collector.stop()

        collector = Collector("s", sessions, flush_interval=SOON)
        gate = Gate(monkeypatch, point)
        collector.record_tool_call("owner", True, 1)
        gate.reached.wait()
        with Forked(work) as child:
            assert child.wait() == 0
        assert len(refreshers()) == 1
        gate.open.set()
        collector.stop()
        assert calls_published(sessions) == {"owner": 1, "child": 1}

    @pytest.mark.slow
    def test_children_forked_at_any_moment_of_refreshes_lose_nothing_and_end(self, sessions: Path) -> None:
        def work() -> None:
            assert not refreshers()
            for _ in range(20):
                collector.record_tool_call("child", True, 1)
            collector.flush()
            collector.stop()

        with Collector("s", sessions, flush_interval=SOON) as collector:
            for _ in range(40):
                collector.record_tool_call("owner", True, 1)
                with Forked(work) as child:
                    assert child.wait() == 0
            assert len(refreshers()) == 1
        assert calls_published(sessions) == {"owner": 40, "child": 800}
        assert verify(sessions, "s") == []


PROGRAM = """
import sys, threading
from m31a_mp import Collector
from m31a_mp.system import files
collector = Collector("s", sys.argv[1], flush_interval={interval})
collector.record_tool_call("bash", True, 1)
{rest}
"""

STUCK = """
reached = threading.Event()
def stop_here(point):
    if point == "folded":
        reached.set()
        threading.Event().wait()
files.reached = stop_here
reached.wait()
"""


class TestExit:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("interval", "rest", "status"),
        [(3600, "", 0), (0.001, "", 0), (0.001, STUCK, 0), (0.001, "sys.exit(3)", 3), (0.001, "1/0", 1)],
        ids=["asleep", "busy", "stuck in a flush", "sys.exit", "traceback"],
    )
    def test_program_that_never_stops_the_collector_ends_as_without_it(
        self, sessions: Path, interval: float, rest: str, status: int
    ) -> None:
        program = PROGRAM.format(interval=interval, rest=rest)
        result = subprocess.run(
            [sys.executable, "-c", program, str(sessions)], check=False, capture_output=True, text=True
        )
        assert result.returncode == status
        assert ("ZeroDivisionError" in result.stderr) if rest == "1/0" else not result.stderr
        assert compact(sessions, "s").metrics.tools[0].call_count == 1
        assert verify(sessions, "s") == []
