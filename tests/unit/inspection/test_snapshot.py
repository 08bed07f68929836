"""A snapshot: a copy of all that was recorded, without waiting and without a change."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest

from damage import batch, line
from m31a_mp import (
    Collector,
    ToolMetric,
    attach,
)
from m31a_mp.inspection import snapshot
from m31a_mp.journal import reader
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.totals import Totals
from m31a_mp.segments import staging
from m31a_mp.segments.staging import Staging
from m31a_mp.session.paths import Session, is_file
from m31a_mp.system.flock import FileLock
from metrics_of import calls_of, files_under
from strategies import bare
from workers import unmap


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

    def test_snapshot_copies_many_records_of_segments_to_a_file(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_disk, moved = snapshot._on_disk, []

        def watched(copy: io.BytesIO) -> IO[bytes]:
            moved.append(len(copy.getvalue()))
            return on_disk(copy)

        monkeypatch.setattr(snapshot, "_STAGED_BYTES", 3000)
        monkeypatch.setattr(snapshot, "_on_disk", watched)
        stagings = [Staging(session) for _ in range(3)]
        for one in stagings:
            one.put("tool_started", ',"name":"x","call":"1"')
            for _ in range(50):
                one.put("heal_trigger", ',"phase":"plan"')
        [phase] = attach(session.id, session.sessions_dir).snapshot().phases
        assert phase.heal_trigger_count == len(stagings) * 50
        assert len(moved) == 1

    def test_look_at_damage_misses_nothing_that_an_owner_publishes_meanwhile(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The look holds the journal's lock, which the owner needs no more: it sealed the journal before."""
        sealed = Path(session.sealed_as(1))
        sealed.write_bytes(line("sealed"))
        torn = batch(1, line("torn"))
        Path(session.journal).write_bytes(torn[:-20] + b"x" * 19 + b"\n")
        FileLock(session.journal_lock).acquire()
        asked: list[str] = []

        def publish_then_ask(path: str) -> bool:
            asked.append(path)
            if len(asked) == 2:  # the first look was without the lock
                fold = Fold(Totals(journal=1))
                with reader.open_to_read(path) as stream:
                    fold.add_journal(sealed.name, reader.read(stream))
                metrics_file.publish(session, fold.totals)
                sealed.unlink()
            return is_file(path)

        monkeypatch.setattr(snapshot, "is_file", publish_then_ask)
        metrics = attach(session.id, session.sessions_dir).snapshot()
        assert len(asked) == 2
        assert (calls_of(metrics, "sealed"), metrics.rejected) == (1, 1)

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
