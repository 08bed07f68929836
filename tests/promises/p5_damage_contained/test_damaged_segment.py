"""Segments that are damaged cost themselves, or the record that is damaged, and nothing twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from damage import CALLS, LINES, WRITER, flip, staged, write
from m31a_mp import Collector, attach, compact, verify
from m31a_mp.metrics import rejected
from m31a_mp.segments.format import DATA_OFFSET
from m31a_mp.segments.reader import list_segments
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from m31a_mp.system import process
from metrics_of import durations
from strategies import Record
from workers import changed


@pytest.mark.usefixtures("dead")
class TestDamage:
    """The rest of the session counts, and the damage is reported or heals."""

    def check(self, session: Session, path: Path, case: object) -> dict[str, int]:
        Path(session.journal).write_bytes(Record("tool_call", ("foreign", True, 1000)).line(1))
        findings = verify(session.sessions_dir, session.id)
        compaction = compact(session.sessions_dir, session.id)
        counted = durations(compaction.metrics)
        assert counted.pop("foreign") == 1000, case
        assert not compaction.metrics.dropped, case
        assert not compaction.unreadable, case
        assert len(findings) == len(compaction.rejected) == compaction.metrics.rejected, case
        assert len(verify(session.sessions_dir, session.id)) == len(findings), case
        assert not path.exists(), case
        if findings:
            assert path.with_name(f"{path.name}.rejected").exists(), case
        # Ten more come through.
        recorder = attach(session.id, session.sessions_dir)
        for _ in range(10):
            recorder.record_phase_transition("more")
        recorder.stop()
        again = compact(session.sessions_dir, session.id).metrics
        assert again.phases[0].transition_count == 10, case
        assert len(again.tools) == len(counted) + 1, case
        return counted

    @pytest.mark.slow
    def test_segment_cut_at_any_byte_keeps_its_whole_records(self, sessions: Path) -> None:
        end = DATA_OFFSET + sum(map(len, LINES)) + 5
        for cut in range(end):
            session = Session.named(f"cut{cut}", sessions)
            session.make()
            path = staged(session, LINES)
            os.truncate(path, cut)
            counted = self.check(session, path, cut)
            ends = [DATA_OFFSET + sum(map(len, LINES[:i])) for i in range(1, 5)]
            assert counted == dict(list(CALLS.items())[: sum(cut >= end for end in ends)]), cut

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [0xFF, 0x01, 0x80])
    def test_flipped_byte_of_the_header_gives_all_records_or_a_finding(
        self, sessions: Path, bits: int
    ) -> None:
        for at in range(DATA_OFFSET):
            session = Session.named(f"flip{at}", sessions)
            session.make()
            path = staged(session, LINES)
            flip(path, at, bits)
            findings = verify(sessions, session.id)
            counted = self.check(session, path, at)
            assert counted == ({} if findings else CALLS), at

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [0xFF, 0x01, 0x80])
    def test_flipped_byte_of_the_header_counts_nothing_twice(self, sessions: Path, bits: int) -> None:
        for at in range(128, DATA_OFFSET):
            session = Session.named(f"again{at}", sessions)
            session.make()
            path = staged(session, LINES)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(process, "may_map", lambda *_: True)  # so that it stays when it is drained
                compact(sessions, session.id)
            flip(path, at, bits)
            assert durations(attach(session.id, sessions).snapshot()) == CALLS, at
            compaction = compact(sessions, session.id)
            assert durations(compaction.metrics) == CALLS, at
            assert compaction.metrics.dropped == {}, at

    @pytest.mark.parametrize(
        "content",
        [b"", b"\0", bytes(DATA_OFFSET), bytes(8192), os.urandom(4096), b"m31a_seg", b"{" * 300, b"\n" * 300],
        ids=["empty", "one zero", "zeros", "more zeros", "garbage", "magic", "braces", "newlines"],
    )
    def test_file_that_is_no_segment_is_set_aside(self, session: Session, content: bytes) -> None:
        path = Path(session.segments) / f"{WRITER}.{1:020d}.seg"
        path.write_bytes(content)
        assert len(verify(session.sessions_dir, "s")) == 1
        assert self.check(session, path, content) == {}

    @pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
    def test_segment_of_an_unknown_version_is_set_aside_and_the_reason_names_it(
        self, session: Session, version: int
    ) -> None:
        path = staged(session, LINES)
        write(path, 8, version.to_bytes(4, "little"))
        (finding,) = verify(session.sessions_dir, "s")
        assert str(version) in finding.reason
        assert path.name in finding.file
        self.check(session, path, version)

    def test_segment_of_an_unknown_version_that_is_in_use_is_left_alone(self, session: Session) -> None:
        segment = Segment.create(session.segments, WRITER, 1, 4096)
        write(Path(segment.name), 8, (2).to_bytes(4, "little"))
        compact(session.sessions_dir, "s")
        assert Path(segment.name).exists()
        segment.close()

    @pytest.mark.parametrize(
        "name", ["x.seg", ".seg", f"{WRITER}.1.seg", "é\n.seg", f"{'b' * 16}.{1:020d}.seg"]
    )
    def test_segment_under_another_name_is_set_aside(self, session: Session, name: str) -> None:
        path = staged(session, LINES)
        path = path.rename(path.with_name(name))
        assert self.check(session, path, name) == {}

    def test_segment_whose_name_is_no_text_is_set_aside(self, session: Session) -> None:
        path = Path(session.segments) / os.fsdecode(b"\xff.seg")
        path.write_bytes(b"x")
        self.check(session, path, "name")

    @pytest.mark.parametrize("kind", ["directory", "symlink", "dangling", "fifo"])
    def test_segment_that_is_no_file_is_set_aside(self, session: Session, kind: str, tmp_path: Path) -> None:
        path = Path(session.segments) / f"{WRITER}.{1:020d}.seg"
        victim = tmp_path / "victim"
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(victim)
        if kind == "symlink":
            victim.write_bytes(b"precious")
        Path(session.journal).write_bytes(LINES[0])
        compaction = compact(session.sessions_dir, "s")
        assert compaction.records == 1
        assert len(compaction.rejected) == 1
        assert not os.path.lexists(path)
        assert kind != "symlink" or victim.read_bytes() == b"precious"
        assert len(verify(session.sessions_dir, "s")) == 1

    @pytest.mark.parametrize("planted", ["name that gets too long", "place that is taken"])
    def test_file_that_cannot_be_set_aside_under_its_own_name_stops_nothing_and_is_rejected_once(
        self, session: Session, planted: str
    ) -> None:
        if planted == "place that is taken":
            (Path(session.segments) / "x.seg.rejected" / "full").mkdir(parents=True)
            (Path(session.segments) / "x.seg").mkdir()
        else:
            (Path(session.segments) / ("x" * 248 + ".seg")).touch()
        for flushes in range(1, 4):
            with Collector("s", session.sessions_dir) as collector:
                collector.record_tool_call("bash", True, 1)
                collector.flush()
                metrics = collector.snapshot()
            assert (metrics.tools[0].call_count, metrics.rejected) == (flushes, 1)
        (item,) = rejected.read(session.rejected)
        assert os.path.lexists(Path(session.root) / item.file)
        assert list_segments(session.segments) == []

    @pytest.mark.parametrize("bad", [b"garbage\n", b"\n", b"\xff\xfe\n", b'{"event":"tool_call"}\n'])
    def test_damaged_record_costs_itself(self, session: Session, bad: bytes) -> None:
        staged(session, [*LINES[:2], bad, *LINES[2:]])
        assert len(verify(session.sessions_dir, "s")) == 1
        compaction = compact(session.sessions_dir, "s")
        assert durations(compaction.metrics) == CALLS
        assert [item.data.rstrip(b"\n") for item in compaction.rejected] == [bad.rstrip(b"\n")]
        assert len(verify(session.sessions_dir, "s")) == 1


@pytest.mark.parametrize("pid", [0, 2**31, 2**40, 2**64 - 1])
def test_segment_of_a_number_that_is_no_pid_is_of_a_dead_process(
    session: Session, monkeypatch: pytest.MonkeyPatch, pid: int
) -> None:
    me = process.current()
    with monkeypatch.context() as patch:
        patch.setattr(process, "current", lambda: changed(me, pid=pid))
        path = staged(session, LINES)
    assert durations(compact(session.sessions_dir, session.id).metrics) == CALLS
    assert not path.exists()
    assert verify(session.sessions_dir, session.id) == []
