"""Segments: what is stored is there for everyone, whatever became of its writer or of its header."""

from __future__ import annotations

import fcntl
import itertools
import os
from pathlib import Path

import pytest

from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.metrics import rejected
from m31a_mp.segments.format import DATA_OFFSET, DamagedSegmentError, name_parts
from m31a_mp.segments.reader import SegmentFile, delete_stillborn, list_segments
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from metrics_of import durations
from strategies import Record

WRITER = "00000000000000aa"
LINES = [Record("tool_call", (f"tool-{i} é", True, 1 << i)).line(i) for i in range(1, 5)]
CALLS = {f"tool-{i} é": 1 << i for i in range(1, 5)}


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments seem to be mapped, though they are not."""
    monkeypatch.setattr(process, "may_map", lambda *_: True)


def staged(session: Session, lines: list[bytes], *, first: int = 1) -> Path:
    """A segment with these lines that nobody maps any more."""
    segment = Segment.create(session.segments, WRITER, first, 4096)
    segment.store(b"".join(lines))
    segment.close()
    return Path(segment.name)


def with_hole(line: bytes) -> bytes:
    """The line, of which some bytes are missing."""
    return line[:10] + bytes(4) + line[14:]


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip(path: Path, offset: int, bits: int) -> None:
    write(path, offset, bytes([path.read_bytes()[offset] ^ bits]))


class TestWriting:
    def test_segment_is_never_seen_half_made(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def reached(point: str) -> None:
            seen.append((point, list(list_segments(session.segments))))

        monkeypatch.setattr(files, "reached", reached)
        path = staged(session, [])
        assert [p for p, found in seen if found] == ["after rename segment"]
        assert path.stat().st_size == 4096

    def test_space_of_a_segment_is_allocated_and_not_a_hole(self, session: Session) -> None:
        segment = Segment.create(session.segments, WRITER, 1, 64 * 1024)
        assert Path(segment.name).stat().st_blocks * 512 >= 64 * 1024
        segment.close()

    def test_segment_without_room_for_it_leaves_nothing_behind(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "no space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="no space"):
            Segment.create(session.segments, WRITER, 1, 4096)
        assert list(session.segments.iterdir()) == []

    def test_record_that_needs_more_than_a_first_segment_is_kept(self, sessions: Path) -> None:
        recorder = attach("s", sessions)
        recorder.record_tool_call("\0" * 4096, True, 1)  # 24 KiB as JSON
        recorder.record_tool_call("small", True, 2)
        assert durations(recorder.snapshot()) == {"\0" * 4096: 1, "small": 2}


class TestReading:
    @pytest.mark.parametrize("stored", range(len(LINES[3])))
    @pytest.mark.usefixtures("dead")
    def test_store_cut_short_by_the_death_of_its_writer_is_torn_and_no_damage(
        self, session: Session, stored: int
    ) -> None:
        staged(session, [*LINES[:3], LINES[3][:stored]])
        assert compact(session.sessions_dir, "s").records == 3
        assert verify(session.sessions_dir, "s") == []
        assert list(session.segments.iterdir()) == []

    @pytest.mark.usefixtures("dead")
    def test_store_of_which_the_end_came_before_the_middle_is_torn_and_no_damage(
        self, session: Session
    ) -> None:
        staged(session, [*LINES[:3], with_hole(LINES[3])])
        assert compact(session.sessions_dir, "s").records == 3
        assert verify(session.sessions_dir, "s") == []

    @pytest.mark.usefixtures("mapped")
    def test_store_that_has_not_arrived_as_a_whole_is_left_for_later(self, session: Session) -> None:
        path = staged(session, [*LINES[:2], with_hole(LINES[2])])  # of this very process, which lives
        assert compact(session.sessions_dir, "s").records == 2
        write(path, DATA_OFFSET + len(LINES[0] + LINES[1]), LINES[2])
        assert compact(session.sessions_dir, "s").records == 1
        assert verify(session.sessions_dir, "s") == []

    @pytest.mark.usefixtures("dead")
    def test_hole_in_the_middle_of_a_dead_writers_records_costs_the_record_that_it_is_in(
        self, session: Session
    ) -> None:
        staged(session, [LINES[0], with_hole(LINES[1]), *LINES[2:]])
        compaction = compact(session.sessions_dir, "s")
        assert durations(compaction.metrics) == {name: ms for name, ms in CALLS.items() if ms != 1 << 2}
        assert [item.data for item in compaction.rejected] == [with_hole(LINES[1]).rstrip(b"\n")]

    def test_hole_in_an_older_segment_of_a_live_writer_costs_the_record_that_it_is_in(
        self, session: Session
    ) -> None:
        staged(session, [LINES[0], with_hole(LINES[1]), LINES[2]])
        staged(session, LINES[3:], first=4)
        compaction = compact(session.sessions_dir, "s")
        assert durations(compaction.metrics) == {name: ms for name, ms in CALLS.items() if ms != 1 << 2}
        assert len(compaction.rejected) == 1

    def test_store_without_room_raises_and_changes_nothing(self, session: Session) -> None:
        segment = Segment.create(session.segments, WRITER, 1, DATA_OFFSET + len(LINES[0]) + 5)
        segment.store(LINES[0])
        with pytest.raises(ValueError, match="out of range"):
            segment.store(LINES[1])
        assert segment.next_number() == 2
        assert Path(segment.name).read_bytes().endswith(LINES[0] + bytes(5))
        segment.close()
        with pytest.raises(ValueError, match="closed"):
            segment.store(LINES[0])

    @pytest.mark.usefixtures("mapped")
    def test_segment_of_a_live_process_is_drained_and_stays(self, session: Session) -> None:
        path = staged(session, LINES)  # of this very process
        compact(session.sessions_dir, "s")
        assert durations(load(session.sessions_dir, "s")) == CALLS
        assert path.exists()
        assert compact(session.sessions_dir, "s").records == 0
        assert durations(load(session.sessions_dir, "s")) == CALLS

    @pytest.mark.usefixtures("dead")
    def test_segment_that_is_mapped_stays_though_its_process_cannot_be_seen(self, session: Session) -> None:
        segment = Segment.create(session.segments, WRITER, 1, 4096)
        compact(session.sessions_dir, "s")
        assert Path(segment.name).exists()
        segment.close()
        compact(session.sessions_dir, "s")
        assert not Path(segment.name).exists()

    def test_segment_of_another_boot_goes_when_it_is_drained(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        me = process.current()
        other = process.ProcessIdentity(me.pid, me.started, "0" * 36, me.namespace)
        with monkeypatch.context() as before:
            before.setattr(process, "current", lambda: other)
            path = staged(session, LINES)
        compact(session.sessions_dir, "s")
        assert durations(load(session.sessions_dir, "s")) == CALLS
        assert not path.exists()

    @pytest.mark.usefixtures("dead")
    def test_older_segment_of_a_writer_enters_the_journal_first(self, session: Session) -> None:
        staged(session, LINES[2:], first=3)
        staged(session, LINES[:2], first=1)
        compact(session.sessions_dir, "s")
        assert durations(load(session.sessions_dir, "s")) == CALLS


@pytest.mark.usefixtures("dead")
class TestDamage:
    """The rest of the session counts, and the damage is reported or heals."""

    def check(self, session: Session, path: Path, case: object) -> dict[str, int]:
        session.journal.write_bytes(Record("tool_call", ("foreign", True, 1000)).line(1))
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
        path = session.segments / f"{WRITER}.{1:020d}.seg"
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
        path = session.segments / os.fsdecode(b"\xff.seg")
        path.write_bytes(b"x")
        self.check(session, path, "name")

    @pytest.mark.parametrize("kind", ["directory", "symlink", "dangling", "fifo"])
    def test_segment_that_is_no_file_is_set_aside(self, session: Session, kind: str, tmp_path: Path) -> None:
        path = session.segments / f"{WRITER}.{1:020d}.seg"
        victim = tmp_path / "victim"
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(victim)
        if kind == "symlink":
            victim.write_bytes(b"precious")
        session.journal.write_bytes(LINES[0])
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
            (session.segments / "x.seg.rejected" / "full").mkdir(parents=True)
            (session.segments / "x.seg").mkdir()
        else:
            (session.segments / ("x" * 248 + ".seg")).touch()
        for flushes in range(1, 4):
            with Collector("s", session.sessions_dir) as collector:
                collector.record_tool_call("bash", True, 1)
                collector.flush()
                metrics = collector.snapshot()
            assert (metrics.tools[0].call_count, metrics.rejected) == (flushes, 1)
        (item,) = rejected.read(session.rejected)
        assert os.path.lexists(session.directory / item.file)
        assert list_segments(session.segments) == []

    @pytest.mark.parametrize("bad", [b"garbage\n", b"\n", b"\xff\xfe\n", b'{"event":"tool_call"}\n'])
    def test_damaged_record_costs_itself(self, session: Session, bad: bytes) -> None:
        staged(session, [*LINES[:2], bad, *LINES[2:]])
        assert len(verify(session.sessions_dir, "s")) == 1
        compaction = compact(session.sessions_dir, "s")
        assert durations(compaction.metrics) == CALLS
        assert [item.data.rstrip(b"\n") for item in compaction.rejected] == [bad.rstrip(b"\n")]
        assert len(verify(session.sessions_dir, "s")) == 1


def test_stillborn_segment_is_deleted_and_one_in_the_making_is_not(session: Session) -> None:
    young, old = session.segments / ".young.seg.tmp", session.segments / ".old.seg.tmp"
    old.touch()
    os.utime(old, (0, 0))
    with young.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # as its maker does
        delete_stillborn(session.segments)
    assert list(session.segments.iterdir()) == [young]


@pytest.mark.parametrize("moment", range(1, 7))
def test_cleaning_while_a_segment_is_made_costs_no_record(
    session: Session, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    moments = itertools.count(1)

    def reached(_: str) -> None:
        if next(moments) == moment:
            delete_stillborn(session.segments)

    recorder = attach("s", session.sessions_dir)
    with monkeypatch.context() as patch:
        patch.setattr(files, "reached", reached)
        recorder.record_tool_call("bash", True, 1)
    assert next(moments) > moment
    recorder.stop()
    metrics = compact(session.sessions_dir, "s").metrics
    assert durations(metrics) == {"bash": 1}
    assert metrics.dropped == {}


def test_segments_are_listed_by_writer_and_oldest_first(session: Session) -> None:
    names = [f"{writer * 16}.{first:020d}.seg" for writer in "0af" for first in (1, 2, 10, 2**63)]
    for name in reversed(names):
        (session.segments / name).touch()
    (session.segments / f".{names[0]}.tmp").touch()
    (session.segments / f"{names[0]}.rejected").touch()
    assert [path.name for path in list_segments(session.segments)] == names
    assert name_parts(names[3]) == ("0" * 16, 2**63)


def test_opening_no_segment_says_why(session: Session) -> None:
    path = session.segments / f"{WRITER}.{1:020d}.seg"
    path.touch()
    with pytest.raises(DamagedSegmentError, match="0 bytes"):
        SegmentFile.open(path)
