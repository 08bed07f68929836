"""A session has one owner, who alone publishes; another is told who it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import workers
from m31a_mp import Collector, SessionOwnedError, ToolMetric, WorkflowPhase, compact
from metrics_of import SESSION, calls_of, checkpoint_writers, flushed, loaded, segments
from strategies import bare
from workers import METHODS, Forked, Workers


def assert_names_owner(error: SessionOwnedError, pid: int) -> None:
    assert error.pid == pid
    assert error.started_at is not None
    assert f"pid {pid} " in str(error)
    assert error.started_at in str(error)


@pytest.mark.slow
def test_second_owner_in_the_same_process_is_told_which_process_owns_the_session(
    collector: Collector, tmp_path: Path
) -> None:
    with pytest.raises(SessionOwnedError) as raised:
        Collector(SESSION, tmp_path)
    assert_names_owner(raised.value, os.getpid())
    with pytest.raises(SessionOwnedError) as raised:
        compact(tmp_path, SESSION)
    assert_names_owner(raised.value, os.getpid())
    collector.record_tool_call("tool", True, 1)
    assert calls_of(flushed(collector, tmp_path), "tool") == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_second_owner_in_another_process_is_told_which_process_owns_the_session(
    method: str, started: Workers, tmp_path: Path
) -> None:
    worker = started.start(method)
    told = worker.do(workers.refused_ownership, SESSION, tmp_path)

    pid, started_at, message = told
    assert pid == os.getpid()
    assert f"pid {pid} " in message
    assert started_at in message


def test_session_given_back_by_stop_can_be_owned_by_another_process_at_once(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    worker = started.start("fork")
    collector.record_tool_call("tool", True, 1)
    collector.stop()
    worker.do(workers.own, SESSION, tmp_path)

    with Collector(SESSION, tmp_path) as after:
        assert calls_of(after.snapshot(), "tool") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("segments_at_once")
def test_collector_in_a_forked_child_records_as_a_worker_and_does_not_end_the_session(
    collector: Collector, tmp_path: Path
) -> None:
    collector.record_tool_call("tool", True, 1)

    def use_it_all() -> None:
        assert collector.enabled
        collector.record_tool_call("tool", True, 10)
        collector.flush()
        assert calls_of(collector.snapshot(), "tool") == 2
        collector.record_tool_call("tool", True, 100)
        collector.stop()
        collector.record_tool_call("tool", True, 1000)
        collector.stop()

    with Forked(use_it_all) as child:
        assert child.wait() == 0
    with pytest.raises(SessionOwnedError) as raised:
        Collector(SESSION, tmp_path)
    assert raised.value.pid == os.getpid()
    collector.record_phase_transition(WorkflowPhase.SHIP)
    metrics = flushed(collector, tmp_path)
    assert bare(metrics.tools) == [ToolMetric("tool", 4, 4, 0, 1111, 1111 / 4)]
    assert metrics.phases[0].transition_count == 1
    assert segments(tmp_path) != []  # the owner's own, in use
    assert len(checkpoint_writers(tmp_path)) == 1


def test_flush_and_stop_of_a_forked_child_leave_the_publishing_to_the_owner(
    collector: Collector, tmp_path: Path
) -> None:
    def hand_over() -> None:
        collector.record_tool_call("tool", True, 1)
        collector.flush()
        collector.stop()

    with Forked(hand_over) as child:
        assert child.wait() == 0

    assert loaded(tmp_path).tools == []
    assert calls_of(flushed(collector, tmp_path), "tool") == 1
