"""What users are promised of `Collector` and `Recorder`, in one process."""

from __future__ import annotations

import copy
import enum
import itertools
import logging
import os
import pickle
import random
import stat
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m31a_mp import (
    Collector,
    DamagedMetricsError,
    InterruptedCallError,
    LLMMetric,
    PhaseMetric,
    Recorder,
    SessionOwnedError,
    ToolMetric,
    Usage,
    WorkflowPhase,
    attach,
    compact,
    load,
    save,
    verify,
)
from m31a_mp.segments import staging, writer
from m31a_mp.segments.reader import SegmentFile
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import FileLock
from metrics_of import files_under
from strategies import INT64_MAX, Record, bare, entries, expected, few_records, records
from workers import Forked, unmap

USAGE = Usage(10, 20, 35)


def open_again(sessions: Path) -> None:
    with pytest.raises(SessionOwnedError, match=f"pid {os.getppid()} ") as error:
        Collector("s", sessions)
    assert "this process" not in str(error.value)
    assert str(error.value).endswith("; record into it with attach(), or stop its owner first")


class TestRecording:
    def test_tool_calls_add_up(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 100)
            collector.record_tool_call("bash", False, 50)
            collector.record_tool_call("bash", True, 51)
            assert bare(collector.snapshot().tools) == [ToolMetric("bash", 3, 2, 1, 201, 67.0)]

    def test_average_is_a_float_that_is_not_rounded(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 1)
            collector.record_tool_call("bash", True, 1)
            collector.record_tool_call("bash", True, 2)
            collector.record_tool_call("whole", True, 2)
        metrics = load(sessions, "s")
        assert metrics
        assert [tool.avg_duration_ms for tool in metrics.tools] == [4 / 3, 2.0]
        assert all(type(tool.avg_duration_ms) is float for tool in metrics.tools)

    def test_total_tokens_are_those_of_the_usage_and_not_recomputed(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_llm_interaction("plan", Usage(1, 2, 99), 0.5)
            collector.record_llm_interaction("plan", Usage(3, 4, 0), 0.25)
            assert collector.snapshot().llms == [LLMMetric("plan", 4, 6, 99, 0.75, 2)]

    def test_interaction_without_usage_is_a_no_op(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_llm_interaction("plan", None, 1.0)
            assert collector.snapshot().llms == []

    def test_phase_counters_add_up_and_the_latest_duration_wins(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_phase_duration("plan", 500, True)
            collector.record_phase_transition("plan")
            collector.record_phase_transition("plan")
            collector.record_heal_trigger("plan")
            collector.record_bisect_trigger("plan")
            collector.record_bisect_trigger("plan")
            collector.record_bisect_trigger("plan")
            collector.record_phase_duration("plan", 20, False)
            assert collector.snapshot().phases == [PhaseMetric("plan", 20, 2, 1, 3, False)]

    def test_tables_do_not_mix(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("plan", True, 1)
            collector.record_llm_interaction("plan", USAGE, 0)
            collector.record_heal_trigger("plan")
            metrics = collector.snapshot()
        assert (metrics.tools[0].call_count, metrics.llms[0].interaction_count) == (1, 1)
        assert metrics.phases == [PhaseMetric("plan", 0, 0, 1, 0, False)]

    def test_workflow_phases_and_strings_name_the_same_phase(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_phase_transition(WorkflowPhase.EXECUTE)
            collector.record_phase_transition("execute")
            assert collector.snapshot().phases == [PhaseMetric("execute", 0, 2)]

    def test_member_of_a_string_enum_is_recorded_by_its_value(self, sessions: Path) -> None:
        class Tool(str, enum.Enum):  # noqa: UP042  # whose str() is another than its value
            BASH = "bash"

        with Collector("s", sessions) as collector:
            collector.record_tool_call(Tool.BASH, True, 1)
            collector.record_phase_transition(Tool.BASH)
            collector.record_llm_interaction(Tool.BASH, USAGE, 0)
            metrics = collector.snapshot()
        names = [metrics.tools[0].name, metrics.phases[0].phase, metrics.llms[0].phase]
        assert names == ["bash"] * 3

    def test_member_of_an_int_enum_is_recorded_by_its_value(self, sessions: Path) -> None:
        class Duration(enum.IntEnum):
            LONG = 7

        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, Duration.LONG)
            assert collector.snapshot().tools[0].total_duration_ms == 7

    @settings(max_examples=60)
    @given(records=st.lists(records, max_size=30))
    def test_any_records_add_up_and_come_back_from_the_file(
        self, all_sessions: Path, records: list[Record]
    ) -> None:
        name = uuid.uuid4().hex
        wanted = expected(enumerate(records))
        with Collector(name, all_sessions) as collector:
            for record in records:
                record.perform(collector)
            assert entries(collector.snapshot()) == wanted
            assert verify(all_sessions, name) == []
        metrics = load(all_sessions, name)
        assert metrics
        assert entries(metrics) == wanted
        assert verify(all_sessions, name) == []


class TestOrder:
    def test_entries_stand_in_the_order_of_their_first_record(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            for name in ["zsh", "awk", "make", "awk", "bash", "zsh"]:
                collector.record_tool_call(name, True, 1)
                collector.record_heal_trigger(name)
                collector.record_llm_interaction(name, USAGE, 1)
                collector.flush()
            metrics = collector.snapshot()
        order = ["zsh", "awk", "make", "bash"]
        assert [tool.name for tool in metrics.tools] == order
        assert [llm.phase for llm in metrics.llms] == order
        assert [phase.phase for phase in metrics.phases] == order

    def test_order_is_that_of_the_first_record_over_all_processes(
        self, sessions: Path, new_process: Callable[[], None]
    ) -> None:
        with Collector("s", sessions) as collector:
            new_process()
            early = attach("s", sessions)
            early.record_tool_call("first", True, 1)
            new_process()
            late = attach("s", sessions)
            late.record_tool_call("second", True, 1)
            late.flush()  # the later one arrives, and is published, before the earlier one
            collector.record_tool_call("third", True, 1)
            assert [tool.name for tool in collector.snapshot().tools] == ["first", "second", "third"]

    def test_batch_that_arrives_after_a_flush_still_sorts_by_its_time(self, session: Session) -> None:
        with Collector("s", session.sessions_dir) as collector:
            collector.record_tool_call("new", True, 1)
            collector.flush()
            session.journal.write_bytes(Record("tool_call", ("old", True, 1)).line(1))
            collector.flush()
            session.journal.write_bytes(Record("tool_call", ("new", True, 1)).line(0))
            assert [tool.name for tool in collector.snapshot().tools] == ["new", "old"]

    @pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
    def test_latest_phase_duration_wins_in_whatever_order_they_arrive(
        self, session: Session, order: list[int]
    ) -> None:
        with Collector("s", session.sessions_dir) as collector:
            for time in order:
                session.journal.write_bytes(
                    Record("phase_duration", ("plan", time * 10, time == 3)).line(time)
                )
                collector.flush()
        metrics = load(session.sessions_dir, "s")
        assert metrics
        assert metrics.phases == [PhaseMetric("plan", 30, success=True)]

    def test_costs_do_not_depend_on_the_order_in_which_they_arrive(self, session: Session) -> None:
        costs = [0.1] * 1500 + [0.2, 1e16, 1e-16, 3.3, 1e-300] * 100 + [1e15]
        lines = [Record("llm_interaction", ("plan", USAGE, c)).line(i) for i, c in enumerate(costs, 1)]
        seen = set()
        for run in range(4):
            name = f"run{run}"
            random.Random(run).shuffle(lines)
            with Collector(name, session.sessions_dir) as collector:
                for part in range(0, len(lines), 500):
                    with (session.sessions_dir / name / "journal.ndjson").open("ab") as stream:
                        stream.writelines(lines[part : part + 500])
                    if run % 2:
                        collector.flush()
                seen.add(collector.snapshot().llms[0].cost)
        wanted = expected((i, Record("llm_interaction", ("plan", USAGE, c))) for i, c in enumerate(costs))
        assert seen == {wanted["llms"][0]["cost"]}

    def test_clock_that_is_set_back_does_not_turn_the_order_around(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = iter([2_000, 1_000, 1_000])
        monkeypatch.setattr(staging, "time_ns", lambda: next(times))
        with Collector("s", sessions) as collector:
            collector.record_phase_duration("plan", 1, True)
            collector.record_phase_duration("plan", 2, True)
            collector.record_phase_duration("plan", 3, True)
            assert collector.snapshot().phases[0].duration_ms == 3


class TestSaturation:
    def test_sums_stop_at_the_largest_int64(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            for _ in range(3):
                collector.record_tool_call("bash", True, INT64_MAX)
                collector.record_llm_interaction("plan", Usage(INT64_MAX, INT64_MAX, INT64_MAX), 1)
            staged = collector.snapshot()
            collector.flush()
            for metrics in (staged, load(sessions, "s")):
                assert metrics
                assert metrics.tools[0].total_duration_ms == INT64_MAX
                assert metrics.llms == [LLMMetric("plan", INT64_MAX, INT64_MAX, INT64_MAX, 3.0, 3)]

    def test_average_of_a_sum_that_stopped_is_that_of_the_published_sum(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, INT64_MAX)
            collector.record_tool_call("bash", True, INT64_MAX)
            before = collector.snapshot().tools
            collector.flush()
            published = load(sessions, "s")
            assert published
            assert before == published.tools == collector.snapshot().tools
            assert published.tools[0].avg_duration_ms == INT64_MAX / 2

    def test_costs_stop_at_the_largest_float(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            for _ in range(3):
                collector.record_llm_interaction("plan", USAGE, 1.7e308)
            collector.flush()
            collector.record_llm_interaction("plan", USAGE, 1.0)
        metrics = load(sessions, "s")
        assert metrics
        assert metrics.llms[0].cost == 1.7976931348623157e308

    def test_sums_go_on_where_a_resumed_session_stopped(self, sessions: Path) -> None:
        for _ in range(3):
            with Collector("s", sessions) as collector:
                collector.record_tool_call("bash", False, INT64_MAX - 1)
                collector.record_llm_interaction("plan", Usage(2**62, 0, 0), 0.1)
        metrics = load(sessions, "s")
        assert metrics
        tool = metrics.tools[0]
        assert (tool.call_count, tool.fail_count, tool.total_duration_ms) == (3, 3, INT64_MAX)
        assert (metrics.llms[0].prompt_tokens, metrics.llms[0].cost) == (INT64_MAX, 0.1 + 0.1 + 0.1)


class Other:
    """No str, no number, nothing."""


HERE = Other()
NO_NAMES = ["", "\ud800", "a\udfffb", "x" * 4097, "é" * 2049]
NO_STRINGS: list[object] = [None, b"bash", 1, Other(), ["bash"]]
NO_INTS: list[Any] = [1.0, True, False, None, "1", Other(), 1j, float("nan"), float("inf")]
NO_COUNTS = [-1, 2**63, 2**64, -(2**63) - 1, 10**5000]
NO_BOOLS: list[object] = [1, 0, None, "true", Other()]

_NAME_ERRORS: list[tuple[type[Exception], Sequence[object]]] = [
    (TypeError, NO_STRINGS),
    (ValueError, NO_NAMES),
]


_TABLE: list[tuple[str, tuple[object, ...], type[Exception], Sequence[object]]] = [
    ("tool_call", (HERE, True, 1), TypeError, NO_STRINGS),
    ("tool_call", (HERE, True, 1), ValueError, NO_NAMES),
    ("tool_call", ("bash", HERE, 1), TypeError, NO_BOOLS),
    ("tool_call", ("bash", True, HERE), TypeError, NO_INTS),
    ("tool_call", ("bash", True, HERE), ValueError, NO_COUNTS),
    ("llm_interaction", (HERE, USAGE, 1.0), TypeError, NO_STRINGS),
    ("llm_interaction", (HERE, USAGE, 1.0), ValueError, NO_NAMES),
    ("llm_interaction", ("plan", HERE, 1.0), TypeError, [1, (1, 2, 3), {}, Other(), "None"]),
    ("llm_interaction", ("plan", USAGE, HERE), TypeError, [True, "1", 1j, Other()]),
    ("llm_interaction", ("plan", USAGE, HERE), ValueError, [-1, -1e-300, 10**400]),
    ("llm_interaction", ("plan", USAGE, HERE), ValueError, [float("nan"), float("inf"), -float("inf")]),
    ("phase_duration", (HERE, 1, True), TypeError, NO_STRINGS),
    ("phase_duration", (HERE, 1, True), ValueError, NO_NAMES),
    ("phase_duration", ("plan", HERE, True), TypeError, NO_INTS),
    ("phase_duration", ("plan", HERE, True), ValueError, NO_COUNTS),
    ("phase_duration", ("plan", 1, HERE), TypeError, NO_BOOLS),
    *[
        (event, (HERE,), error, names)
        for event in ("phase_transition", "heal_trigger", "bisect_trigger")
        for error, names in _NAME_ERRORS
    ],
    *[
        ("cancellation", arguments, error, names)
        for arguments in ((HERE, "user"), ("plan", HERE))
        for error, names in _NAME_ERRORS
    ],
]
WRONG = [
    (event, tuple(value if argument is HERE else argument for argument in arguments), error)
    for event, arguments, error, values in _TABLE
    for value in values
]


class TestArguments:
    @pytest.mark.parametrize(
        ("error", "wrong"),
        [*((TypeError, n) for n in NO_INTS), *((ValueError, n) for n in NO_COUNTS)],
        ids=map(str, range(len(NO_INTS) + len(NO_COUNTS))),
    )
    @pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "total_tokens"])
    def test_wrong_tokens_raise_where_they_are_put_together(
        self, name: str, error: type[Exception], wrong: Any
    ) -> None:
        with pytest.raises(error, match=f"^{name} must be"):
            Usage(**({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2} | {name: wrong}))

    @pytest.mark.parametrize(
        ("event", "arguments", "error"), WRONG, ids=[f"{i}-{event}" for i, (event, _, _) in enumerate(WRONG)]
    )
    def test_wrong_argument_raises_at_once_and_records_nothing(
        self, sessions: Path, event: str, arguments: tuple[object, ...], error: type[Exception]
    ) -> None:
        recorder = attach("s", sessions)
        with pytest.raises((TypeError, ValueError)) as raised:
            getattr(recorder, f"record_{event}")(*arguments)
        assert type(raised.value) is error
        assert str(raised.value)
        assert not sessions.exists()

    @pytest.mark.parametrize(
        "name",
        ["x" * 4096, "\0" * 4096, "\U0001f600" * 1024, "%s%d%b%%", '"\\\n\r\t', "\u2028", "\ufeff", "a/b"],
    )
    def test_any_name_of_up_to_4096_bytes_comes_back_as_it_was(self, sessions: Path, name: str) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call(name, True, 1)
            collector.record_phase_duration(name, 1, True)
            collector.record_llm_interaction(name, USAGE, 0.5)
        metrics = load(sessions, "s")
        assert metrics
        assert [metrics.tools[0].name, metrics.phases[0].phase, metrics.llms[0].phase] == [name] * 3
        assert verify(sessions, "s") == []

    def test_numbers_at_the_ends_of_their_ranges_are_taken(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("a", True, 0)
            collector.record_tool_call("b", True, INT64_MAX)
            collector.record_llm_interaction("int", USAGE, 3)
            collector.record_llm_interaction("tiny", USAGE, 5e-324)
            collector.record_llm_interaction("zero", USAGE, -0.0)
            metrics = collector.snapshot()
        assert [tool.total_duration_ms for tool in metrics.tools] == [0, INT64_MAX]
        assert [llm.cost for llm in metrics.llms] == [3.0, 5e-324, 0.0]

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b", "x" * 201, "é" * 101, "\ud800"])
    @pytest.mark.parametrize("enabled", [True, False])
    def test_session_id_that_is_not_one_path_component_is_a_value_error(
        self, sessions: Path, name: str, enabled: bool
    ) -> None:
        with pytest.raises(ValueError, match="session_id"):
            Collector(name, sessions, enabled=enabled)
        with pytest.raises(ValueError, match="session_id"):
            attach(name, sessions)
        with pytest.raises(ValueError, match="session_id"):
            load(sessions, name)
        with pytest.raises(ValueError, match="session_id"):
            compact(sessions, name)
        with pytest.raises(ValueError, match="session_id"):
            verify(sessions, name)
        assert not sessions.exists()

    @pytest.mark.parametrize("name", ["x" * 200, "é" * 100, "...", "-rf", " ", "a b\n", "~", "*", "s.json"])
    def test_any_other_name_of_up_to_200_bytes_is_a_session_id(self, sessions: Path, name: str) -> None:
        with Collector(name, sessions) as collector:
            collector.record_heal_trigger("plan")
        metrics = load(sessions, name)
        assert metrics
        assert metrics.session_id == name
        assert os.listdir(sessions) == [name]


class TestSnapshot:
    def test_snapshot_is_a_copy_that_the_caller_may_change(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 1)
            snapshot = collector.snapshot()
            snapshot.tools[0].call_count = 99
            snapshot.tools.append(ToolMetric("mine"))
            snapshot.dropped["no_space"] = 1
            assert bare(collector.snapshot().tools) == [ToolMetric("bash", 1, 1, 0, 1, 1.0)]
            assert collector.snapshot().dropped == {}

    def test_snapshot_sees_all_records_before_any_flush_and_publishes_nothing(
        self, sessions: Path, new_process: Callable[[], None]
    ) -> None:
        with Collector("s", sessions) as collector:
            published = (sessions / "s" / "metrics.json").read_bytes()
            collector.record_tool_call("owner", True, 1)
            new_process()
            worker = attach("s", sessions)
            worker.record_tool_call("worker", True, 1)
            before = files_under(sessions)
            for recorder in (collector, worker, attach("s", sessions)):
                assert [tool.name for tool in recorder.snapshot().tools] == ["owner", "worker"]
            assert files_under(sessions) == before
            assert (sessions / "s" / "metrics.json").read_bytes() == published

    @pytest.mark.usefixtures("dead")
    def test_snapshot_sees_the_records_of_a_dead_process(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            worker = attach("s", sessions)
            worker.record_tool_call("bash", True, 1)
            unmap(staging.staging(Session.named("s", sessions)))
            assert collector.snapshot().tools[0].call_count == 1
            collector.flush()
            assert collector.snapshot().tools[0].call_count == 1
            assert os.listdir(sessions / "s" / "segments") == []

    def test_snapshot_does_not_wait_for_the_lock_of_the_journal(self, session: Session) -> None:
        with Collector("s", session.sessions_dir) as collector:
            lock = FileLock(session.journal_lock)
            assert lock.acquire()
            collector.record_tool_call("bash", True, 1)
            assert collector.snapshot().tools[0].call_count == 1
            lock.release()

    def test_snapshot_of_a_session_that_does_not_exist_is_empty(self, sessions: Path) -> None:
        metrics = attach("s", sessions).snapshot()
        assert (metrics.session_id, metrics.tools, metrics.llms, metrics.phases) == ("s", [], [], [])
        assert not sessions.exists()

    def test_times_are_aware_and_in_utc(self, sessions: Path) -> None:
        before = datetime.now(UTC)
        with Collector("s", sessions) as collector:
            collector.record_heal_trigger("plan")
            metrics = collector.snapshot()
        after = datetime.now(UTC)
        assert metrics.started_at.utcoffset() == metrics.updated_at.utcoffset() == timedelta(0)
        assert before - timedelta(microseconds=1) <= metrics.started_at <= metrics.updated_at <= after


class TestFlush:
    def test_flush_publishes_what_every_recorder_recorded(
        self, sessions: Path, new_process: Callable[[], None]
    ) -> None:
        with Collector("s", sessions) as collector:
            new_process()
            worker = attach("s", sessions)
            worker.record_tool_call("bash", True, 1)
            collector.record_tool_call("bash", False, 2)
            collector.flush()
            metrics = load(sessions, "s")
            assert metrics
            assert bare(metrics.tools) == [ToolMetric("bash", 2, 1, 1, 3, 1.5)]

    def test_flush_again_changes_no_number(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_llm_interaction("plan", USAGE, 0.1)
            collector.flush()
            first = load(sessions, "s")
            collector.flush()
            assert load(sessions, "s") == first == collector.snapshot()

    def test_flush_of_a_worker_publishes_nothing_and_loses_nothing(
        self, sessions: Path, new_process: Callable[[], None]
    ) -> None:
        with Collector("s", sessions) as collector:
            new_process()
            worker = attach("s", sessions)
            worker.record_tool_call("bash", True, 1)
            worker.flush()
            assert b"bash" in (sessions / "s" / "journal.ndjson").read_bytes()
            assert b"bash" not in (sessions / "s" / "metrics.json").read_bytes()
            worker.record_tool_call("bash", True, 1)
            assert collector.snapshot().tools[0].call_count == 2

    def test_flush_after_which_the_journal_is_gone(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 1)
            collector.flush()
            assert not [
                name for name in files_under(sessions / "s") if "journal" in name and "lock" not in name
            ]

    def test_flush_with_a_damaged_file_raises_and_keeps_all_records(self, session: Session) -> None:
        with Collector("s", session.sessions_dir) as collector:
            collector.flush()
            good = session.metrics.read_bytes()
            session.metrics.write_bytes(b"{")
            collector.record_tool_call("bash", True, 1)
            with pytest.raises(DamagedMetricsError, match=r"metrics\.json"):
                collector.flush()
            assert session.metrics.read_bytes() == b"{"
            session.metrics.write_bytes(good)
            collector.flush()
            assert collector.snapshot().tools[0].call_count == 1

    def test_flush_inside_flush_raises_and_the_outer_one_completes(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = Collector("s", sessions)
        collector.record_tool_call("bash", True, 1)
        raised: list[InterruptedCallError] = []

        def reached(point: str) -> None:
            if point == "before seal journal" and not raised:
                with pytest.raises(InterruptedCallError) as error:
                    collector.flush()
                raised.append(error.value)
                collector.stop()

        monkeypatch.setattr("m31a_mp.system.files.reached", reached)
        collector.flush()
        assert raised
        compact(sessions, "s")  # the stop took effect: the session has no owner
        metrics = load(sessions, "s")
        assert metrics
        assert metrics.tools[0].call_count == 1


class TestStop:
    def test_stop_flushes_and_gives_back_the_lease_and_the_shared_memory(self, sessions: Path) -> None:
        collector = Collector("s", sessions)
        collector.record_tool_call("bash", True, 1)
        collector.stop()
        assert files_under(sessions / "s") == {"metrics.json", "journal.lock", "owner.lock", "segments"}
        metrics = load(sessions, "s")
        assert metrics
        assert metrics.tools[0].call_count == 1
        Collector("s", sessions).stop()

    def test_stop_logs_one_summary_line(self, sessions: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        collector = Collector("the-session", sessions)
        collector.record_tool_call("bash", True, 1)
        collector.record_tool_call("bash", True, 1)
        collector.stop()
        collector.stop()
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "the-session" in caplog.text
        assert "2 tool calls" in caplog.text

    def test_stop_again_is_harmless(self, sessions: Path) -> None:
        collector = Collector("s", sessions)
        collector.stop()
        owner = Collector("s", sessions)
        owner.record_tool_call("bash", True, 1)
        collector.stop()
        assert owner.snapshot().tools[0].call_count == 1
        with pytest.raises(SessionOwnedError):
            compact(sessions, "s")
        owner.stop()

    def test_stop_never_raises_and_says_in_the_log_what_went_wrong(
        self, session: Session, caplog: pytest.LogCaptureFixture
    ) -> None:
        collector = Collector("s", session.sessions_dir)
        collector.record_tool_call("bash", True, 1)
        good = session.metrics.read_bytes()
        session.metrics.write_bytes(b"garbage")
        collector.stop()
        assert "metrics.json" in caplog.text
        session.metrics.write_bytes(good)
        assert compact(session.sessions_dir, "s").metrics.tools[0].call_count == 1

    def test_stop_that_cannot_read_its_own_segments_keeps_them(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = Collector("s", session.sessions_dir)
        collector.record_tool_call("bash", True, 1)
        with monkeypatch.context() as patch:
            patch.setattr(SegmentFile, "open", _raise(OSError(24, "too many open files")))
            collector.stop()
        assert compact(session.sessions_dir, "s").metrics.tools[0].call_count == 1

    def test_record_after_stop_is_counted_by_the_next_flush(self, sessions: Path) -> None:
        collector = Collector("s", sessions)
        collector.stop()
        collector.record_tool_call("bash", True, 1)
        assert collector.snapshot().tools[0].call_count == 1
        collector.flush()
        metrics = load(sessions, "s")
        assert metrics
        assert metrics.tools[0].call_count == 1
        with Collector("s", sessions) as owner:  # the flush did not keep the lease
            assert owner.snapshot().tools[0].call_count == 1

    def test_record_after_stop_is_counted_by_the_next_owner(self, sessions: Path) -> None:
        collector = Collector("s", sessions)
        collector.stop()
        collector.record_tool_call("bash", True, 1)
        with Collector("s", sessions):
            metrics = load(sessions, "s")
            assert metrics
            assert metrics.tools[0].call_count == 1

    def test_record_after_stop_is_counted_by_compact(self, sessions: Path) -> None:
        collector = Collector("s", sessions)
        collector.stop()
        collector.record_tool_call("bash", True, 1)
        collector.stop()
        compaction = compact(sessions, "s")
        assert compaction.records == 1
        assert compaction.metrics.tools[0].call_count == 1

    def test_flush_after_stop_beside_a_new_owner_leaves_the_session_to_him(self, sessions: Path) -> None:
        collector = Collector("s", sessions)
        collector.stop()
        with Collector("s", sessions) as owner:
            collector.record_tool_call("bash", True, 1)
            collector.flush()
            assert owner.snapshot().tools[0].call_count == 1

    def test_with_block_that_raises_still_stops(self, sessions: Path) -> None:
        collector = Collector("s", sessions)

        def fail() -> None:
            with collector:
                collector.record_tool_call("bash", True, 1)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert compact(sessions, "s").metrics.tools[0].call_count == 1


class TestResume:
    def test_resumed_session_keeps_its_start_its_totals_and_its_order(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("b", True, 1)
            collector.record_llm_interaction("plan", USAGE, 0.1)
            collector.record_phase_duration("plan", 7, True)
            started_at = collector.snapshot().started_at
        with Collector("s", sessions) as collector:
            collector.record_tool_call("a", True, 1)
            collector.record_tool_call("b", False, 2)
            collector.record_llm_interaction("plan", USAGE, 0.2)
            collector.record_heal_trigger("plan")
            metrics = collector.snapshot()
        assert metrics == load(sessions, "s")
        assert metrics.started_at == started_at
        assert bare(metrics.tools) == [ToolMetric("b", 2, 1, 1, 3, 1.5), ToolMetric("a", 1, 1, 0, 1, 1.0)]
        assert metrics.llms == [LLMMetric("plan", 20, 40, 70, 0.1 + 0.2, 2)]
        assert metrics.phases == [PhaseMetric("plan", 7, 0, 1, 0, True)]

    def test_new_session_has_a_file_from_the_first_moment(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            metrics = load(sessions, "s")
            assert metrics
            assert metrics == collector.snapshot()
            assert (metrics.session_id, metrics.tools, metrics.llms, metrics.phases) == ("s", [], [], [])

    def test_owner_counts_what_workers_recorded_before_it_existed(
        self, sessions: Path, new_process: Callable[[], None]
    ) -> None:
        attach("s", sessions).record_tool_call("early", True, 1)
        new_process()
        with Collector("s", sessions):
            metrics = load(sessions, "s")
            assert metrics
            assert metrics.tools[0].name == "early"

    def test_second_owner_is_told_who_the_first_one_is(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 1)
            with pytest.raises(SessionOwnedError, match=str(os.getpid())) as error:
                Collector("s", sessions)
            assert error.value.pid == os.getpid()
            assert error.value.started_at is not None
            assert error.value.started_at in str(error.value)
            assert ", which is this process, " in str(error.value)
            assert str(error.value).endswith("; use the collector that has it, or stop() that first")
            assert datetime.fromisoformat(error.value.started_at).utcoffset() == timedelta(0)
            collector.flush()
            assert collector.snapshot().tools[0].call_count == 1

    def test_second_owner_in_another_process_is_told_how_to_record(self, sessions: Path) -> None:
        with Collector("s", sessions):
            assert Forked(open_again, sessions).wait() == 0

    def test_damaged_file_stops_a_new_owner_who_leaves_everything_as_it_was(self, session: Session) -> None:
        session.metrics.write_bytes(b'{"session_id":')
        session.journal.write_bytes(Record("tool_call", ("bash", True, 1)).line(1))
        with pytest.raises(DamagedMetricsError, match=r"metrics\.json"):
            Collector("s", session.sessions_dir)
        assert session.metrics.read_bytes() == b'{"session_id":'
        assert session.journal.read_bytes() == Record("tool_call", ("bash", True, 1)).line(1)
        session.metrics.unlink()
        assert compact(session.sessions_dir, "s").records == 1  # the lease was given back

    def test_session_of_which_one_owner_lives_says_so_for_every_writer_of_the_file(
        self, sessions: Path
    ) -> None:
        with Collector("s", sessions), pytest.raises(SessionOwnedError):
            compact(sessions, "s")

    def test_one_process_owns_two_sessions(self, sessions: Path) -> None:
        with Collector("one", sessions) as one, Collector("two", sessions) as two:
            one.record_tool_call("bash", True, 1)
            two.record_tool_call("make", True, 2)
            assert [tool.name for tool in one.snapshot().tools] == ["bash"]
            assert [tool.name for tool in two.snapshot().tools] == ["make"]


class TestDisabled:
    def test_disabled_collector_does_nothing_and_touches_no_disk(
        self, sessions: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with Collector("s", sessions, enabled=False) as collector:
            assert not collector.enabled
            collector.record_tool_call("bash", True, 1)
            collector.record_llm_interaction("plan", USAGE, 1)
            collector.record_phase_transition("plan")
            collector.record_phase_duration("plan", 1, True)
            collector.record_heal_trigger("plan")
            collector.record_bisect_trigger("plan")
            collector.flush()
            metrics = collector.snapshot()
            assert (metrics.session_id, metrics.tools, metrics.llms, metrics.phases) == ("s", [], [], [])
            collector.stop()
            collector.flush()
        assert not sessions.exists()
        assert not caplog.records

    def test_enabled_is_a_bool(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            assert collector.enabled is True
        assert attach("s", sessions).enabled is True
        assert Collector("t", sessions, enabled=False).enabled is False

    def test_two_disabled_collectors_of_one_session_get_along(self, sessions: Path) -> None:
        with Collector("s", sessions), Collector("s", sessions, False), Collector("s", sessions, False):
            pass

    def test_pickled_disabled_collector_is_a_disabled_recorder_of_its_session(self, sessions: Path) -> None:
        recorder = pickle.loads(pickle.dumps(Collector("s", sessions, enabled=False)))
        assert recorder.enabled is False
        recorder.record_tool_call("bash", True, 1)
        recorder.flush()
        recorder.stop()
        assert not sessions.exists()


class TestHandingOver:
    @pytest.mark.slow
    @pytest.mark.parametrize("again", [lambda r: pickle.loads(pickle.dumps(r)), copy.copy, copy.deepcopy])
    @pytest.mark.parametrize("kind", ["collector", "recorder"])
    def test_pickled_or_copied_collector_is_a_recorder_of_the_same_session(
        self, sessions: Path, again: Callable[[Recorder], Recorder], kind: str
    ) -> None:
        with Collector("s", sessions) as collector:
            recorder = again(collector if kind == "collector" else attach("s", sessions))
            assert type(recorder) is Recorder
            recorder.record_tool_call("bash", True, 1)
            recorder.stop()
            collector.record_tool_call("bash", True, 1)
            assert collector.snapshot().tools[0].call_count == 2
            with pytest.raises(SessionOwnedError):
                compact(sessions, "s")  # the copy's stop() did not end the session

    def test_environment_leads_to_the_same_session(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Collector("the session", sessions) as collector:
            for key, value in collector.env().items():
                monkeypatch.setenv(key, value)
            Recorder.from_env().record_tool_call("bash", True, 1)
            assert collector.snapshot().tools[0].call_count == 1

    def test_environment_of_a_relative_directory_leads_there_from_anywhere(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = sessions.parent / f"{sessions.name}-elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(sessions.parent)
        with Collector("s", sessions.name) as collector:
            for key, value in collector.env().items():
                monkeypatch.setenv(key, value)
            monkeypatch.chdir(elsewhere)
            Recorder.from_env().record_tool_call("bash", True, 1)
            collector.record_tool_call("bash", True, 1)
            collector.flush()
        metrics = load(sessions, "s")
        assert metrics
        assert metrics.tools[0].call_count == 2

    def test_environment_without_a_session_gives_a_recorder_that_records_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in attach("s", "somewhere").env():
            monkeypatch.delenv(key, raising=False)
        recorder = Recorder.from_env()
        assert recorder.enabled is False
        recorder.record_tool_call("bash", True, 1)
        assert recorder.snapshot().tools == []

    def test_environment_of_a_disabled_collector_disables_the_child(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key, value in attach("outer", sessions).env().items():
            monkeypatch.setenv(key, value)
        for key, value in Collector("s", sessions, enabled=False).env().items():
            monkeypatch.setenv(key, value)
        assert Recorder.from_env().enabled is False

    @pytest.mark.parametrize("value", ["/", "//"])
    def test_environment_that_names_no_session_is_a_value_error(
        self, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        for key in attach("s", "somewhere").env():
            monkeypatch.setenv(key, value)
        with pytest.raises(ValueError, match=r".+"):
            Recorder.from_env()

    def test_attach_touches_nothing_before_its_first_record(self, sessions: Path) -> None:
        recorder = attach("s", sessions)
        recorder.flush()
        recorder.stop()
        assert not sessions.exists()
        recorder.record_tool_call("bash", True, 1)
        assert sessions.exists()

    def test_recorder_stop_hands_over_and_leaves_no_segment(self, sessions: Path) -> None:
        with attach("s", sessions) as recorder:
            recorder.record_tool_call("bash", True, 1)
        assert files_under(sessions / "s") == {"journal.ndjson", "journal.lock", "segments"}
        recorder.record_tool_call("bash", True, 1)
        assert compact(sessions, "s").metrics.tools[0].call_count == 2


class TestHarmlessness:
    def test_record_that_finds_no_room_is_dropped_counted_and_warned_of_once(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        collector = Collector("s", sessions)
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "create", _raise(OSError(28, "no space left on device")))
            for _ in range(5):
                collector.record_tool_call("bash", True, 1)
        assert len(caplog.records) == 1
        monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.0)
        for one in staging.staging(Session.named("s", sessions))._writers:
            one._retry_at = 0.0
        collector.record_tool_call("bash", True, 1)
        metrics = collector.snapshot()
        assert metrics.dropped == {"no_space": 5}
        assert metrics.tools[0].call_count == 1
        collector.stop()
        published = load(sessions, "s")
        assert published
        assert published.dropped == {"no_space": 5}

    def test_drops_are_shown_though_no_later_record_found_room(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = Collector("s", sessions)
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "create", _raise(OSError(28, "no space left on device")))
            collector.record_tool_call("bash", True, 1)
        collector.stop()
        metrics = load(sessions, "s")
        assert metrics
        assert metrics.dropped == {"no_space": 1}

    def test_session_directory_that_is_a_file_costs_the_records_and_nothing_else(
        self, sessions: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        sessions.write_bytes(b"mine")
        recorder = attach("s", sessions)
        recorder.record_tool_call("bash", True, 1)
        recorder.stop()
        assert sessions.read_bytes() == b"mine"
        assert "dropped" in caplog.text

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o277])
    def test_directories_are_0700_and_files_0600_whatever_the_umask(self, sessions: Path, umask: int) -> None:
        old = os.umask(umask)
        try:
            with Collector("s", sessions) as collector:
                collector.record_tool_call("bash", True, 1)
                collector._put("this is no event", "")
                collector.flush()
                collector.record_tool_call("bash", True, 1)
                modes = {
                    path: stat.S_IMODE(path.stat().st_mode)
                    for path in (sessions / "s", *(sessions / "s").rglob("*"))
                }
        finally:
            os.umask(old)
        assert {"journal.rejected.ndjson", "metrics.json", "segments"} <= {path.name for path in modes}
        assert {
            path: mode for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)
        } == {}

    @pytest.mark.parametrize(
        "name", ["metrics.json", ".metrics.json.tmp", "journal.ndjson", "journal.lock", "owner.lock"]
    )
    def test_planted_symlink_is_not_followed(self, session: Session, tmp_path: Path, name: str) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        (session.directory / name).symlink_to(victim)
        try:
            with Collector("s", session.sessions_dir) as collector:
                collector.record_tool_call("bash", True, 1)
                collector.flush()
        except OSError:
            pass
        assert victim.read_bytes() == b"precious"


def _raise(error: OSError) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


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


class TestDurability:
    @pytest.mark.parametrize("wrong", ["", "disc", "DISK", None, True])
    def test_durability_that_is_none_is_a_value_error(self, sessions: Path, wrong: str) -> None:
        with pytest.raises(ValueError, match="durability"):
            Collector("s", sessions, durability=wrong)
        with pytest.raises(ValueError, match="durability"):
            attach("s", sessions, durability=wrong)
        assert not sessions.exists()

    def test_record_on_the_disk_is_in_the_journal_and_synced_when_its_call_returns(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fsync = os.fsync
        synced: list[bytes] = []

        def watched(fd: int) -> None:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                synced.append(os.pread(fd, 10_000, 0))
            fsync(fd)

        with Collector("s", session.sessions_dir, durability="disk") as collector:
            monkeypatch.setattr(os, "fsync", watched)
            for name in ("one", "two"):
                collector.record_tool_call(name, True, 1)
                assert name.encode() in synced[-1]
            assert [tool.name for tool in collector.snapshot().tools] == ["one", "two"]

    def test_record_whose_fsync_fails_is_staged_and_counted_all_the_same(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Collector("s", sessions, durability="disk") as collector:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", _raise(OSError(5, "Input/output error")))
                for _ in range(3):
                    collector.record_tool_call("bash", True, 1)
            assert len(caplog.records) == 1
            assert collector.snapshot().tools[0].call_count == 3
            assert collector.snapshot().dropped == {}

    def test_durability_goes_to_the_children(self, sessions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Collector("s", sessions, durability="disk") as collector:
            for key, value in collector.env().items():
                monkeypatch.setenv(key, value)
            for recorder in (Recorder.from_env(), pickle.loads(pickle.dumps(collector))):
                recorder.record_tool_call("bash", True, 1)
                assert (sessions / "s" / "journal.ndjson").read_bytes().count(b'"bash"') > 0
                collector.flush()
            assert collector.snapshot().tools[0].call_count == 2


def test_slips_of_newcomers_are_told_what_helps(tmp_path: Path) -> None:
    recorder = attach("s", tmp_path)
    with pytest.raises(TypeError, match=r'@recorder\.tool\("NAME"\)'):
        recorder.tool(print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="from_response"):
        recorder.record_llm_interaction("plan", {"prompt_tokens": 1}, 0.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="metrics must be a SessionMetrics, not dict"):
        save(tmp_path, "s", {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sessions_dir must be a path, not NoneType"):
        Collector("s", None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
