"""`metrics.json` is damaged: nothing goes on from it, nothing is lost by it, and it is told what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from m31a_mp import (
    Collector,
    DamagedMetricsError,
    LLMMetric,
    PhaseMetric,
    ToolMetric,
    UnsupportedVersionError,
    Usage,
    attach,
    compact,
    load,
    verify,
)
from m31a_mp.session.paths import Session
from strategies import Record, bare, untimed

LINE = Record("tool_call", ("bash", True, 1)).line(1)


@pytest.fixture
def with_entries(session: Session) -> Session:
    """A session with a file that has an entry in each table."""
    with Collector("s", session.sessions_dir) as collector:
        collector.record_tool_call("bash", True, 1)
        collector.record_llm_interaction("plan", Usage(1, 2, 3), 0.1)
        collector.record_phase_duration("plan", 5, True)
    return session


def edit(session: Session, key: str, value: object) -> None:
    document = orjson.loads(Path(session.metrics).read_bytes())
    document[key] = value
    Path(session.metrics).write_bytes(orjson.dumps(document))


def refuses(session: Session) -> None:
    """Every door says that the file is damaged and names it, and the journal is as it was."""
    content = Path(session.metrics).read_bytes()
    Path(session.journal).write_bytes(LINE)
    doors: list[Any] = [
        lambda: compact(session.sessions_dir, "s"),
        lambda: Collector("s", session.sessions_dir),
        lambda: attach("s", session.sessions_dir).snapshot(),
    ]
    for door in doors:
        with pytest.raises(DamagedMetricsError) as error:
            door()
        assert session.metrics in str(error.value)
        assert error.value.path == session.metrics
    findings = verify(session.sessions_dir, "s")
    assert [finding.file for finding in findings] == ["metrics.json"]
    assert Path(session.metrics).read_bytes() == content
    assert sum(LINE in path.read_bytes() for path in Path(session.root).glob("journal.*ndjson")) == 1
    # Rebuilt, as the message says, the journal counts on from zero, and the bytes are kept.
    if isinstance(error.value, UnsupportedVersionError):
        with pytest.raises(UnsupportedVersionError):  # that is no damage
            compact(session.sessions_dir, "s", rebuild=True)
        assert Path(session.metrics).read_bytes() == content
        return
    assert "rebuild=True" in str(error.value)
    compaction = compact(session.sessions_dir, "s", rebuild=True)
    assert compaction.metrics.tools[0].call_count == 1
    [item] = compaction.rejected
    assert (Path(session.root) / item.file).read_bytes() == content
    assert error.value.reason in item.reason
    assert [finding.file for finding in verify(session.sessions_dir, "s")] == [item.file]
    again = compact(session.sessions_dir, "s", rebuild=True)
    assert (again.rejected, again.metrics) == ([], compaction.metrics)


class TestLoad:
    def test_session_without_a_file_is_none(self, session: Session) -> None:
        sessions = session.sessions_dir
        assert load(sessions, "s") is None
        assert load(sessions, "no such session") is None
        assert load(Path(sessions) / "no such directory", "s") is None

    def test_file_cut_at_any_byte_is_damaged_and_the_error_names_it(self, with_entries: Session) -> None:
        whole = Path(with_entries.metrics).read_bytes()
        for cut in range(len(whole) - 2):
            Path(with_entries.metrics).write_bytes(whole[:cut])
            with pytest.raises(DamagedMetricsError, match=r"metrics\.json"):
                load(with_entries.sessions_dir, "s")
            with pytest.raises(DamagedMetricsError, match=r"metrics\.json"):
                attach("s", with_entries.sessions_dir).snapshot()
        Path(with_entries.metrics).write_bytes(whole[:-1])  # without its last newline
        assert load(with_entries.sessions_dir, "s")

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\0" * 500, b"null", b"[]", b"{}", b"\xff", b"1", b'"x"', b"[" * 5000, b"{}{}"],
    )
    def test_file_that_is_not_one_stops_everything_and_harms_nothing(
        self, session: Session, content: bytes
    ) -> None:
        Path(session.metrics).write_bytes(content)
        with pytest.raises(DamagedMetricsError):
            load(session.sessions_dir, "s")
        refuses(session)

    @pytest.mark.parametrize("depth", [900, 1000, 1015])
    @pytest.mark.parametrize("key", ["session_id", "tools", "dropped", "m31a_mp", "no_such_key"])
    def test_deeply_nested_file_is_read_or_damaged(self, with_entries: Session, key: str, depth: int) -> None:
        document = orjson.loads(Path(with_entries.metrics).read_bytes())
        document[key] = "@"
        nested = orjson.dumps(document).replace(b'"@"', b"[" * depth + b"]" * depth)
        Path(with_entries.metrics).write_bytes(nested)
        try:
            assert load(with_entries.sessions_dir, "s")
            attach("s", with_entries.sessions_dir).snapshot()
        except DamagedMetricsError as error:
            assert len(str(error)) < 1000  # noqa: PT017
        assert key == "no_such_key" or verify(with_entries.sessions_dir, "s")

    @pytest.mark.parametrize("version", [0, 2, 10**6, "1", None, [], 1.5])
    def test_file_of_an_unknown_version_is_an_error_that_says_so(
        self, with_entries: Session, version: object
    ) -> None:
        edit(with_entries, "m31a_mp", {"version": version})
        with pytest.raises(UnsupportedVersionError, match="version"):
            load(with_entries.sessions_dir, "s")
        refuses(with_entries)

    @pytest.mark.parametrize(
        "checkpoint",
        [
            5, "x", [1], [], "", 0, False,
            {"version": 1, "journal": "1"}, {"version": 1, "journal": -1.5}, {"version": 1, "writers": []},
            {"version": 1, "writers": {"a": {}}},
            {"version": 1, "writers": {"a": {"last": "1", "dropped": {}}}},
            {"version": 1, "writers": {"a": {"last": 1, "dropped": {"x": None}}}},
            {"version": 1, "tools": 1}, {"version": 1, "tools": {"bash": {"first": "1"}}},
            {"version": 1, "llms": {"plan": {"first": 1, "costs": [None]}}},
            {"version": 1, "llms": {"plan": {"first": 1, "costs": ["nan"]}}},
            {"version": 1, "llms": {"plan": {"first": 1, "costs": 1}}},
            {"version": 1, "phases": {"plan": {"first": 1, "latest": "x"}}},
        ],
    )  # fmt: skip
    @pytest.mark.timeout(20)
    def test_file_whose_own_part_is_not_valid_stops_everything_that_would_go_on_from_it(
        self, with_entries: Session, checkpoint: object
    ) -> None:
        edit(with_entries, "m31a_mp", checkpoint)
        refuses(with_entries)

    def test_file_of_a_go_program_is_gone_on_from(self, session: Session) -> None:
        Path(session.metrics).write_bytes(
            b'{"session_id":"s","started_at":"2026-01-02T03:04:05.678901234Z",'
            b'"updated_at":"2026-01-02T03:05:00Z","tools":[{"name":"bash","call_count":3,"success_count":2,'
            b'"fail_count":1,"total_duration_ms":201,"avg_duration_ms":67}],"llms":[{"phase":"plan",'
            b'"prompt_tokens":1,"completion_tokens":2,"total_tokens":4,"cost":0.5,"interaction_count":1}],'
            b'"phases":[{"phase":"plan","duration_ms":7,"transition_count":1,"heal_trigger_count":2,'
            b'"bisect_trigger_count":3,"success":true},{"phase":"a","duration_ms":0,"transition_count":1,'
            b'"heal_trigger_count":0,"bisect_trigger_count":0,"success":false}]}'
        )
        with Collector("s", session.sessions_dir) as collector:
            collector.record_tool_call("bash", True, 3)
            collector.record_llm_interaction("plan", Usage(1, 1, 1), 0.25)
            collector.record_phase_transition("a")
            metrics = collector.snapshot()
        assert metrics == load(session.sessions_dir, "s")
        assert metrics.started_at == datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
        assert bare(metrics.tools) == [ToolMetric("bash", 4, 3, 1, 204, 51.0)]
        assert metrics.llms == [LLMMetric("plan", 2, 3, 5, 0.75, 2)]
        assert untimed(metrics.phases) == [PhaseMetric("plan", 7, 1, 2, 3, True), PhaseMetric("a", 0, 2)]


@pytest.mark.parametrize("version", [b"true", b"1.0", b'"1"', b"null"])
def test_version_that_only_equals_ours_is_none_of_ours(version: bytes, tmp_path: Path) -> None:
    with Collector("s", tmp_path):
        pass
    path = tmp_path / "s" / "metrics.json"
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": ' + version))
    assert [finding.file for finding in verify(tmp_path, "s")] == ["metrics.json"]
