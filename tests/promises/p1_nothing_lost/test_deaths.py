"""Workers and owners are killed while they record: what they acknowledged is counted."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from m31a_mp import Collector, SessionMetrics, attach, verify
from metrics_of import (
    SESSION,
    calls_of,
    flushed,
    loaded,
    recovered_by_a_new_owner,
    recovered_by_compact,
    segments,
    tools_of,
)
from workers import (
    METHODS,
    Counters,
    Forked,
    Workers,
    count_past,
    count_up,
    exit_at_once,
    perform,
    tool_call,
    workers_of,
)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_all_acknowledged_records_of_workers_killed_while_recording_are_counted(
    method: str, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    deaths = 5
    moments = random.Random(method)
    numbers = Counters(tmp_path / "numbers", deaths)
    for i in range(deaths):
        worker = started.start(method)
        worker.begin(count_up, f"tool {i}", 10**9, numbers, i)
        numbers.wait_for(i, moments.randint(1, 20_000))
        worker.kill()

    tools = tools_of(flushed(collector, tmp_path))
    for i, acknowledged in enumerate(numbers.read()):
        # The one under way may count, too.
        assert tools[f"tool {i}"].call_count - acknowledged in {0, 1}
        n = tools[f"tool {i}"].call_count
        assert tools[f"tool {i}"].total_duration_ms == n * (n + 1) // 2
    assert segments(tmp_path) == []
    assert verify(tmp_path, SESSION) == []


@pytest.mark.parametrize("method", METHODS)
def test_records_of_a_worker_that_ends_by_os_exit_are_counted(
    method: str, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    worker = started.start(method)
    worker.do(perform, [tool_call("tool", i) for i in range(3)])
    worker.begin(exit_at_once)
    worker.wait()

    assert calls_of(flushed(collector, tmp_path), "tool") == 3
    assert segments(tmp_path) == []


def own_and_record(sessions_dir: Path, numbers: Counters) -> None:
    """Be an owner that flushes now and then."""
    collector = Collector(SESSION, sessions_dir)
    numbers[1] = 1
    for i in range(1, 10**9):
        collector.record_tool_call("owner's", True, i)
        numbers[0] = i
        if i % 1000 == 0:
            collector.flush()


@pytest.mark.slow
@pytest.mark.parametrize("recovered", [recovered_by_a_new_owner, recovered_by_compact])
def test_owner_killed_while_it_records_and_flushes_then_recovery_counts_all_and_goes_on(
    recovered: Callable[[Path], SessionMetrics], tmp_path: Path
) -> None:
    moments = random.Random(31)
    total, started_at = 0, None
    for _ in range(8):
        numbers = Counters(tmp_path / f"numbers{total}", 2)
        with Forked(own_and_record, tmp_path, numbers) as owner:
            numbers.wait_for(0, moments.randint(1, 8_000))
            owner.kill()
        assert numbers[1] == 1

        metrics = recovered(tmp_path)
        counted = calls_of(metrics, "owner's")
        assert counted - total - numbers[0] in {0, 1}
        assert started_at in {None, metrics.started_at}
        total, started_at = counted, metrics.started_at
        assert segments(tmp_path) == []
        assert verify(tmp_path, SESSION) == []


def test_workers_that_outlive_their_killed_owner_are_counted_by_the_next_one(tmp_path: Path) -> None:
    numbers = Counters(tmp_path / "numbers", 5)
    with (
        workers_of(attach(SESSION, tmp_path), SESSION, tmp_path) as started,
        Forked(own_and_record, tmp_path, numbers) as owner,
    ):
        numbers.wait_for(1, 1)
        team = [started.start("fork, attach") for _ in range(2)]
        for i, worker in enumerate(team):
            worker.begin(count_past, f"tool {i}", 10_000, numbers, i + 2)
        numbers.wait_for(2, 1000)
        owner.kill()

        with Collector(SESSION, tmp_path) as collector:
            numbers[4] = 1
            for worker in team:
                worker.finish()
            metrics = collector.snapshot()
            assert [calls_of(metrics, f"tool {i}") for i in range(2)] == [10_000, 10_000]
            assert calls_of(metrics, "owner's") - numbers[0] in {0, 1}
    assert verify(tmp_path, SESSION) == []


def own_with_a_child_that_lives_on(sessions_dir: Path, numbers: Counters, hold: int) -> None:
    collector = Collector(SESSION, sessions_dir)
    collector.record_tool_call("owner's", True, 1)
    pid = os.fork()
    if pid:
        numbers[0] = pid
        signal.pause()
    collector.record_tool_call("child's", True, 1)
    numbers[1] = 1
    os.read(hold, 1)
    collector.record_tool_call("child's", True, 2)
    numbers[1] = 2
    os.read(hold, 1)
    os._exit(0)


@pytest.mark.usefixtures("segments_at_once")
def test_owner_killed_while_its_forked_child_lives_is_succeeded_at_once(tmp_path: Path) -> None:
    numbers = Counters(tmp_path / "numbers", 2)
    hold, release = os.pipe()
    with Forked(own_with_a_child_that_lives_on, tmp_path, numbers, hold) as owner:
        try:
            numbers.wait_for(1, 1)
            numbers.wait_for(0, 1)
            owner.kill()

            with Collector(SESSION, tmp_path) as successor:
                os.kill(numbers[0], 0)  # the child lives
                assert [calls_of(successor.snapshot(), n) for n in ("owner's", "child's")] == [1, 1]
                os.write(release, b"x")
                numbers.wait_for(1, 2)
                successor.flush()
                assert [calls_of(loaded(tmp_path), n) for n in ("owner's", "child's")] == [1, 2]
                assert len(segments(tmp_path)) == 1  # the child's, whose writer lives
        finally:
            if numbers[0]:
                os.kill(numbers[0], signal.SIGKILL)
            os.close(hold)
            os.close(release)
