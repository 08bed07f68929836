"""The directory of a session stays small: what the dead leave goes with the next flush."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from m31a_mp import Collector, WorkflowPhase, compact
from m31a_mp.kinds.timeline import MAX_STEPS
from m31a_mp.session.paths import Session
from metrics_of import SESSION, calls_of, checkpoint_writers, flushed, loaded, published, segments, tools_of
from workers import Forked, Workers, perform, tool_call


@pytest.mark.usefixtures("segments_at_once")
def test_flush_deletes_the_segments_of_the_dead_and_keeps_those_of_the_living(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    living, ended, killed = (started.start("fork") for _ in range(3))
    living.do(perform, [tool_call("tool", 1)])
    of_the_living = segments(tmp_path)
    for worker in (ended, killed):
        worker.do(perform, [tool_call("tool", 1)])
    collector.flush()
    assert len(segments(tmp_path)) == 3
    assert len(checkpoint_writers(tmp_path)) == 3

    ended.end()
    killed.kill()
    living.do(perform, [tool_call("tool", 1)])
    collector.flush()

    assert segments(tmp_path) == of_the_living
    assert {f"{writer}.{1:020d}.seg" for writer in checkpoint_writers(tmp_path)} == {
        path.name for path in of_the_living
    }
    living.do(perform, [tool_call("tool", 1)])
    assert calls_of(flushed(collector, tmp_path), "tool") == 5


@pytest.mark.slow
def test_hundred_short_lived_writers_leave_nothing_behind(collector: Collector, tmp_path: Path) -> None:
    for i in range(100):
        with Forked(collector.record_tool_call, "tool", True, i) as writer:
            assert writer.wait() == 0
        if i % 100 == 50:
            collector.flush()
    size = len(orjson.dumps(published(tmp_path)))
    collector.flush()

    assert calls_of(loaded(tmp_path), "tool") == 100
    assert segments(tmp_path) == []
    assert checkpoint_writers(tmp_path) == set()
    assert os.listdir(tmp_path / SESSION / "segments") == []
    assert set(os.listdir(tmp_path / SESSION)) == {"metrics.json", "journal.lock", "owner.lock", "segments"}
    assert len(orjson.dumps(published(tmp_path))) <= size + 80  # a few more digits, and buckets


@pytest.mark.usefixtures("segments_at_once")
@pytest.mark.slow
def test_hundred_writers_killed_unseen_are_all_counted_and_deleted_by_one_flush(
    collector: Collector, tmp_path: Path
) -> None:
    def record_and_die(i: int) -> None:
        collector.record_tool_call("tool", True, i)
        os.kill(os.getpid(), signal.SIGKILL)

    for i in range(100):
        with Forked(record_and_die, i) as writer:
            assert writer.wait() == -signal.SIGKILL
    assert len(segments(tmp_path)) == 100
    collector.flush()

    tool = tools_of(loaded(tmp_path))["tool"]
    assert (tool.call_count, tool.total_duration_ms) == (100, 100 * 99 // 2)
    assert segments(tmp_path) == []
    assert checkpoint_writers(tmp_path) == set()


def test_file_of_a_usual_session_has_less_than_64_kib(sessions: Path) -> None:
    chance = random.Random(1)
    seconds = 10 * MAX_STEPS  # more than there are steps
    fields: dict[str, Callable[[], dict[str, Any]]] = {
        "tool_call": lambda: {"name": f"tool-{chance.randrange(30)}", "success": chance.random() < 0.9},
        "llm_interaction": lambda: {
            "phase": chance.choice(list(WorkflowPhase)),
            "model": f"claude-opus-{chance.randrange(5)}",
            "cost": round(chance.random(), 4),
            **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), chance.randrange(20_000)),
        },
        "phase_transition": lambda: {"phase": chance.choice(list(WorkflowPhase))},
        "phase_duration": lambda: {"phase": chance.choice(list(WorkflowPhase)), "success": True},
    }
    session = Session.named(SESSION, sessions)
    session.make()
    start = time.time_ns() - seconds * 10**9
    with open(session.journal, "wb") as journal:
        for _ in range(20_000):
            event = chance.choice(list(fields))
            stamp = start + chance.randrange(seconds) * 10**9
            timed = {} if event == "phase_transition" else {"duration_ms": int(chance.lognormvariate(6, 1.5))}
            line = {"event": event, "time": stamp, **timed, **fields[event]()}
            journal.write(orjson.dumps(line) + b"\n")
    metrics = compact(sessions, SESSION).metrics
    assert (len(metrics.tools), len(metrics.models), len(metrics.phases)) == (30, 5, 8)
    assert metrics.timeline is not None
    assert len(metrics.timeline.starts) > MAX_STEPS / 2
    assert os.path.getsize(session.metrics) < 64 * 1024
