"""What records add up to, in whatever order they are added."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import Collector, LLMMetric, PhaseMetric, SessionMetrics, ToolMetric, compact, load, save
from m31a_mp.errors import DamagedMetricsError
from m31a_mp.metrics import totals
from m31a_mp.metrics.events import fold_checked
from m31a_mp.metrics.totals import TooManyEntriesError, Totals
from m31a_mp.model import read
from metrics_of import folded, stored
from strategies import Record, bare, few_names, few_records, untimed


def test_times_are_those_of_the_start_and_of_the_latest_record() -> None:
    metrics = folded(
        [(3_000, Record("heal_trigger", ("plan",))), (2_000, Record("heal_trigger", ("plan",)))],
        Totals(1_000),
    ).to_metrics("s")
    assert (metrics.started_at.microsecond, metrics.updated_at.microsecond) == (1, 3)


def test_session_is_never_updated_before_it_started() -> None:
    metrics = folded([(1, Record("heal_trigger", ("plan",)))], Totals(10**9)).to_metrics("s")
    assert metrics.updated_at == metrics.started_at


PLAN = Record("heal_trigger", ("plan",))


def span(metrics: SessionMetrics) -> tuple[int, int]:
    """Beginning and end in microseconds since the epoch."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    step = timedelta(microseconds=1)
    return (metrics.started_at - epoch) // step, (metrics.updated_at - epoch) // step


@pytest.mark.slow
@given(
    st.none() | st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 10**6), few_records), min_size=1, max_size=8),
    st.integers(0, 8),
)
def test_session_lasts_from_its_owner_or_first_record_to_its_last_one_wherever_it_was_published(
    owned: int | None, records: list[tuple[int, Record]], at: int
) -> None:
    times = [time for time, _ in records]
    wanted = (min([*times, *([] if owned is None else [owned])]) // 1000, max(times) // 1000)
    assert span(folded(records, Totals(owned)).to_metrics("s")) == wanted
    if owned is not None or at:  # else what is published is the time of this test
        resumed = folded(records[at:], stored(folded(records[:at], Totals(owned))))
        assert span(resumed.to_metrics("s")) == wanted


def test_session_without_owner_and_record_starts_now() -> None:
    before = datetime.now(UTC)
    metrics = Totals().to_metrics("s")
    assert before <= metrics.started_at == metrics.updated_at <= datetime.now(UTC)


def test_drops_heard_of_twice_count_once() -> None:
    result = Totals(0)
    for dropped in ({"no_space": 2}, {"no_space": 2}, {"no_space": 5, "backlog": 1}, {"no_space": 3}):
        result.saw_dropped(result.writer("a"), dropped)
    result.saw_dropped(result.writer("b"), {"no_space": 1})
    assert result.to_metrics("s").dropped == {"no_space": 6, "backlog": 1}
    assert stored(result).to_metrics("s").dropped == {"no_space": 6, "backlog": 1}
    resumed = stored(result)
    resumed.saw_dropped(resumed.writer("a"), {"no_space": 5, "backlog": 1})
    assert resumed.to_metrics("s").dropped == {"no_space": 6, "backlog": 1}


def test_one_distinct_name_too_many_is_refused_and_the_known_ones_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(totals, "MAX_ENTRIES", 2)
    result = Totals(0)
    for name in ("a", "b"):
        for event in ("heal_trigger", "bisect_trigger"):
            fold_checked(result, Record(event, (name,)).line(1), 0)
        fold_checked(result, Record("tool_call", (name, True, 1)).line(1), 0)
    before = result.to_metrics("s")
    for record in (Record("heal_trigger", ("c",)), Record("tool_call", ("c", True, 1))):
        with pytest.raises(TooManyEntriesError, match="'c'"):
            fold_checked(result, record.line(99), 0)
    assert result.to_metrics("s") == before
    fold_checked(result, Record("tool_call", ("a", True, 1)).line(1), 0)
    assert result.to_metrics("s").tools[0].call_count == 2


def restored(metrics: SessionMetrics) -> SessionMetrics:
    """As another program's file reads when the library has gone on from it."""
    document = orjson.loads(orjson.dumps(metrics.to_json()))
    return Totals.restore(read(document), {}).to_metrics("s")


small = st.integers(0, 50)
parts = st.lists(
    st.one_of(
        st.builds(ToolMetric, few_names, small, small, small, small),
        st.builds(LLMMetric, few_names, small, small, small, st.sampled_from([0.1, 0.2, 1e16]), small),
        st.builds(PhaseMetric, few_names, small, small, small, small, st.booleans()),
    ),
    max_size=12,
)


def made_of(parts: list[ToolMetric | LLMMetric | PhaseMetric]) -> SessionMetrics:
    time = datetime(2026, 1, 2, tzinfo=UTC)
    return SessionMetrics(
        "s",
        time,
        time,
        [part for part in parts if isinstance(part, ToolMetric)],
        [part for part in parts if isinstance(part, LLMMetric)],
        [part for part in parts if isinstance(part, PhaseMetric)],
    )


def by_name(metrics: SessionMetrics) -> dict[str, object]:
    return {repr(entry)[: repr(entry).index(",")]: entry for table in (
        metrics.tools, metrics.llms, metrics.phases
    ) for entry in table}  # fmt: skip


class TestEntriesOfOneName:
    def test_sums_of_another_program_are_all_kept(self) -> None:
        tools = [
            ToolMetric("a", 10, 4, 3, 50, 5.0),
            ToolMetric("b", 1, 1, 1, 1, 1.0),
            ToolMetric("a", 1, 0, 9, 4, 4.0),
        ]
        llms = [LLMMetric("p", 1, 2, 4, 0.1, 1), LLMMetric("p", 10, 20, 40, 0.2, 2)]
        phases = [PhaseMetric("p", 7, 1, 2, 3, True), PhaseMetric("p", 5, 10, 20, 30, False)]
        time = datetime(2026, 1, 2, tzinfo=UTC)
        found = restored(SessionMetrics("s", time, time, tools, llms, phases))
        assert bare(found.tools) == [
            ToolMetric("a", 11, 4, 12, 54, 54 / 11),
            ToolMetric("b", 1, 1, 1, 1, 1.0),
        ]
        assert found.llms == [LLMMetric("p", 11, 22, 44, 0.1 + 0.2, 3)]
        assert untimed(found.phases) == [PhaseMetric("p", 7, 11, 22, 33, True)]

    @pytest.mark.slow
    @given(parts, st.randoms(use_true_random=False))
    def test_their_order_does_not_show_in_the_numbers(
        self, parts: list[ToolMetric | LLMMetric | PhaseMetric], random: st.DataObject
    ) -> None:
        shuffled = list(parts)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        assert by_name(restored(made_of(parts))) == by_name(restored(made_of(shuffled)))

    @pytest.mark.slow
    @given(parts)
    def test_nothing_is_lost_and_nothing_is_added_by_going_on_again(
        self, parts: list[ToolMetric | LLMMetric | PhaseMetric]
    ) -> None:
        metrics = made_of(parts)
        found = restored(metrics)
        for key in ("call_count", "success_count", "fail_count", "total_duration_ms"):
            wanted = sum(getattr(tool, key) for tool in metrics.tools)
            assert sum(getattr(tool, key) for tool in found.tools) == wanted
        assert restored(found) == found

    def test_records_come_on_top_of_them(self, sessions: Path) -> None:
        tools = [ToolMetric("a", 10, 4, 3, 50, 5.0), ToolMetric("a", 1, 0, 9, 4, 4.0)]
        save(sessions, "s", SessionMetrics("s", tools=tools))
        for _ in range(2):
            with Collector("s", sessions) as collector:
                collector.record_tool_call("a", False, 6)
        metrics = load(sessions, "s")
        assert metrics
        assert bare(metrics.tools) == [ToolMetric("a", 13, 4, 14, 66, 66 / 13)]


def test_forgotten_writers_are_those_that_are_gone() -> None:
    result = Totals(0)
    for writer in "abc":
        result.writer(writer).last = 7
    result.keep_writers({"b", "x"})
    assert {name: mark.last for name, mark in stored(result).writers.items()} == {"b": 7}


def test_negative_counts_of_the_checkpoint_are_damage(tmp_path: Path) -> None:
    with Collector("s", tmp_path) as collector:
        collector.record_tool_call("bash", True, 1)
    file = tmp_path / "s" / "metrics.json"
    file.write_bytes(file.read_bytes().replace(b'"records": 1', b'"records": -1'))
    with pytest.raises(DamagedMetricsError, match="-1 is not a count"):
        compact(tmp_path, "s")


def test_negative_counts_are_refused_before_they_are_added_up(tmp_path: Path) -> None:
    tools = [ToolMetric("tool", 5), ToolMetric("tool", -3)]
    with pytest.raises(ValueError, match=r"tools\[1\]\.call_count is negative: -3"):
        save(tmp_path, "s", SessionMetrics("s", tools=tools))
    save(tmp_path, "s", SessionMetrics("s", tools=[ToolMetric("tool", 12345)]))
    file = tmp_path / "s" / "metrics.json"
    file.write_bytes(file.read_bytes().replace(b"12345", b"-3"))  # of another program, or damaged
    with pytest.raises(DamagedMetricsError, match=r"tools\[0\]\.call_count is negative: -3"):
        compact(tmp_path, "s")
