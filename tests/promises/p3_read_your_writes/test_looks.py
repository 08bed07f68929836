"""A look at a session, and a flush of it, have every record whose call returned before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from m31a_mp import Collector, verify
from metrics_of import SESSION, Look, calls_of, flushed, loaded, looked, looked_from_outside, segments
from workers import METHODS, Counters, Workers, count_past, perform, tool_call


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "look"),
    [*((method, flushed) for method in METHODS), ("fork", looked), ("fork", looked_from_outside)],
)
def test_each_look_while_eight_processes_record_contains_what_they_had_acknowledged(
    method: str, look: Look, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    records = 10_000
    numbers = Counters(tmp_path / "numbers", 9)  # what each acknowledged; whether to go on
    team = [started.start(method) for _ in range(8)]
    for i, worker in enumerate(team):
        # The last tenth comes when there were ten looks: they cannot all miss the recording.
        worker.begin(count_past, f"tool {i}", records, numbers, i)

    looks = 0
    while True:
        acknowledged = numbers.read()[:8]
        metrics = look(collector, tmp_path)
        counted = [calls_of(metrics, f"tool {i}") for i in range(8)]
        assert all(c >= a for c, a in zip(counted, acknowledged, strict=True)), (counted, acknowledged)
        looks += 1
        numbers[8] = looks >= 10
        if sum(acknowledged) == 8 * records:
            break
    for worker in team:
        worker.finish()

    numbers_of_one = (records, records - records // 3, records // 3, records * (records + 1) // 2)
    for metrics in (collector.snapshot(), flushed(collector, tmp_path)):
        assert {
            tool.name: (tool.call_count, tool.success_count, tool.fail_count, tool.total_duration_ms)
            for tool in metrics.tools
        } == {f"tool {i}": numbers_of_one for i in range(8)}
        assert (metrics.dropped, metrics.rejected) == ({}, 0)
    assert verify(tmp_path, SESSION) == []


def test_flush_whose_listing_met_a_newer_segment_and_missed_the_older_one_loses_nothing(
    started: Workers, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of two files that are made while a large directory is being read, a file system may show the second.
    worker = started.start("fork")
    with FileLock(tmp_path / SESSION / "journal.lock"):
        worker.do(perform, [tool_call("tool", i) for i in range(300)])
    older, newer = (path.name for path in segments(tmp_path))
    real, listings = os.listdir, 0

    def listdir(path: str | Path) -> list[str]:
        nonlocal listings
        names = real(path)
        if newer not in names:
            return names
        listings += 1
        return [name for name in names if name != older or listings > 1]

    monkeypatch.setattr(os, "listdir", listdir)
    collector.flush()
    monkeypatch.undo()
    collector.flush()

    assert listings
    assert calls_of(loaded(tmp_path), "tool") == 300
