"""Segments: what is stored is there for everyone, whatever became of its writer or of its header."""

from __future__ import annotations

import fcntl
import itertools
import os
from pathlib import Path

import pytest

from damage import CALLS, LINES, WRITER, staged, with_hole, write
from m31a_mp import attach, compact, load, verify
from m31a_mp.segments.format import DATA_OFFSET, DamagedSegmentError, name_parts
from m31a_mp.segments.reader import SegmentFile, delete_stillborn, list_segments
from m31a_mp.segments.segment import Segment
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from metrics_of import durations

pytestmark = pytest.mark.usefixtures("segments_at_once")


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments seem to be mapped, though they are not."""
    monkeypatch.setattr(process, "may_map", lambda *_: True)


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
        assert list(Path(session.segments).iterdir()) == []

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
        assert list(Path(session.segments).iterdir()) == []

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


def test_stillborn_segment_is_deleted_and_one_in_the_making_is_not(session: Session) -> None:
    young, old = Path(session.segments) / ".young.seg.tmp", Path(session.segments) / ".old.seg.tmp"
    old.touch()
    os.utime(old, (0, 0))
    with young.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # as its maker does
        delete_stillborn(session.segments)
    assert list(Path(session.segments).iterdir()) == [young]


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
        (Path(session.segments) / name).touch()
    (Path(session.segments) / f".{names[0]}.tmp").touch()
    (Path(session.segments) / f"{names[0]}.rejected").touch()
    assert [os.path.basename(path) for path in list_segments(session.segments)] == names
    assert name_parts(names[3]) == ("0" * 16, 2**63)


def test_opening_no_segment_says_why(session: Session) -> None:
    path = Path(session.segments) / f"{WRITER}.{1:020d}.seg"
    path.touch()
    with pytest.raises(DamagedSegmentError, match="0 bytes"):
        SegmentFile.open(str(path))
