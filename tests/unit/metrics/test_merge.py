"""Merging: the parts of a session add up to the whole, whatever was dealt to which part."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import Collector, LLMMetric, SessionMetrics, ToolMetric, Usage, load, merge
from m31a_mp.kinds.tables import PackedEntries, Table
from metrics_of import metrics_of
from strategies import Record, any_counts, few_names, records_of

USAGE = Usage(1, 2, 3)
part_of = partial(metrics_of, started=10**18, now=2 * 10**18)  # an owner who came after the records
few_records = records_of(few_names, any_counts)


def stored(metrics: SessionMetrics) -> SessionMetrics:
    """As it comes back from a file."""
    read = SessionMetrics.from_json(orjson.loads(orjson.dumps(metrics.to_json())))
    read.rest = orjson.loads(orjson.dumps(metrics.rest))
    return read


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 4 * 10**12), few_records), max_size=12),
    st.lists(st.integers(0, 2), min_size=12, max_size=12),
    st.permutations(range(3)),
)
def test_parts_add_up_to_the_whole_in_any_order(
    records: list[tuple[int, Record]], dealt: list[int], order: list[int]
) -> None:
    parts = [
        stored(part_of([record for record, to in zip(records, dealt, strict=False) if to == part]))
        for part in range(3)
    ]
    whole = part_of(records)
    merged = merge(*(parts[i] for i in order))
    assert merged == whole
    assert merged.rest == whole.rest
    assert merge(merge(parts[0], parts[1]), parts[2]) == whole


def test_costs_are_exact_to_the_last_digit() -> None:
    costs = [0.1, 1e16, 0.2, 1e-8, 0.3]
    parts = [part_of([(i, Record("llm_interaction", ("plan", USAGE, cost)))]) for i, cost in enumerate(costs)]
    whole = part_of([(i, Record("llm_interaction", ("plan", USAGE, cost))) for i, cost in enumerate(costs)])
    assert merge(*parts) == merge(*parts[::-1]) == whole


def test_metrics_of_other_programs_add_up_as_they_are_shown() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    one = SessionMetrics(
        "a", at, at, [ToolMetric("bash", 2, 1, 1, 10, 5.0)], [LLMMetric("p", 1, 2, 3, 0.5, 1)]
    )
    two = SessionMetrics(
        "b", at, at, [ToolMetric("bash", 1, 1, 0, 2, 2.0)], [LLMMetric("p", 1, 2, 3, 0.25, 1)]
    )
    merged = merge(one, two)
    assert merged.session_id == "a,b"
    assert merged.tools == [ToolMetric("bash", 3, 2, 1, 12, 4.0)]
    assert merged.llms == [LLMMetric("p", 2, 4, 6, 0.75, 2)]
    assert one.tools == [ToolMetric("bash", 2, 1, 1, 10, 5.0)]


def test_what_was_changed_counts_as_it_is() -> None:
    part = part_of([(1, Record("llm_interaction", ("plan", USAGE, 0.1)))])
    part.llms[0].cost = 2.0
    assert merge(part, part).llms[0].cost == 4.0


def test_files_and_snapshots_merge(sessions: Path) -> None:
    for name in ("a", "b"):
        with Collector(name, sessions) as collector:
            collector.record_tool_call("bash", True, 5)
            snapshot = collector.snapshot()
    one, two = load(sessions, "a"), load(sessions, "b")
    assert one
    assert two
    assert merge(one, two).tools[0].call_count == merge(one, snapshot).tools[0].call_count == 2


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merge()
    with pytest.raises(TypeError, match="SessionMetrics, not dict"):
        merge({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tools\[0\].call_count"):
        merge(SessionMetrics("s", tools=[ToolMetric("bash", "many")]))  # type: ignore[arg-type]


def test_bounds_of_a_model_that_a_file_does_not_tell_stay_unknown(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_llm_interaction("plan", Usage(1, 1, 2), 0.5, model="opus", duration_ms=100)
        earlier = collector.snapshot()
        [model] = earlier.models
        assert (model.min_duration_ms, model.max_duration_ms, model.quantile(0.5)) == (100, 100, 100.0)
        collector.record_llm_interaction("plan", Usage(1, 1, 2), 0.5, model="opus", duration_ms=300)
        later = collector.snapshot()
    model.min_duration_ms = model.max_duration_ms = None
    for parts in ((earlier, later), (later, earlier)):
        [both] = merge(*parts).models
        assert (both.min_duration_ms, both.max_duration_ms, both.total_duration_ms) == (None, None, 500)


def test_part_without_records_has_no_latest_one(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_heal_trigger("plan")
        metrics = collector.snapshot()
    assert merge(metrics, SessionMetrics("disabled")).updated_at == metrics.updated_at


def test_each_entry_is_added_up_once_however_many_parts_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    merged = Table.merged

    def merged_counted(table: Table, states: Sequence[PackedEntries]) -> PackedEntries:
        added.extend(len(state.rows) for state in states)
        return merged(table, states)

    monkeypatch.setattr(Table, "merged", merged_counted)
    parts = [SessionMetrics("s", tools=[ToolMetric(f"tool {i}", 1, 1)]) for i in range(20)]
    assert len(merge(*parts).tools) == sum(added) == 20
