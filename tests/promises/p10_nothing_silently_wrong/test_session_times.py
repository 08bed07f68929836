"""A session lasts from its owner or first record to its last record, whoever looks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from m31a_mp import Collector, SessionMetrics, attach, compact
from metrics_of import SESSION, loaded, recovered_by_a_new_owner, recovered_by_compact, shown, snapshot
from workers import Forked


def record_from_a_child(sessions_dir: Path, times: list[datetime]) -> None:
    """A worker records twice and ends; between what times is noted."""

    def work() -> None:
        recorder = attach(SESSION, sessions_dir)
        recorder.record_tool_call("bash", True, 1)
        recorder.record_phase_duration("plan", 1, True)

    times.append(datetime.now(UTC))
    with Forked(work) as child:
        assert child.wait() == 0
    times.append(datetime.now(UTC))


@pytest.mark.parametrize("seen", [snapshot, shown, recovered_by_a_new_owner, recovered_by_compact])
def test_session_that_only_workers_wrote_to_lasts_from_their_first_to_their_last_record(
    seen: Callable[[Path], SessionMetrics], tmp_path: Path
) -> None:
    times: list[datetime] = []
    for _ in range(2):
        record_from_a_child(tmp_path, times)
        metrics = seen(tmp_path)
        assert times[0] <= metrics.started_at <= times[1]
        assert times[-2] <= metrics.updated_at <= times[-1]


def test_session_that_is_resumed_goes_on_from_its_beginning_to_its_last_record(tmp_path: Path) -> None:
    times: list[datetime] = []
    record_from_a_child(tmp_path, times)
    for _ in range(2):
        Collector(SESSION, tmp_path).stop()
        metrics = loaded(tmp_path)
        assert times[0] <= metrics.started_at <= times[1]
        assert times[-2] <= metrics.updated_at <= times[-1]
        record_from_a_child(tmp_path, times)
        assert compact(tmp_path, SESSION).metrics.started_at == metrics.started_at


def test_session_of_an_owner_starts_with_it_and_ends_with_the_last_record(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with Collector(SESSION, tmp_path) as collector:
        opened = datetime.now(UTC)
        empty = collector.snapshot()
        times: list[datetime] = []
        record_from_a_child(tmp_path, times)
        collector.flush()
        metrics = collector.snapshot()
    assert before <= metrics.started_at == empty.started_at == empty.updated_at <= opened
    assert times[0] <= metrics.updated_at <= times[1]
    assert loaded(tmp_path).updated_at == metrics.updated_at
