"""What comes a second time, by whatever way, is counted once."""

from __future__ import annotations

from pathlib import Path

import pytest

import workers
from m31a_mp import (
    Collector,
    load,
)
from m31a_mp.journal.batch import Batch
from metrics_of import calls, flushed
from workers import Workers, perform, tool_call


@pytest.mark.slow
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


def test_batch_of_a_foreign_writer_counts_once_before_it_is_merged(tmp_path: Path) -> None:
    line = b'{"event":"tool_call","name":"tool","success":true,"duration_ms":1}\n'
    batch = Batch("foreign", 0, line)
    with Collector("s", tmp_path):
        (tmp_path / "s" / "journal.ndjson").write_bytes(2 * (batch.header() + line))
    assert calls(load(tmp_path, "s")) == {"tool": 1}
