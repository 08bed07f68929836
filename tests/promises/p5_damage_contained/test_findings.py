"""The store checks itself: damage is a finding, what a crash leaves is none, and nothing is changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from m31a_mp import Collector, attach, compact, verify
from m31a_mp.session.paths import Session
from metrics_of import count
from strategies import Record

LINE = Record("tool_call", ("bash", True, 1)).line(1)


def content(directory: Path) -> dict[Path, tuple[int, str]]:
    return {
        path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.rglob("*")
        if path.is_file()
    }


def damage(session: Session) -> None:
    """Leave something of every kind."""
    attach("s", session.sessions_dir).record_tool_call("staged", True, 1)
    Path(session.sealed_as(1)).write_bytes(LINE + b"sealed garbage\n")
    Path(session.journal).write_bytes(LINE + b"garbage\n" + LINE[:-20])
    (Path(session.segments) / "x.seg").write_bytes(b"no segment")
    Path(session.metrics).write_bytes(b"{")


def test_nothing_is_changed(session: Session) -> None:
    damage(session)
    before = content(Path(session.root))
    assert verify(session.sessions_dir, "s")
    assert verify(session.sessions_dir, "s")
    assert content(Path(session.root)) == before


def test_every_damage_is_found_where_it_is(session: Session) -> None:
    damage(session)
    found = {(finding.file, finding.offset) for finding in verify(session.sessions_dir, "s")}
    assert found == {
        ("metrics.json", 0),
        ("journal.000000000001.ndjson", len(LINE)),
        ("journal.ndjson", len(LINE)),
        ("segments/x.seg", 0),
    }
    for finding in verify(session.sessions_dir, "s"):
        assert finding.file in str(finding)
        assert str(finding.offset) in str(finding)
        assert finding.reason in str(finding)


def test_what_was_set_aside_stays_a_finding_until_its_file_is_removed(session: Session) -> None:
    damage(session)
    Path(session.metrics).unlink()
    before = len(verify(session.sessions_dir, "s"))
    compaction = compact(session.sessions_dir, "s")
    assert before == len(compaction.rejected) == compaction.metrics.rejected == 3
    for _ in range(2):
        assert len(verify(session.sessions_dir, "s")) == 3
        compact(session.sessions_dir, "s")
    Path(session.rejected).unlink()
    assert verify(session.sessions_dir, "s") == []


@pytest.mark.usefixtures("segments_at_once")
def test_what_a_crash_leaves_is_no_finding(session: Session) -> None:
    attach("s", session.sessions_dir).record_tool_call("staged", True, 1)
    Path(session.sealed_as(1)).write_bytes(LINE)
    Path(session.journal).write_bytes(LINE + LINE[:-20])
    (Path(session.segments) / ".1.seg.tmp").write_bytes(b"half made")
    (Path(session.root) / ".metrics.json.tmp").write_bytes(b"{")
    Path(session.owner_lock).write_bytes(b'{"pid":1')
    assert verify(session.sessions_dir, "s") == []
    with Collector("s", session.sessions_dir) as collector:
        assert count(collector.snapshot()) == 3
        assert verify(session.sessions_dir, "s") == []
    assert verify(session.sessions_dir, "s") == []


def test_session_of_a_living_owner_can_be_verified(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_tool_call("bash", True, 1)
        assert verify(sessions, "s") == []
        collector.flush()
        assert verify(sessions, "s") == []
