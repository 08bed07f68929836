"""A look at a journal while others append to it: no healthy data is called damage, no damage is missed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest

from m31a_mp import attach, verify
from m31a_mp.inspection.snapshot import fold_everything
from m31a_mp.journal import reader
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import FileLock
from metrics_of import count
from strategies import Record, encoded
from workers import Counters, Forked, locked

LINE = Record("tool_call", ("bash", True, 1)).line(1)


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
        def opened(path: str) -> BinaryIO:
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
            Path(session.journal).write_bytes(LINE + BATCH + NEXT)
        early = look_too_early(LINE + GAPS[gap] + NEXT)
        assert seen(session) == (5, 0)
        assert early.is_set()

    def test_look_that_is_not_certain_waits_until_the_append_is_done(
        self, session: Session, look_too_early: Callable[[bytes], threading.Event]
    ) -> None:
        early = look_too_early(LINE + GAPS["a record"])
        with ThreadPoolExecutor(1) as pool:
            with locked(session):
                Path(session.journal).write_bytes(LINE + bytes(len(BATCH)))
                look = pool.submit(seen_by_snapshot, session)
                early.wait()
                Path(session.journal).write_bytes(LINE + BATCH)
            assert look.result() == (4, 0)

    def test_rest_of_an_append_that_is_met_behind_its_room_is_not_counted_as_lines(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(session.journal).write_bytes(LINE + GAPS["a whole header"])
        read = reader.read

        def filled_meanwhile(stream: BinaryIO, offset: int) -> Iterator[reader.Item]:
            for item in read(stream, offset):
                yield item
                if isinstance(item, reader.Torn):
                    Path(session.journal).write_bytes(LINE + BATCH)

        monkeypatch.setattr(reader, "read", filled_meanwhile)
        assert seen_by_snapshot(session) == (4, 0)
        monkeypatch.undo()
        assert seen_by_snapshot(session) == (4, 0)

    def test_batch_that_is_filled_while_those_behind_it_are_read_loses_no_record(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(session.journal).write_bytes(without(BATCH, len(BATCH) - 90, len(BATCH)) + NEXT)
        read = reader.read

        def filled_meanwhile(stream: BinaryIO, offset: int) -> Iterator[reader.Item]:
            for item in read(stream, offset):
                yield item
                Path(session.journal).write_bytes(BATCH + NEXT)

        monkeypatch.setattr(reader, "read", filled_meanwhile)
        assert seen_by_snapshot(session) == (4, 0)

    @pytest.mark.parametrize("seen", SEEN)
    def test_damage_is_found_and_counted_under_the_lock(
        self, session: Session, seen: Callable[[Session], tuple[int, int]]
    ) -> None:
        with locked(session):
            Path(session.journal).write_bytes(LINE + b"garbage\n" + LINE)
        assert seen(session) == (2, 1)
        (finding,) = verify(session.sessions_dir, "s")
        assert "not certain" not in finding.reason

    def test_damage_that_cannot_be_looked_at_under_the_lock_is_told_to_be_uncertain(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hold = Journal.hold
        monkeypatch.setattr(Journal, "hold", lambda journal, call: hold(journal, call, 0.01))
        holder = FileLock(session.journal_lock)
        assert holder.acquire()
        Path(session.journal).write_bytes(LINE + b"garbage\n" + LINE)
        Path(session.sealed_as(1)).write_bytes(b"sealed garbage\n")
        assert seen_by_snapshot(session) == (2, 2)
        reasons = {finding.file: finding.reason for finding in verify(session.sessions_dir, "s")}
        assert f"not certain, because {session.journal_lock} is held by" in reasons["journal.ndjson"]
        assert "not certain" not in reasons["journal.000000000001.ndjson"]
        holder.release()

    def test_look_from_a_call_that_was_interrupted_in_the_lock_says_that_it_is_not_certain(
        self, session: Session
    ) -> None:
        Path(session.journal).write_bytes(LINE + b"garbage\n")
        (finding,) = Journal(session).hold(lambda: verify(session.sessions_dir, "s"))
        assert "not certain" in finding.reason

    def test_look_at_a_sound_journal_waits_for_nobody(self, session: Session) -> None:
        holder = FileLock(session.journal_lock)
        assert holder.acquire()  # and never given back: a look that waited would end by raising
        Path(session.journal).write_bytes(LINE + BATCH + without(NEXT, 80, len(NEXT)))
        assert [seen(session) for seen in SEEN] == [(4, 0)] * 2

    @pytest.mark.slow
    @pytest.mark.parametrize("line_by_line", [False, True])
    def test_journal_that_others_append_to_all_the_time_is_sound_in_every_look(
        self, session: Session, line_by_line: bool
    ) -> None:
        lines = LINES * 200
        stopped = Counters(Path(session.root) / "stopped", 1)

        def write() -> None:
            number = 1
            while not stopped[0]:
                with locked(session):
                    if line_by_line:
                        with Path(session.journal).open("ab", buffering=100) as stream:
                            stream.writelines(lines[:20])
                    else:
                        Journal(session).append([Batch("00000000000000aa", number, b"".join(lines))])
                        number += len(lines)
                    if Path(session.journal).stat().st_size > 200_000:
                        Path(session.journal).unlink()
                # A look that is not certain tries to lock it for five seconds, and must meet it free once.
                time.sleep(0.002)

        with Forked(write) as writer:
            for _ in range(75):
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

    assert list(reader.read(Growing(LINE + LINE[:20]))) == [reader.Lines(0, LINE)]
