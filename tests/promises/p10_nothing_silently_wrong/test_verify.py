"""The store checks itself: damage is a finding, what a crash leaves is none, and nothing is changed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest

from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.inspection.snapshot import fold_everything
from m31a_mp.inspection.status import status
from m31a_mp.journal import reader
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import FileLock
from metrics_of import count
from strategies import Record, encoded
from workers import Counters, Forked, locked

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
    session.sealed_name(1).write_bytes(LINE + b"sealed garbage\n")
    session.journal.write_bytes(LINE + b"garbage\n" + LINE[:-20])
    (session.segments / "x.seg").write_bytes(b"no segment")
    session.metrics.write_bytes(b"{")


def no_directory(root: Path) -> None:
    """Leave nothing."""


def empty_directory(root: Path) -> None:
    root.mkdir(parents=True)


def other_directory(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "notes.txt").write_text("of somebody")


@pytest.mark.parametrize("there", [no_directory, empty_directory, other_directory])
class TestNoSession:
    @pytest.mark.parametrize(
        "call", [verify, compact, lambda sessions, name: status(Session.named(name, sessions))]
    )
    def test_what_looks_at_one_raises_and_makes_nothing(
        self, sessions: Path, there: Callable[[Path], None], call: Callable[[Path, str], object]
    ) -> None:
        there(sessions / "s")
        before = sorted(sessions.rglob("*"))
        with pytest.raises(FileNotFoundError, match="there is no session of that name") as error:
            call(sessions, "s")
        assert error.value.filename == str(sessions / "s")
        assert sorted(sessions.rglob("*")) == before
        assert load(sessions, "s") is None

    def test_snapshot_is_empty_and_says_so_once(
        self, sessions: Path, there: Callable[[Path], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        there(sessions / "s")
        recorder = attach("s", sessions)
        for _ in range(3):
            metrics = recorder.snapshot()
            assert (metrics.session_id, metrics.tools, metrics.llms, metrics.phases) == ("s", [], [], [])
        assert caplog.messages == [f"there is no session in {sessions}/s: its snapshot is empty"]


def test_file_in_its_place_is_no_session(sessions: Path) -> None:
    sessions.mkdir()
    (sessions / "s").write_text("of somebody")
    for call in (verify, compact):
        with pytest.raises(FileNotFoundError, match="there is no session of that name"):
            call(sessions, "s")
    with pytest.raises(NotADirectoryError):
        attach("s", sessions).snapshot()


def test_snapshot_of_a_session_without_records_says_nothing(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    assert attach("s", session.sessions_dir).snapshot().tools == []
    with Collector("s", session.sessions_dir) as collector:
        assert collector.snapshot().tools == []
        assert attach("s", session.sessions_dir).snapshot().tools == []
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize(
    "sign", ["metrics.json", "journal.ndjson", "journal.000000000007.ndjson", "segments/x.seg"]
)
def test_anything_of_a_session_is_one(sessions: Path, sign: str) -> None:
    (sessions / "s" / sign).parent.mkdir(parents=True)
    (sessions / "s" / sign).write_bytes(b"{")
    verify(sessions, "s")
    assert compact(sessions, "s", rebuild=True).metrics.session_id == "s"


def test_nothing_is_changed(session: Session) -> None:
    damage(session)
    before = content(session.directory)
    assert verify(session.sessions_dir, "s")
    assert verify(session.sessions_dir, "s")
    assert content(session.directory) == before


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
    session.metrics.unlink()
    before = len(verify(session.sessions_dir, "s"))
    compaction = compact(session.sessions_dir, "s")
    assert before == len(compaction.rejected) == compaction.metrics.rejected == 3
    for _ in range(2):
        assert len(verify(session.sessions_dir, "s")) == 3
        compact(session.sessions_dir, "s")
    session.rejected.unlink()
    assert verify(session.sessions_dir, "s") == []


def test_what_a_crash_leaves_is_no_finding(session: Session) -> None:
    attach("s", session.sessions_dir).record_tool_call("staged", True, 1)
    session.sealed_name(1).write_bytes(LINE)
    session.journal.write_bytes(LINE + LINE[:-20])
    (session.segments / ".1.seg.tmp").write_bytes(b"half made")
    (session.directory / ".metrics.json.tmp").write_bytes(b"{")
    session.owner_lock.write_bytes(b'{"pid":1')
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


LINES = [Record("tool_call", ("bash", True, i)).line(i) for i in range(1, 4)]
BATCH = encoded(Batch("00000000000000aa", 1, b"".join(LINES)))
NEXT = encoded(Batch("00000000000000aa", 4, LINES[0]))


def without(batch: bytes, start: int, end: int) -> bytes:
    """A batch as somebody sees it who reads its end before its beginning is written."""
    return batch[:start] + bytes(end - start) + batch[end:]


GAPS = {
    "the header": without(BATCH, 0, 40),
    "a whole header": without(BATCH, 0, BATCH.index(b"\n") + 1),
    "a record": without(BATCH, len(BATCH) - 150, len(BATCH) - 100),
    "a page": without(BATCH, 20, len(BATCH) - len(LINES[2])),
    "its end, with the next one behind it": without(BATCH, len(BATCH) - 90, len(BATCH)),
}


class Stale(BytesIO):
    """A journal that was read a moment ago."""

    def __init__(self, seen: bytes, journal: BinaryIO) -> None:
        super().__init__(seen)
        self._journal = journal

    def fileno(self) -> int:
        return self._journal.fileno()

    def close(self) -> None:
        self._journal.close()
        super().close()


@pytest.fixture
def look_too_early(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], threading.Event]:
    """Lets the next look see these bytes in the journal; returns what is set when it has them."""
    open_to_read, found = reader.open_to_read, threading.Event()

    def let(seen: bytes) -> threading.Event:
        def opened(path: Path) -> BinaryIO:
            stream = open_to_read(path)
            if found.is_set():
                return stream
            found.set()
            return Stale(seen, stream)

        monkeypatch.setattr(reader, "open_to_read", opened)
        return found

    return let


def seen_by_snapshot(session: Session) -> tuple[int, int]:
    metrics = attach("s", session.sessions_dir).snapshot()
    return count(metrics), metrics.rejected


def seen_by_verify(session: Session) -> tuple[int, int]:
    fold = fold_everything(session)
    return fold.totals.tables["tools"].by_name["bash"].calls.counts[0], len(verify(session.sessions_dir, "s"))


SEEN = [seen_by_snapshot, seen_by_verify]


class TestLiveJournal:
    @pytest.mark.parametrize("gap", GAPS)
    @pytest.mark.parametrize("seen", SEEN)
    def test_append_in_progress_is_no_damage_and_counts_once(
        self,
        session: Session,
        look_too_early: Callable[[bytes], threading.Event],
        gap: str,
        seen: Callable[[Session], tuple[int, int]],
    ) -> None:
        with locked(session):
            session.journal.write_bytes(LINE + BATCH + NEXT)
        early = look_too_early(LINE + GAPS[gap] + NEXT)
        assert seen(session) == (5, 0)
        assert early.is_set()

    def test_look_that_is_not_certain_waits_until_the_append_is_done(
        self, session: Session, look_too_early: Callable[[bytes], threading.Event]
    ) -> None:
        early = look_too_early(LINE + GAPS["a record"])
        with ThreadPoolExecutor(1) as pool:
            with locked(session):
                session.journal.write_bytes(LINE + bytes(len(BATCH)))
                look = pool.submit(seen_by_snapshot, session)
                early.wait()
                session.journal.write_bytes(LINE + BATCH)
            assert look.result() == (4, 0)

    def test_rest_of_an_append_that_is_met_behind_its_room_is_not_counted_as_lines(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session.journal.write_bytes(LINE + GAPS["a whole header"])
        read = reader.read

        def filled_meanwhile(stream: BinaryIO) -> Iterator[reader.Item]:
            for item in read(stream):
                yield item
                if isinstance(item, reader.Torn):
                    session.journal.write_bytes(LINE + BATCH)

        monkeypatch.setattr(reader, "read", filled_meanwhile)
        assert seen_by_snapshot(session) == (4, 0)
        monkeypatch.undo()
        assert seen_by_snapshot(session) == (4, 0)

    def test_batch_that_is_filled_while_those_behind_it_are_read_loses_no_record(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session.journal.write_bytes(without(BATCH, len(BATCH) - 90, len(BATCH)) + NEXT)
        read = reader.read

        def filled_meanwhile(stream: BinaryIO) -> Iterator[reader.Item]:
            for item in read(stream):
                yield item
                session.journal.write_bytes(BATCH + NEXT)

        monkeypatch.setattr(reader, "read", filled_meanwhile)
        assert seen_by_snapshot(session) == (4, 0)

    @pytest.mark.parametrize("seen", SEEN)
    def test_damage_is_found_and_counted_under_the_lock(
        self, session: Session, seen: Callable[[Session], tuple[int, int]]
    ) -> None:
        with locked(session):
            session.journal.write_bytes(LINE + b"garbage\n" + LINE)
        assert seen(session) == (2, 1)
        (finding,) = verify(session.sessions_dir, "s")
        assert "not certain" not in finding.reason

    def test_damage_that_cannot_be_looked_at_under_the_lock_is_told_to_be_uncertain(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hold = Journal.hold
        monkeypatch.setattr(Journal, "hold", lambda journal, call: hold(journal, call, 0.01))
        holder = FileLock(session.lock_name)
        assert holder.acquire()
        session.journal.write_bytes(LINE + b"garbage\n" + LINE)
        session.sealed_name(1).write_bytes(b"sealed garbage\n")
        assert seen_by_snapshot(session) == (2, 2)
        reasons = {finding.file: finding.reason for finding in verify(session.sessions_dir, "s")}
        assert f"not certain, for {session.lock_name} is held by" in reasons["journal.ndjson"]
        assert "not certain" not in reasons["journal.000000000001.ndjson"]
        holder.release()

    def test_look_from_a_call_that_was_interrupted_in_the_lock_says_that_it_is_not_certain(
        self, session: Session
    ) -> None:
        session.journal.write_bytes(LINE + b"garbage\n")
        (finding,) = Journal(session).hold(lambda: verify(session.sessions_dir, "s"))
        assert "not certain" in finding.reason

    def test_look_at_a_sound_journal_waits_for_nobody(self, session: Session) -> None:
        holder = FileLock(session.lock_name)
        assert holder.acquire()  # and never given back: a look that waited would end by raising
        session.journal.write_bytes(LINE + BATCH + without(NEXT, 80, len(NEXT)))
        assert [seen(session) for seen in SEEN] == [(4, 0)] * 2

    @pytest.mark.slow
    @pytest.mark.parametrize("line_by_line", [False, True])
    def test_journal_that_others_append_to_all_the_time_is_sound_in_every_look(
        self, session: Session, line_by_line: bool
    ) -> None:
        lines = LINES * 200
        stopped = Counters(session.directory / "stopped", 1)

        def write() -> None:
            number = 1
            while not stopped[0]:
                with locked(session):
                    if line_by_line:
                        with session.journal.open("ab", buffering=100) as stream:
                            stream.writelines(lines[:20])
                    else:
                        Journal(session).append([Batch("00000000000000aa", number, b"".join(lines))])
                        number += len(lines)
                    if session.journal.stat().st_size > 200_000:
                        session.journal.unlink()

        with Forked(write) as writer:
            for _ in range(150):
                assert verify(session.sessions_dir, "s") == []
                assert attach("s", session.sessions_dir).snapshot().rejected == 0
            stopped[0] = 1
            assert writer.wait() == 0


def test_line_that_grows_while_it_is_read_is_not_read_in_two_halves() -> None:
    class Growing(BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            if not line.endswith(b"\n"):
                place = self.tell()
                self.write(LINE[20:])
                self.seek(place)
            return line

    assert list(reader.read(Growing(LINE + LINE[:20]))) == [reader.Line(0, LINE)]
