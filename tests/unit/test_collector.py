"""Owning a session: flush, stop, going on with it, and a collector that is switched off."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from errno import EIO
from pathlib import Path

import pytest

from damage import raising
from m31a_mp import (
    Collector,
    DamagedMetricsError,
    InterruptedCallError,
    LLMMetric,
    PhaseMetric,
    SessionOwnedError,
    ToolMetric,
    Usage,
    attach,
    compact,
    load,
)
from m31a_mp.segments.reader import SegmentFile
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from metrics_of import calls, files_under
from strategies import Record, bare, untimed
from workers import Forked

USAGE = Usage(10, 20, 35)


def open_again(sessions: Path) -> None:
    with pytest.raises(SessionOwnedError, match=f"pid {os.getppid()} ") as error:
        Collector("s", sessions)
    assert "this process" not in str(error.value)
    assert str(error.value).endswith("; record into it with attach(), or stop its owner first")


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
            good = Path(session.metrics).read_bytes()
            Path(session.metrics).write_bytes(b"{")
            collector.record_tool_call("bash", True, 1)
            with pytest.raises(DamagedMetricsError, match=r"metrics\.json"):
                collector.flush()
            assert Path(session.metrics).read_bytes() == b"{"
            Path(session.metrics).write_bytes(good)
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

    @pytest.mark.slow
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
        good = Path(session.metrics).read_bytes()
        Path(session.metrics).write_bytes(b"garbage")
        collector.stop()
        assert "metrics.json" in caplog.text
        Path(session.metrics).write_bytes(good)
        assert compact(session.sessions_dir, "s").metrics.tools[0].call_count == 1

    def test_stop_that_cannot_read_its_own_segments_keeps_them(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = Collector("s", session.sessions_dir)
        collector.record_tool_call("bash", True, 1)
        with monkeypatch.context() as patch:
            patch.setattr(SegmentFile, "open", raising(OSError(24, "too many open files")))
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
        assert untimed(metrics.phases) == [PhaseMetric("plan", 7, 0, 1, 0, True)]

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

    @pytest.mark.slow
    def test_second_owner_is_told_who_the_first_one_is(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 1)
            with pytest.raises(SessionOwnedError, match=str(os.getpid())) as error:
                Collector("s", sessions)
            assert error.value.pid == os.getpid()
            assert error.value.started_at is not None
            assert error.value.started_at in str(error.value)
            assert ", which is this process, " in str(error.value)
            assert str(error.value).endswith("; use its collector, or call stop() on that first")
            assert datetime.fromisoformat(error.value.started_at).utcoffset() == timedelta(0)
            collector.flush()
            assert collector.snapshot().tools[0].call_count == 1

    @pytest.mark.slow
    def test_second_owner_in_another_process_is_told_how_to_record(self, sessions: Path) -> None:
        with Collector("s", sessions):
            assert Forked(open_again, sessions).wait() == 0

    def test_damaged_file_stops_a_new_owner_who_leaves_everything_as_it_was(self, session: Session) -> None:
        Path(session.metrics).write_bytes(b'{"session_id":')
        Path(session.journal).write_bytes(Record("tool_call", ("bash", True, 1)).line(1))
        with pytest.raises(DamagedMetricsError, match=r"metrics\.json"):
            Collector("s", session.sessions_dir)
        assert Path(session.metrics).read_bytes() == b'{"session_id":'
        assert Path(session.journal).read_bytes() == Record("tool_call", ("bash", True, 1)).line(1)
        Path(session.metrics).unlink()
        assert compact(session.sessions_dir, "s").records == 1  # the lease was given back

    @pytest.mark.parametrize("what", ["restored", "changed in place", "removed"])
    def test_flush_begins_with_the_file_that_is_there(self, sessions: Path, what: str) -> None:
        path = sessions / "s" / "metrics.json"
        with Collector("s", sessions) as collector:
            collector.record_tool_call("bash", True, 1)
            collector.flush()
            once = path.read_bytes()
            collector.record_tool_call("bash", True, 1)
            collector.flush()
            if what == "restored":
                (sessions / "copy").write_bytes(once)
                os.replace(sessions / "copy", path)
            elif what == "changed in place":
                path.write_bytes(once)
            else:
                path.unlink()
            collector.record_tool_call("bash", True, 1)
            collector.flush()
        assert calls(load(sessions, "s")) == {"bash": 1 if what == "removed" else 2}

    @pytest.mark.parametrize("step", ["folded", "before delete journal"])
    def test_failed_flush_counts_nothing_twice(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def fail(point: str) -> None:
            if point == step:
                raise OSError(EIO, "Input/output error")

        with Collector("s", sessions) as collector:
            for number in range(1, 4):
                collector.record_tool_call("bash", True, 1)
                with monkeypatch.context() as patch:
                    patch.setattr(files, "reached", fail)
                    with pytest.raises(OSError, match="Input/output"):
                        collector.flush()
                collector.flush()
                assert calls(load(sessions, "s")) == {"bash": number}

    @pytest.mark.slow
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
