"""What is recorded by one process: numbers, arguments, durability, and how others get their recorder."""

from __future__ import annotations

import copy
import enum
import os
import pickle
import stat
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import raising
from m31a_mp import (
    Collector,
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
from m31a_mp.session.paths import Session
from metrics_of import files_under
from strategies import INT64_MAX, Record, bare, entries, expected, records, untimed

USAGE = Usage(10, 20, 35)


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
            assert untimed(collector.snapshot().phases) == [PhaseMetric("plan", 20, 2, 1, 3, False)]

    def test_tables_do_not_mix(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("plan", True, 1)
            collector.record_llm_interaction("plan", USAGE, 0)
            collector.record_heal_trigger("plan")
            metrics = collector.snapshot()
        assert (metrics.tools[0].call_count, metrics.llms[0].interaction_count) == (1, 1)
        assert untimed(metrics.phases) == [PhaseMetric("plan", 0, 0, 1, 0, False)]

    def test_workflow_phases_and_strings_name_the_same_phase(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_phase_transition(WorkflowPhase.EXECUTE)
            collector.record_phase_transition("execute")
            assert untimed(collector.snapshot().phases) == [PhaseMetric("execute", 0, 2)]

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

    @pytest.mark.slow
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
                patch.setattr(os, "fsync", raising(OSError(5, "Input/output error")))
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
