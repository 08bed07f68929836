"""Segments to journal: in order, whole, and nothing deleted that is not there."""

from __future__ import annotations

from collections.abc import Container, Iterable
from errno import EIO, ENOSPC
from pathlib import Path

import pytest

from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.journal.append import Journal
from m31a_mp.metrics import compactor
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics.totals import Totals
from m31a_mp.segments import drain, reader, staging, writer
from m31a_mp.segments.format import DATA_OFFSET
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from m31a_mp.system.flock import FileLock
from strategies import Record
from workers import locked, unmap

pytestmark = pytest.mark.usefixtures("segments_at_once")


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_SEGMENT_BYTES", 640)
    monkeypatch.setattr(writer, "MAX_SEGMENT_BYTES", 1024)


def record(session: Session, times: int) -> None:
    recorder = attach("s", session.sessions_dir)
    for i in range(times):
        recorder.record_phase_duration("plan", i, True)
        recorder.record_phase_transition("plan")


def record_backlog(session: Session, times: int) -> None:
    """Leave several segments of one writer."""
    lock = FileLock(session.journal_lock)
    assert lock.acquire()
    record(session, times)
    lock.release()
    assert len(list(list_segments(session.segments))) > 3


def transitions(session: Session) -> int:
    return attach("s", session.sessions_dir).snapshot().phases[0].transition_count


def test_full_segment_is_handed_over_and_its_file_goes(session: Session) -> None:
    record(session, 50)
    assert transitions(session) == 50
    assert len(list(list_segments(session.segments))) == 1
    assert Path(session.journal).stat().st_size > 1024


def test_backlog_is_drained_by_the_next_spill_that_gets_the_lock(session: Session) -> None:
    record_backlog(session, 30)
    record(session, 10)
    assert len(list(list_segments(session.segments))) == 1
    assert transitions(session) == 40
    assert compact(session.sessions_dir, "s").metrics.phases[0].transition_count == 40


def test_record_that_finds_the_lock_free_after_a_long_time_moves_a_few_segments_only(
    session: Session,
) -> None:
    record_backlog(session, 200)
    before = len(list_segments(session.segments))
    recorder = attach("s", session.sessions_dir)
    left = before
    while left > 1:
        recorder.record_phase_transition("plan")
        last, left = left, len(list_segments(session.segments))
        assert last - left < staging._SPILLED_SEGMENTS
    assert before > 2 * staging._SPILLED_SEGMENTS
    assert verify(session.sessions_dir, "s") == []


@pytest.mark.parametrize("records", [0, 1, 60])
def test_records_that_an_idle_segment_takes_before_the_lock_is_taken_count_once(
    session: Session, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    recorder = attach("s", session.sessions_dir)

    def and_record(directory: str) -> set[str]:
        idle = drain.idle_segments(directory)
        assert len(idle) == 1
        with locked(session):  # 60 fill the segment and more: none can be spilled
            for _ in range(records):
                recorder.record_phase_transition("plan")
        assert (len(list_segments(directory)) > 3) is (records == 60)
        return idle

    with Collector("s", session.sessions_dir) as collector:
        recorder.record_phase_transition("plan")
        collector.flush()
        with monkeypatch.context() as patch:
            patch.setattr(compactor, "idle_segments", and_record)
            collector.flush()
        assert transitions(session) == 1 + records
        collector.flush()
        assert transitions(session) == 1 + records
    assert verify(session.sessions_dir, "s") == []


def test_idle_segments_are_read_before_the_lock_is_taken(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    stagings = [staging.Staging(session) for _ in range(20)]
    for stage in stagings:
        stage.put("heal_trigger", ',"phase":"plan"')
    journal = staging.staging(session).journal
    opened: list[bool] = []
    real = SegmentFile.open.__func__  # type: ignore[attr-defined]

    def note(cls: type[SegmentFile], path: str) -> SegmentFile:
        opened.append(journal.turn.is_mine())
        return real(cls, path)  # type: ignore[no-any-return]

    with Collector("s", session.sessions_dir) as collector:
        stagings[7].put("heal_trigger", ',"phase":"plan"')
        with monkeypatch.context() as patch:
            patch.setattr(SegmentFile, "open", classmethod(note))
            collector.flush()
        assert opened.count(True) == 1
        assert collector.snapshot().phases[0].heal_trigger_count == 21


def test_drain_in_many_chunks_keeps_all(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "_CHUNK_FILES", 2)
    record_backlog(session, 30)
    assert compact(session.sessions_dir, "s").metrics.phases[0].transition_count == 30
    assert verify(session.sessions_dir, "s") == []


def test_journal_that_takes_nothing_leaves_all_segments(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_backlog(session, 30)
    before = sorted(list_segments(session.segments))

    def full(*_: object) -> None:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(OSError, match="no space"):
            compact(session.sessions_dir, "s")
    assert sorted(list_segments(session.segments)) == before
    assert transitions(session) == 30
    assert compact(session.sessions_dir, "s").metrics.phases[0].transition_count == 30


def test_segment_that_cannot_be_read_now_is_taken_the_next_time_before_its_later_ones(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_backlog(session, 30)
    second = sorted(list_segments(session.segments))[1]
    real = SegmentFile.open.__func__  # type: ignore[attr-defined]

    def broken(cls: type[SegmentFile], path: str) -> SegmentFile:
        if path == str(second):
            raise OSError(5, "Input/output error")
        return real(cls, path)  # type: ignore[no-any-return]

    with Collector("other", session.sessions_dir), monkeypatch.context() as patch:
        patch.setattr(SegmentFile, "open", classmethod(broken))
        compaction = compact(session.sessions_dir, "s")
        assert len(compaction.unreadable) == 1
        assert compaction.metrics.phases[0].transition_count < 30
    compaction = compact(session.sessions_dir, "s")
    assert compaction.unreadable == []
    assert compaction.metrics.phases[0].transition_count == 30
    assert compaction.metrics.phases[0].duration_ms == 29


@pytest.mark.parametrize("where", ["spill", "flush", "stop"])
def test_own_segment_that_cannot_be_read_is_not_deleted(
    session: Session, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    record(session, 2)
    recorder = attach("s", session.sessions_dir)

    def broken(*_: object) -> SegmentFile:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentFile, "open", broken)
        if where == "spill":
            record(session, 20)
        elif where == "flush":
            with pytest.raises(OSError, match="Too many"):
                recorder.flush()
        else:
            recorder.stop()
    wanted = 22 if where == "spill" else 2
    assert transitions(session) == wanted
    assert compact(session.sessions_dir, "s").metrics.phases[0].transition_count == wanted


def test_segment_that_goes_while_it_is_drained_is_no_error(session: Session) -> None:
    record(session, 2)
    paths = list(list_segments(session.segments))
    attach("s", session.sessions_dir).stop()
    log = Journal(session)
    with locked(session):
        drained = drain.drain(log, paths)
    assert not drained.damaged
    assert not drained.unreadable
    assert compact(session.sessions_dir, "s").metrics.phases[0].transition_count == 2


def test_record_of_a_size_that_an_unused_segment_does_not_take_is_kept(session: Session) -> None:
    # As after an interrupt between the new segment and the record that it was made for.
    stage = staging.staging(session)
    stage._free.append(stage._new_writer())
    stage._free[0]._make_room(10)
    record_name = "x" * 2000
    attach("s", session.sessions_dir).record_heal_trigger(record_name)
    compact(session.sessions_dir, "s")
    metrics = load(session.sessions_dir, "s")
    assert metrics
    assert metrics.phases[0].phase == record_name


def test_foreign_lines_and_batches_live_together(session: Session) -> None:
    with Collector("s", session.sessions_dir) as collector:
        for i in range(20):
            collector.record_phase_transition("plan")
            with Path(session.journal).open("ab") as stream:
                stream.write(Record("phase_transition", ("plan",)).line(i))
            if i % 3 == 0:
                collector.flush()
            assert transitions(session) == 2 * (i + 1)


def drop(session: Session, times: int) -> None:
    """Let the only writer of this process drop records, as on a full disk."""
    [one] = staging.staging(session)._writers
    for _ in range(times):
        one._drop("no_space", OSError(ENOSPC, "no space left on device"))


@pytest.mark.parametrize("step", ["delete segment", "advance segment"])
def test_drain_that_fails_after_its_append_again_and_again_ends_with_its_error(
    session: Session, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    record(session, 1)
    drop(session, 2)  # and so there is something to append each time
    if step == "delete segment":
        monkeypatch.setattr("m31a_mp.system.process.seen_alive", lambda _: False)
        unmap(staging.staging(session))
    published = 0
    publish = metrics_file.publish

    def count(where: Session, totals: Totals) -> metrics_file.Published:
        nonlocal published
        published += 1
        assert published < 20, "published for ever"
        return publish(where, totals)

    def reached(point: str) -> None:
        if point == f"before {step}":
            raise OSError(EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(metrics_file, "publish", count)
        patch.setattr(files, "reached", reached)
        for _ in range(3):
            published = 0
            with pytest.raises(OSError, match="Input/output"):
                compact(session.sessions_dir, "s")
            assert published <= 3
    metrics = compact(session.sessions_dir, "s").metrics
    assert (metrics.phases[0].transition_count, metrics.dropped) == (1, {"no_space": 2})
    assert verify(session.sessions_dir, "s") == []


@pytest.mark.parametrize("moment", ["between the two listings", "between listing and opening"])
def test_drops_of_a_writer_that_changes_its_segment_while_the_owner_lists_are_told_once(
    session: Session, moment: str
) -> None:
    def change_segment() -> None:
        before = list_segments(session.segments)
        recorder.record_phase_transition("x" * writer.FIRST_SEGMENT_BYTES)
        changed.append(list_segments(session.segments) != before)

    names, drain_now = reader._names, drain.drain
    listings = 0

    def list_names(directory: str) -> list[str]:
        nonlocal listings
        listings += 1
        if listings == 4:  # the first two are of the look for idle segments
            patch.undo()
            change_segment()
        return names(directory)

    def drain_late(journal: Journal, paths: Iterable[str], idle: Container[str]) -> drain.Drained:
        patch.undo()
        listed = list(paths)
        change_segment()
        return drain_now(journal, listed, idle)

    changed: list[bool] = []
    with Collector("s", session.sessions_dir) as collector:
        recorder = attach("s", session.sessions_dir)
        recorder.record_phase_transition("plan")
        drop(session, 2)
        collector.flush()
        assert collector.snapshot().dropped == {"no_space": 2}
        # Something to publish, so that what is known of writers that are gone may be forgotten.
        Path(session.journal).write_bytes(Record("phase_transition", ("ship",)).line(1))
        patch = pytest.MonkeyPatch()
        if moment == "between the two listings":
            patch.setattr(reader, "_names", list_names)
        else:
            patch.setattr(compactor, "drain", drain_late)
        collector.flush()
        patch.undo()
        assert changed == [True]
        collector.flush()
        metrics = collector.snapshot()
    assert metrics.dropped == {"no_space": 2}
    assert [phase.transition_count for phase in metrics.phases] == [1, 1, 1]


@pytest.mark.usefixtures("dead")
def test_stop_with_a_zero_within_the_live_segment_loses_nothing_that_is_not_reported(
    session: Session,
) -> None:
    recorder = attach("s", session.sessions_dir)
    for _ in range(4):
        recorder.record_phase_transition("plan")
    [path] = list_segments(session.segments)
    with open(path, "r+b") as stream:
        stream.seek(DATA_OFFSET)
        stream.seek(DATA_OFFSET + len(stream.readline()) + 10)
        stream.write(b"\0")
    recorder.stop()
    # The record with the zero is set aside, by whoever finds the segment without its writer.
    compaction = compact(session.sessions_dir, "s")
    assert compaction.metrics.phases[0].transition_count + compaction.metrics.rejected == 4
    assert len(compaction.rejected) == 1
    assert list_segments(session.segments) == []
