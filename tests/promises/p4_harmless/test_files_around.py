"""Trouble with the files around a session costs records at most, and files of others nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from damage import raising
from m31a_mp import (
    Collector,
    attach,
    load,
)
from m31a_mp.segments import staging, writer
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session


class TestHarmlessness:
    @pytest.mark.usefixtures("segments_at_once")
    def test_record_that_finds_no_room_is_dropped_counted_and_warned_of_once(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        collector = Collector("s", sessions)
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "create", raising(OSError(28, "no space left on device")))
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

    @pytest.mark.usefixtures("segments_at_once")
    def test_drops_are_shown_though_no_later_record_found_room(
        self, sessions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collector = Collector("s", sessions)
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "create", raising(OSError(28, "no space left on device")))
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
        (Path(session.root) / name).symlink_to(victim)
        try:
            with Collector("s", session.sessions_dir) as collector:
                collector.record_tool_call("bash", True, 1)
                collector.flush()
        except OSError:
            pass
        assert victim.read_bytes() == b"precious"
