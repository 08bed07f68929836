"""Threads of one process that record, flush, look and stop at full speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from m31a_mp import Collector, Recorder
from moments import LONG, assert_exactly, run_threads


def test_eight_threads_that_record_through_one_collector_lose_nothing(
    collector: Collector, tmp_path: Path
) -> None:
    def record(name: str) -> None:
        for _ in range(5000):
            collector.record_tool_call(name, True, 1)
            collector.record_tool_call("everybody's" + LONG, True, 1)

    run_threads([partial(record, f"thread {i}") for i in range(8)])

    expected = {f"thread {i}": 5000 for i in range(8)} | {"everybody's" + LONG: 40_000}
    assert_exactly(collector, tmp_path, expected)


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

    assert_exactly(collector, tmp_path, {f"thread {i}{LONG}": 5000 for i in range(4)})


@pytest.mark.slow
def test_four_threads_at_full_speed_drop_nothing(collector: Collector, tmp_path: Path) -> None:
    def record(name: str) -> None:
        for i in range(25_000):
            collector.record_tool_call(name, True, i)

    names = [f"thread {i}{LONG}" for i in range(4)]
    run_threads([partial(record, name) for name in names])

    assert_exactly(collector, tmp_path, dict.fromkeys(names, 25_000))
