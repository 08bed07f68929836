"""A look goes on from where the last one stopped, and sees what a look that reads everything sees."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from damage import UNITS, batch, line, tool_call
from m31a_mp import Collector, SessionMetrics, attach, compact
from m31a_mp.inspection.snapshot import Looks, fold_everything
from m31a_mp.inspection.status import status
from m31a_mp.journal import append
from m31a_mp.journal.batch import Batch
from m31a_mp.metrics.fold import Fold
from m31a_mp.segments.staging import Staging
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import FileLock
from metrics_of import calls, calls_of
from workers import Forked

Result = tuple[dict[str, int], int, int, int]

TORN = batch(1, line("torn-1", 512), line("torn-2", 1024), writer="00000000000000cc")
PIECES: dict[str, bytes] = {
    **{f"unit {number}": unit.data for number, unit in enumerate(UNITS)},
    "garbage": b"garbage\n",
    "a batch that is wrong": TORN[:-20] + b"x" * 19 + b"\n",
    "the beginning of a line": tool_call("halved")[:30],
    "a line without its end": tool_call("whole")[:-1],
    "an end": b"\n",
    "room": bytes(100),
    "the header of a batch": TORN[: TORN.index(b"\n") + 1],
}
"""What programs of all kinds, and dead ones, leave in a journal."""


def result_of(fold: Fold) -> Result:
    metrics = fold.totals.to_metrics("s")
    return calls(metrics), fold.records, fold.totals.rejected, len(fold.rejected)


def metrics_of(fold: Fold) -> SessionMetrics:
    return fold.totals.to_metrics("s")


class Mess:
    """A session in whose files all kinds of things happen.

    Attributes:
        session: The session.
        was_cut: Whether the journal was made shorter. The counted records of a torn batch may be gone then,
            and no look can tell.
    """

    def __init__(self, sessions: Path, written: int) -> None:
        self.session = Session.named("s", sessions)
        self.session.make()
        self.was_cut = False
        self._lock = FileLock(self.session.journal_lock)
        self._take_lock()
        self.free()
        self._journal = Path(self.session.journal)
        self._written = written
        self._torn_at = -1
        self._numbers = itertools.count(1)

    def _take_lock(self) -> None:
        assert self._lock.held or self._lock.acquire()

    def free(self) -> None:
        """End the process whose append is torn: it fills nothing any more."""
        self._torn_at = -1
        if self._lock.held:
            self._lock.release()

    def append(self, data: bytes) -> None:
        with self._journal.open("ab") as stream:
            stream.write(data)

    def seal(self) -> None:
        self.free()
        if self._journal.exists():
            self._journal.rename(self.session.sealed_as(next(self._numbers)))

    def publish(self) -> None:
        self.free()
        with Collector("s", self.session.sessions_dir) as collector:
            collector.record_heal_trigger("plan")

    def tear(self) -> None:
        self._take_lock()
        self._torn_at = self._journal.stat().st_size if self._journal.exists() else 0
        self.append(TORN[: self._written] + bytes(len(TORN) - self._written))

    def fill(self) -> None:
        if self._torn_at >= 0:
            with self._journal.open("r+b") as stream:
                stream.seek(self._torn_at)
                stream.write(TORN)
        self.free()

    def cut(self) -> None:
        self.free()
        if self._journal.exists():
            os.truncate(self._journal, self._journal.stat().st_size // 2)
            self.was_cut = True

    def remove(self) -> None:
        self.free()
        shutil.rmtree(self.session.root)
        self.session.make()

    def unpublish(self) -> None:
        Path(self.session.metrics).unlink(missing_ok=True)

    def damage(self) -> None:
        Path(self.session.segments, f"{next(self._numbers):016x}.{1:020}.seg").write_bytes(b"garbage")


STEPS: dict[str, Callable[[Mess], None]] = {
    **{name: partial(Mess.append, data=data) for name, data in PIECES.items()},
    **{
        name: getattr(Mess, name)
        for name in ("seal", "publish", "unpublish", "tear", "fill", "free", "cut", "damage", "remove")
    },
}
NULS_THAT_GO_ON = [
    *[("unit 0", 0), ("unit 0", 0), ("unit 0", 0), ("cut", 0), ("tear", 0)],
    *[("unit 1", 0), ("unit 0", 0), ("cut", 2), ("room", 1)],
]
"""Behind NULs, the same line goes on with other bytes and more NULs."""
steps = st.lists(st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 2)), min_size=3, max_size=20)


@pytest.mark.slow
@settings(max_examples=400)
@given(steps, st.integers(1, len(TORN) - 1))
@example(NULS_THAT_GO_ON, 81)
def test_look_that_goes_on_sees_what_a_first_look_sees(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], written: int
) -> None:
    mess = Mess(tmp_path_factory.mktemp("sessions"), written)
    looks = Looks(mess.session)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(append, "LOCK_SECONDS", 0.0)  # looks at damage would wait for whoever appends
        for step, times in steps:
            STEPS[step](mess)
            if mess.was_cut:
                mess.was_cut, looks = False, Looks(mess.session)
            for _ in range(times):
                assert looks.look(result_of) == result_of(fold_everything(mess.session))
        mess.free()


def append_calls(session: Session, tool: str, count: int) -> None:
    with Path(session.journal).open("ab") as stream:
        stream.write(count * tool_call(tool))


def cut(session: Session) -> None:
    os.truncate(session.journal, 0)


def remove_journal(session: Session) -> None:
    Path(session.journal).unlink()


def remove(session: Session) -> None:
    shutil.rmtree(session.root)
    session.make()


@pytest.mark.parametrize("gone", [cut, remove_journal, remove])
@pytest.mark.parametrize("published", [False, True])
def test_look_does_not_count_lines_that_are_gone_nor_miss_those_in_their_place(
    session: Session, gone: Callable[[Session], None], published: bool
) -> None:
    """On ext4, a new journal has the inode of the removed one, and its lines may be as long."""
    if published:
        compact(session.sessions_dir, "s")
    for _ in range(20):
        looks = Looks(session)
        append_calls(session, "old", 20)
        assert calls(looks.look(metrics_of)) == {"old": 20}
        gone(session)
        append_calls(session, "new", 25)
        assert calls(looks.look(metrics_of)) == {"new": 25}
        remove_journal(session)


def test_look_counts_nothing_that_was_merged_and_whose_file_was_removed_twice(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        for _ in range(20):
            Path(sessions, "s", "metrics.json").unlink()
            collector.record_tool_call("bash", True, 1)
            assert calls(collector.snapshot()) == {"bash": 1}
            collector.flush()


def test_second_look_folds_and_reads_only_what_is_new(
    sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = attach("s", sessions)
    for _ in range(30_000):
        worker.record_tool_call("bash", True, 1)
    looks = Looks(Session.named("s", sessions))
    assert calls(looks.look(metrics_of)) == {"bash": 30_000}
    for _ in range(100):
        worker.record_tool_call("bash", True, 1)
    folded: list[int] = []
    fold_batch = Fold.add_batch

    def count(fold: Fold, file: str, batch: Batch) -> None:
        folded.append(batch.count)
        fold_batch(fold, file, batch)

    monkeypatch.setattr(Fold, "add_batch", count)
    assert calls(looks.look(metrics_of)) == {"bash": 30_100}
    assert sum(folded) == 100
    folded.clear()
    worker.flush()  # the same records, in the journal now
    assert calls(looks.look(metrics_of)) == {"bash": 30_100}
    assert sum(folded) < 30_000  # those of one segment


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of lines that folds were given from now on."""
    counts: list[int] = []
    piece = Fold._piece

    def noting(*arguments: Any, **options: Any) -> int:
        count = piece(*arguments, **options)
        counts.append(count)
        return count

    monkeypatch.setattr(Fold, "_piece", noting)
    return counts


TORN_ROOM = TORN[:-100] + bytes(100)
LEFT: dict[str, bytes] = {
    "torn batch": TORN_ROOM,
    "torn batch of which nothing is there": bytes(len(TORN)),
    "torn header": TORN[:10] + bytes(len(TORN) - 10),
    "torn batch and lines": TORN_ROOM + tool_call("behind"),
    "batch that is wrong": PIECES["a batch that is wrong"],
    "batch that is wrong and lines": PIECES["a batch that is wrong"] + tool_call("behind"),
    "bytes that are not text": b"x\0\n",
    "endless line": 70_000 * b"x" + b"\n",
    "invalid line": b"garbage\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_look_does_not_read_again_what_lies_behind_the_torn_and_the_damaged(
    session: Session, left: bytes, folded: list[int]
) -> None:
    compact(session.sessions_dir, "s")
    looks = Looks(session)
    append_calls(session, "before", 1000)
    assert calls(looks.look(metrics_of))["before"] == 1000
    with Path(session.journal).open("ab") as stream:
        stream.write(left)
    append_calls(session, "after", 1000)
    assert looks.look(result_of) == result_of(fold_everything(session))
    for count in range(1001, 1010):
        append_calls(session, "after", 1)
        folded.clear()
        assert calls(looks.look(metrics_of))["after"] == count
        assert sum(folded) <= 2
    assert looks.look(result_of) == result_of(fold_everything(session))


def test_looks_at_one_invalid_line_after_another_read_only_these(session: Session, folded: list[int]) -> None:
    compact(session.sessions_dir, "s")
    looks = Looks(session)
    append_calls(session, "before", 1000)
    looks.look(metrics_of)
    for count in range(1, 10):
        with Path(session.journal).open("ab") as stream:
            stream.write(b"garbage\n")
        folded.clear()
        assert looks.look(metrics_of).rejected == count
        assert sum(folded) == 1


def test_torn_batch_that_is_filled_while_nobody_had_the_lock_for_a_look_counts(session: Session) -> None:
    """The process that appends holds the lock, and stands still in the middle of its batch."""
    compact(session.sessions_dir, "s")
    looks, holder = Looks(session), FileLock(session.journal_lock)
    assert holder.acquire()
    with Path(session.journal).open("ab") as stream:
        stream.write(TORN_ROOM)
    for _ in range(3):
        assert looks.look(result_of) == result_of(fold_everything(session))
    with Path(session.journal).open("r+b") as stream:
        stream.write(TORN)
    holder.release()
    for _ in range(3):
        assert calls(looks.look(metrics_of)) == {"torn-1": 1, "torn-2": 1}


@pytest.mark.parametrize("planted", [os.mkdir, partial(os.symlink, "/dev/null")])
def test_looks_over_a_torn_batch_need_no_lock_that_can_be_had(
    session: Session, planted: Callable[[str], None]
) -> None:
    looks = Looks(session)
    Path(session.journal).write_bytes(TORN_ROOM + tool_call("behind"))
    planted(session.journal_lock)
    for _ in range(3):
        assert looks.look(result_of) == result_of(fold_everything(session))


@pytest.mark.usefixtures("segments_at_once")
def test_watch_counts_unmerged_and_staged_records_without_reading_them_again(sessions: Path) -> None:
    session = Session.named("s", sessions)
    looks = Looks(session)
    with Collector("s", sessions) as collector:
        for number in range(1, 4):
            collector.record_tool_call("bash", True, 1)
            found = status(session, looks)
            assert (found.unmerged, [writer.staged for writer in found.writers]) == (number, [number])
        collector.flush()
        found = status(session, looks)
        assert (found.unmerged, [writer.staged for writer in found.writers]) == (0, [0])


def test_look_in_the_middle_of_another_sees_everything_and_disturbs_nothing(sessions: Path) -> None:
    """A signal handler, and other threads."""
    with Collector("s", sessions) as collector:
        seen: list[int] = []

        def handler(*_: object) -> None:
            seen.append(calls_of(collector.snapshot(), "bash"))

        before = signal.signal(signal.SIGPROF, handler)
        signal.setitimer(signal.ITIMER_PROF, 0.002, 0.002)
        try:
            for number in range(1, 300):
                collector.record_tool_call("bash", True, 1)
                assert calls_of(collector.snapshot(), "bash") == number
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
        assert seen == sorted(seen)

        def look() -> None:
            mine = [calls_of(collector.snapshot(), "bash") for _ in range(100)]
            assert mine == [299] * 100
            done.append(True)

        done: list[bool] = []
        threads = [Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [True] * 4


def test_child_goes_on_with_the_looks_of_its_parent(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_tool_call("bash", True, 1)
        collector.snapshot()

        def look() -> None:
            collector.record_tool_call("bash", True, 1)
            assert calls(collector.snapshot()) == {"bash": 2}

        assert Forked(look).wait() == 0
        assert calls(collector.snapshot()) == {"bash": 2}


@pytest.mark.parametrize(
    "change", [lambda metrics: metrics.tools.clear(), lambda metrics: metrics.rest.clear()]
)
def test_snapshot_that_its_caller_changed_shows_in_no_later_one(
    sessions: Path, change: Callable[[SessionMetrics], None]
) -> None:
    with Collector("s", sessions) as collector:
        collector.record_cancellation("plan", "no")
        with collector.tool_call("bash"):
            first, second = collector.snapshot(), collector.snapshot()
            change(first)
            assert collector.snapshot() == second
            assert collector.snapshot().rest == second.rest


def test_segments_that_were_seen_are_read_from_where_they_were_left(sessions: Path) -> None:
    session = Session.named("s", sessions)
    stage, looks = Staging(session), Looks(session)
    for number in range(1, 2000):
        stage.put("tool_call", ',"name":"bash","success":true,"duration_ms":', number)
        if number % 7 == 0:
            assert calls(looks.look(metrics_of)) == {"bash": number}
        if number % 500 == 0:
            stage.hand_over()
            assert calls(looks.look(metrics_of)) == {"bash": number}
