"""A worker that stands still has its records seen, wherever it was stopped."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from m31a_mp import Collector, JournalLockedError, attach, load, verify
from metrics_of import SESSION, all_calls
from workers import Counters, Forked, count_up


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_flush_has_all_that_a_worker_stopped_in_the_middle_of_recording_had_acknowledged(
    collector: Collector, tmp_path: Path
) -> None:
    moments = random.Random(5)
    numbers = Counters(tmp_path / "numbers", 1)
    flushes = 0
    with Forked(count_up, attach(SESSION, tmp_path), "tool", 10**9, numbers, 0) as worker:
        for _ in range(40):
            numbers.wait_for(0, numbers[0] + moments.randint(1, 5_000))
            worker.stop()
            acknowledged = numbers[0]
            # It may stand still with the lock in its hands.
            with suppress(JournalLockedError):
                collector.flush()
                flushes += 1
                assert all_calls(load(tmp_path, SESSION))["tool"] - acknowledged in {0, 1}
            assert all_calls(collector.snapshot())["tool"] - acknowledged in {0, 1}
            worker.resume()
        worker.kill()

    assert flushes
    collector.flush()
    assert all_calls(load(tmp_path, SESSION))["tool"] - numbers[0] in {0, 1}
    assert verify(tmp_path, SESSION) == []
