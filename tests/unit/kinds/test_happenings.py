"""Lists of single happenings: the latest stay, whatever the order, and it is known how many there were."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import CancellationMetric, Collector, SessionMetrics, load, save
from m31a_mp.kinds import happenings
from metrics_of import folded, stored
from strategies import Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cancelled(time: int, reason: str = "user") -> bytes:
    return Record("cancellation", ("execute", reason)).line(time)


def test_cancellation_is_recorded_and_comes_back_from_the_file(sessions: Path) -> None:
    before = datetime.now(UTC)
    with Collector("s", sessions) as collector:
        collector.record_cancellation("execute", "timeout")
        collector.record_cancellation("plan", 'said "no"')
        snapshot = collector.snapshot()
    metrics = load(sessions, "s")
    assert metrics == snapshot
    assert [(c.phase, c.reason) for c in metrics.cancellations] == [
        ("execute", "timeout"),
        ("plan", 'said "no"'),
    ]
    first, second = (c.timestamp for c in metrics.cancellations)
    assert before <= first <= second <= datetime.now(UTC)
    assert (metrics.cancellation_count, metrics.updated_at) == (2, second)


def test_file_has_go_s_keys_and_times(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_cancellation("execute", "timeout")
    document = orjson.loads((sessions / "s" / "metrics.json").read_bytes())
    (entry,) = document["cancellations"]
    assert list(entry) == ["phase", "reason", "timestamp"]
    assert entry["timestamp"].endswith("Z")
    assert datetime.fromisoformat(entry["timestamp"]).utcoffset() == timedelta(0)


def test_file_without_a_cancellation_does_not_mention_them(sessions: Path) -> None:
    Collector("s", sessions).stop()
    assert b"cancellation" not in (sessions / "s" / "metrics.json").read_bytes()


def test_list_of_a_go_program_is_read_and_added_to(sessions: Path) -> None:
    (sessions / "s").mkdir(parents=True)
    (sessions / "s" / "metrics.json").write_bytes(
        b'{"session_id":"s","started_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:06Z",'
        b'"cancellations":[{"phase":"plan","reason":"user","timestamp":"2026-01-02T04:04:06.5+01:00"}]}'
    )
    with Collector("s", sessions) as collector:
        collector.record_cancellation("execute", "timeout")
        metrics = collector.snapshot()
    at = datetime(2026, 1, 2, 3, 4, 6, 500_000, UTC)
    assert metrics.cancellations[0] == CancellationMetric("plan", "user", at)
    assert (len(metrics.cancellations), metrics.cancellation_count) == (2, 2)
    assert metrics.started_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_latest_thousand_stay_and_all_are_counted() -> None:
    lines = [cancelled(1_000 * i, str(i)) for i in range(5_000)]
    metrics = folded(lines[::-1]).to_metrics("s")
    assert [c.reason for c in metrics.cancellations] == [str(i) for i in range(4_000, 5_000)]
    assert metrics.cancellations[-1].timestamp == EPOCH + timedelta(microseconds=4_999)
    assert (metrics.cancellation_count, metrics.started_at) == (5_000, EPOCH)


class TestOrder:
    """With three that stay: what stays, and in which order, does not depend on how they came."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _few() -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(happenings, "MAX_HAPPENINGS", 3)
            yield

    lines = st.lists(st.builds(cancelled, st.integers(0, 3000), st.sampled_from("abc")), max_size=14)

    @given(lines, st.randoms(use_true_random=False), st.integers(0, 14))
    def test_it_does_not_show(self, lines: list[bytes], random: st.DataObject, at: int) -> None:
        shuffled = list(lines)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        whole = folded(lines)
        assert folded(shuffled).to_metrics("s") == whole.to_metrics("s")
        resumed = folded(shuffled[at:], stored(folded(shuffled[:at])))
        assert resumed.to_metrics("s") == whole.to_metrics("s")
        assert stored(resumed).to_metrics("s") == whole.to_metrics("s")
        merged = folded(shuffled[:at])
        merged.merge(folded(shuffled[at:]))
        assert merged == whole

    def test_order_below_a_microsecond_survives_the_file(self) -> None:
        lines = [cancelled(1_300, "a"), cancelled(1_200, "b"), cancelled(1_100, "c"), cancelled(1_000, "d")]
        resumed = folded(lines[2:], stored(folded(lines[:2])))
        assert [c.reason for c in resumed.to_metrics("s").cancellations] == ["c", "b", "a"]


def test_list_that_was_replaced_meanwhile_counts_as_it_is(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_cancellation("execute", "timeout")
    at = datetime(2026, 1, 2, tzinfo=UTC)
    save(sessions, "s", SessionMetrics("s", at, at, cancellations=[CancellationMetric("a", "b", at)] * 2))
    with Collector("s", sessions) as collector:
        metrics = collector.snapshot()
    assert metrics.cancellations == [CancellationMetric("a", "b", at)] * 2
    assert metrics.cancellation_count == 2
