"""What comes a second time, by whatever way, is counted once."""

from __future__ import annotations

from pathlib import Path

import workers
from m31a_mp import Collector
from metrics_of import flushed
from workers import Workers, perform, tool_call


def test_flush_by_the_owner_while_the_worker_flushes_too_counts_each_record_once(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    team = [started.start("fork") for _ in range(2)]
    for _ in range(50):
        for i, worker in enumerate(team):
            worker.begin(perform, [tool_call(f"tool {i}", n) for n in range(100)])
        collector.flush()
        for worker in team:
            worker.finish()
            worker.begin(workers.flush)
        collector.flush()
        for worker in team:
            worker.finish()

    assert [tool.call_count for tool in flushed(collector, tmp_path).tools] == [5000, 5000]
