"""The metrics and their JSON, which a Go program reads and writes, too."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import uuid
from collections import Counter
from copy import copy
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m31a_mp import (
    CancellationMetric,
    Collector,
    CompletionMetric,
    EditStrategyMetric,
    LLMMetric,
    ModelMetric,
    PhaseMetric,
    PlanOutcome,
    SessionMetrics,
    StartupMetric,
    Timeline,
    ToolMetric,
    Usage,
    WorkflowPhase,
    attach,
    load,
    model,
)
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.model import ENTRIES, SINGLE
from m31a_mp.segments import staging
from m31a_mp.session.paths import Session
from strategies import INT64_MAX, Record, any_counts, entries, expected, few_records, names

WHOLE = SessionMetrics(
    "s",
    datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
    [ToolMetric("bash", 3, 2, 1, 201, 67.0)],
    [LLMMetric("plan", 1, 2, 4, 0.5, 1)],
    [PhaseMetric("plan", 7, 1, 2, 3, True)],
    {"no_space": 2},
    5,
    cancellations=[CancellationMetric("plan", "user", datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC))],
    cancellation_count=1234,
)

# As a Go program with the struct tags of the table writes it: nanoseconds without trailing zeros, floats
# without a point where they are whole, nil slices as null.
GO = b"""{"session_id":"s",
"started_at":"2026-01-02T03:04:05.678901234Z","updated_at":"2026-01-02T04:04:06+01:00",
"tools":[{"name":"bash","call_count":3,"success_count":2,"fail_count":1,
"total_duration_ms":201,"avg_duration_ms":67}],
"llms":null,
"phases":[{"phase":"plan","duration_ms":7,"transition_count":1,
"heal_trigger_count":2,"bisect_trigger_count":3,"success":true}],"new_key":[1]}"""


def any_of(cls: Any) -> Any:
    """A value of a type; types check what they have when they become JSON."""
    return cls(*(f.name for f in dataclasses.fields(cls) if f.default is f.default_factory))


def as_dataclass_makes_it(metric: Any) -> Any:
    """The same values in a dataclass with the methods that `dataclass` writes."""
    kept = [
        (f.name, Any, dataclasses.field(repr=f.repr, compare=f.compare)) for f in dataclasses.fields(metric)
    ]
    made = dataclasses.make_dataclass(type(metric).__qualname__, kept)
    return made(*(getattr(metric, name) for name, *_ in kept))


@pytest.mark.parametrize(
    "metric",
    [
        any_of(cls)
        for cls in (*ENTRIES.values(), *SINGLE.values(), Timeline, SessionMetrics)
        if cls is not PlanOutcome
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_types_print_and_compare_as_dataclasses_do(metric: Any) -> None:
    made = as_dataclass_makes_it(metric)
    assert repr(metric) == repr(made)
    assert metric == copy(metric) == pickle.loads(pickle.dumps(metric))
    assert metric != made
    for field in dataclasses.fields(metric):
        changed = copy(metric)
        setattr(changed, field.name, object())
        assert (metric != changed) is field.compare, field.name
    with pytest.raises(TypeError, match="unhashable"):
        hash(metric)


def test_phases_are_those_of_the_workflow() -> None:
    assert list(WorkflowPhase) == [
        "idle", "initialize", "discuss", "plan", "execute", "verify", "runtime", "ship",
    ]  # fmt: skip
    assert all(str(phase) == phase.value for phase in WorkflowPhase)


def test_metrics_come_back_from_their_json() -> None:
    assert SessionMetrics.from_json(orjson.loads(orjson.dumps(WHOLE.to_json()))) == WHOLE


offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(datetime(1970, 1, 1), datetime(9990, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def _histogram(durations: list[int]) -> Histogram:
    made = Histogram()
    made.add(Counter(durations))
    return made


histograms = st.lists(st.integers(0, 2**40), min_size=1, max_size=5).map(_histogram)
metrics = st.builds(
    SessionMetrics,
    names,
    st.datetimes(datetime(1970, 1, 1), datetime(9990, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.datetimes(datetime(1970, 1, 1), datetime(9990, 1, 1), timezones=offsets),  # noqa: DTZ001
    st.lists(
        st.builds(ToolMetric, names, any_counts, any_counts, any_counts, any_counts, st.floats(0, 1e300))
    ),
    st.lists(
        st.builds(LLMMetric, names, any_counts, any_counts, any_counts, st.floats(0, 1e300), any_counts)
    ),
    st.lists(
        st.builds(PhaseMetric, names, any_counts, any_counts, any_counts, any_counts, st.booleans()),
        max_size=3,
    ),
    st.dictionaries(names, any_counts, max_size=3),
    any_counts,
    cancellations=st.lists(st.builds(CancellationMetric, names, names, times), max_size=3),
    cancellation_count=any_counts,
    models=st.lists(st.builds(ModelMetric, names, any_counts, durations=st.none() | histograms), max_size=3),
    edit_strategies=st.lists(st.builds(EditStrategyMetric, names, any_counts), max_size=3),
    plan_outcomes=st.lists(
        st.builds(
            PlanOutcome,
            names,
            names,
            names,
            st.booleans(),
            any_counts,
            files=st.lists(names, max_size=2),
            timestamp=times,
        ),
        max_size=3,
    ),
    plan_outcome_count=any_counts,
    startup=st.none() | st.builds(StartupMetric, any_counts, any_counts, any_counts, any_counts),
    completions=st.lists(
        st.builds(CompletionMetric, names, st.booleans(), st.booleans(), st.booleans(), times), max_size=3
    ),
    completion_count=any_counts,
)


@pytest.mark.slow
@given(metrics)
def test_any_metrics_come_back_from_their_json(metrics: SessionMetrics) -> None:
    assert SessionMetrics.from_json(orjson.loads(orjson.dumps(metrics.to_json()))) == metrics


ENTRY_DAMAGE: list[object] = [
    None, True, 0, -1, 1.5, 2.0, INT64_MAX, INT64_MAX + 1, -(2**63), 1e300, "", "x", "é", "\ud800", [], {},
    [1], {"x": 1}, {"x": True}, {"x": 1.0}, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05",
    {"scale": 4, "zero_count": 1, "offset": -20, "bucket_counts": [1, 0]},
]  # fmt: skip


def read_one_by_one(cls: type[Any], entries: list[Any], where: str) -> Any:
    try:
        return [model._read(cls, entry, f"{where}[{i}].") for i, entry in enumerate(entries)]
    except ValueError as error:
        return str(error)


def read_at_once(cls: type[Any], entries: list[Any], where: str) -> Any:
    try:
        return model._read_columns(cls, entries, where).entries()
    except ValueError as error:
        return str(error)


@pytest.mark.slow
@given(metrics, st.data())
def test_entries_that_are_read_at_once_are_those_that_are_read_one_by_one(
    metrics: SessionMetrics, data: st.DataObject
) -> None:
    document = orjson.loads(orjson.dumps(metrics.to_json()))
    for name, cls in model.ENTRIES.items():
        found = document.get(name) or []
        if found and data.draw(st.booleans()):
            damaged = data.draw(st.sampled_from(found))
            key = data.draw(st.sampled_from([field.name for field in model._fields(cls)]))
            damaged[key] = data.draw(st.sampled_from(ENTRY_DAMAGE))
        assert read_at_once(cls, found, name) == read_one_by_one(cls, found, name)


class NoNumber(Enum):
    """orjson writes a member as its value."""

    THREE = 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"call_count": NoNumber.THREE},
        {"durations": {"scale": 4, "zero_count": NoNumber.THREE, "offset": 0, "bucket_counts": [1]}},
        {"durations": {"scale": 4, "zero_count": 0, "offset": 0, "bucket_counts": [1, NoNumber.THREE, 1]}},
        {"durations": {"scale": 4, "zero_count": 0, "offset": 0, "bucket_counts": [256, NoNumber.THREE, 1]}},
    ],
)
def test_object_that_only_json_takes_for_a_number_is_a_value_error_that_says_where(
    wrong: dict[str, Any],
) -> None:
    document = {**WHOLE.to_json(), "tools": [{"name": "bash", **wrong}]}
    with pytest.raises(ValueError, match=rf"^tools\[0\]\.{next(iter(wrong))} "):
        SessionMetrics.from_json(document)


def test_times_are_rfc_3339_in_utc() -> None:
    there = timezone(timedelta(hours=-7, minutes=-30))
    document = SessionMetrics("s", datetime(2026, 1, 1, 20, tzinfo=there)).to_json()
    assert document["started_at"] == "2026-01-02T03:30:00Z"


def test_file_of_a_go_program_is_read() -> None:
    metrics = SessionMetrics.from_json(orjson.loads(GO))
    assert metrics.started_at == datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    assert metrics.updated_at == datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    assert metrics.tools == WHOLE.tools
    assert type(metrics.tools[0].avg_duration_ms) is float
    assert metrics.llms == []
    assert metrics.phases == WHOLE.phases
    assert (metrics.dropped, metrics.rejected) == ({}, 0)


def test_zero_time_of_go_is_read() -> None:
    document = {**WHOLE.to_json(), "started_at": "0001-01-01T00:00:00Z"}
    assert SessionMetrics.from_json(document).started_at == datetime(1, 1, 1, tzinfo=UTC)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NO_INTEGERS: list[object] = ["1", True, 1.0, -1, INT64_MAX + 1, -(2**63) - 1, 1e30, []]
NO_NUMBERS: list[object] = ["1", True, -1, -0.5, float("nan"), float("inf"), []]
NO_TIMES: list[object] = [None, 1, "", "yesterday", "2026-01-02T03:04:05", "2026-13-01T00:00:00Z"]
NO_TIMES += ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"]

NO_BOOLS: list[object] = [0, 1, "true", []]

WRONG: list[tuple[str, list[object]]] = [
    ("session_id", [None, 1, [], b"s", nested(990)]),
    ("started_at", [*NO_TIMES, nested(990)]),
    ("updated_at", NO_TIMES),
    ("tools", [{}, "", 1, [1], [None], [[]], [{"name": None}], [{"name": 1}], [nested(980)]]),
    ("tools", [[{"name": "bash", "call_count": value}] for value in NO_INTEGERS]),
    ("tools", [[{"name": "bash", "avg_duration_ms": value}] for value in NO_NUMBERS]),
    ("llms", [[{"phase": "plan", "cost": value}] for value in NO_NUMBERS]),
    ("phases", [[{"phase": "plan", "success": value}] for value in NO_BOOLS]),
    (
        "cancellations",
        [{}, [1], [{"phase": "plan"}], [{"phase": 1, "reason": "", "timestamp": "2026-01-02T00:00:00Z"}]],
    ),
    ("cancellation_count", NO_INTEGERS),
    ("dropped", [[], "x", {"x": -0.5}, {"x": -1}, {"x": 1, "y": "2"}, nested(990)]),
    ("rejected", [*NO_INTEGERS, nested(990)]),
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG for value in values])
def test_json_of_another_form_is_a_value_error_that_says_where(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key) as error:
        SessionMetrics.from_json({**WHOLE.to_json(), key: value})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("document", [None, [], "x", 1, True])
def test_json_that_is_no_object_is_a_value_error(document: object) -> None:
    with pytest.raises(ValueError, match="object"):
        SessionMetrics.from_json(document)


@pytest.mark.parametrize(
    ("tool", "where"),
    [
        (ToolMetric("bash", 1.5), "tools[0].call_count"),  # type: ignore[arg-type]
        (ToolMetric("bash", 2**63), "tools[0].call_count"),
        (ToolMetric(None), "tools[0].name"),  # type: ignore[arg-type]
        (ToolMetric("bash", avg_duration_ms=float("nan")), "tools[0].avg_duration_ms"),
        (ToolMetric("bash", avg_duration_ms=10**400), "tools[0].avg_duration_ms"),
        (ToolMetric("\ud800"), "tools[0].name"),
    ],
)
def test_metrics_with_a_wrong_field_are_a_value_error_that_says_where(tool: ToolMetric, where: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        SessionMetrics("s", tools=[tool]).to_json()
    assert where in str(error.value)


def test_time_without_an_offset_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="started_at"):
        SessionMetrics("s", datetime(2026, 1, 1)).to_json()  # noqa: DTZ001


def test_totals_of_the_largest_numbers_stop_at_the_largest() -> None:
    most = 2**63 - 1
    llms = [LLMMetric(phase, most, 0, most, 1.7e308, 1) for phase in "abc"]
    totals = SessionMetrics("s", llms=llms).totals
    assert (totals.prompt_tokens, totals.llm_interactions) == (most, 3)
    assert totals.cost == sys.float_info.max


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"tool_calls": [-5, 1]}, "negative"), ({"starts": [50, 0]}, "order"), ({"costs": [0.0]}, "as many")],
)
def test_timeline_that_cannot_be_is_refused(wrong: dict[str, list[int]], reason: str) -> None:
    columns = {key: [1, 1] for key in Timeline.columns()} | {"starts": [0, 50]}
    document = SessionMetrics("s").to_json() | {"timeline": {"step_seconds": 1, **columns, **wrong}}
    with pytest.raises(ValueError, match=f"timeline.*{reason}"):
        SessionMetrics.from_json(document)


def test_plan_outcome_without_a_time_is_no_entry_of_a_file() -> None:
    outcome = PlanOutcome("T-7", "edit", "", True, 1)
    with pytest.raises(ValueError, match=r"plan_outcomes\[0\].timestamp is missing"):
        SessionMetrics("s", plan_outcomes=[outcome]).to_json()


USAGE = Usage(10, 20, 35)


class TestWholeFile:
    def test_file_has_the_keys_of_the_go_structs_and_rfc_3339_times(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 1)
            collector.record_llm_interaction("plan", USAGE, 0.5)
            collector.record_phase_duration("plan", 1, True)
        document = orjson.loads((sessions / "s" / "metrics.json").read_bytes())
        assert {"session_id", "started_at", "updated_at", "tools", "llms", "phases"} <= document.keys()
        assert document["tools"] == [
            {
                "name": "bash",
                "call_count": 1,
                "success_count": 1,
                "fail_count": 0,
                "total_duration_ms": 1,
                "avg_duration_ms": 1.0,
                "min_duration_ms": 1,
                "max_duration_ms": 1,
                "durations": {"scale": 4, "zero_count": 0, "offset": -160, "bucket_counts": [1]},
            }
        ]
        assert document["llms"] == [
            {
                "phase": "plan",
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "total_tokens": 35,
                "cost": 0.5,
                "interaction_count": 1,
            }
        ]
        assert document["phases"][0].pop("ended_at") <= document["updated_at"]
        assert document["phases"] == [
            {
                "phase": "plan",
                "duration_ms": 1,
                "transition_count": 0,
                "heal_trigger_count": 0,
                "bisect_trigger_count": 0,
                "success": True,
                "heal_success_count": 0,
                "heal_fail_count": 0,
                "bisect_success_count": 0,
                "bisect_fail_count": 0,
            }
        ]
        assert document["timeline"].keys() == {
            "step_seconds", "starts", "tool_calls", "failures",
            "interactions", "tokens", "costs", "unknown_costs",
        }  # fmt: skip
        for key in ("started_at", "updated_at"):
            assert document[key].endswith("Z")
            assert datetime.fromisoformat(document[key]).utcoffset() == timedelta(0)

    def test_empty_lists_are_lists(self, sessions: Path) -> None:
        Collector("s", sessions).stop()
        document = orjson.loads((sessions / "s" / "metrics.json").read_bytes())
        assert [document["tools"], document["llms"], document["phases"]] == [[], [], []]

    @pytest.mark.slow
    @settings(max_examples=30)
    @given(
        records=st.lists(few_records, min_size=1, max_size=40),
        turns=st.lists(st.integers(0, 2), min_size=40, max_size=40),
        flushes=st.sets(st.integers(0, 39)),
    )
    def test_which_process_recorded_what_does_not_show_in_the_result(
        self, all_sessions: Path, records: list[Record], turns: list[int], flushes: set[int]
    ) -> None:
        name = uuid.uuid4().hex
        session = Session.named(name, all_sessions)
        with Collector(name, all_sessions) as collector:
            stagings = [staging.Staging(session) for _ in range(3)]
            workers = []
            for stage in stagings:
                worker = attach(name, all_sessions)
                worker._put = stage.put
                workers.append(worker)
            for i, record in enumerate(records):
                record.perform(workers[turns[i]])
                if i in flushes:
                    stagings[turns[i]].hand_over()
                    collector.flush() if i % 2 else None
            for stage in reversed(stagings):
                stage.close()
        metrics = load(all_sessions, name)
        assert metrics
        assert entries(metrics) == expected(enumerate(records))
