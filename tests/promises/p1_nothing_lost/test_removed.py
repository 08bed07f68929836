"""Files that somebody removes under living processes: what they still hold is handed over, or it is told."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from m31a_mp import (
    Collector,
    Recorder,
    SessionOwnedError,
    attach,
    compact,
    load,
)
from m31a_mp.journal.append import Journal
from m31a_mp.metrics import file as metrics_file
from m31a_mp.segments import staging, writer
from m31a_mp.segments.segment import Segment
from m31a_mp.session.lease import Lease
from m31a_mp.session.paths import Session
from metrics_of import calls
from workers import Forked, leased, locked

pytestmark = pytest.mark.usefixtures("segments_at_once")


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("end", [Recorder.flush, Recorder.stop])
def test_records_of_a_worker_whose_session_was_removed_are_in_the_new_one(
    session: Session, end: object, again: bool
) -> None:
    recorder = attach("s", session.sessions_dir)
    for _ in range(100):
        recorder.record_tool_call("bash", True, 1)
    shutil.rmtree(session.root)
    if again:
        session.make()
    for _ in range(10):
        recorder.record_tool_call("bash", True, 1)
    end(recorder)  # type: ignore[operator]
    recorder.record_tool_call("later", True, 1)
    recorder.flush()
    assert calls(compact(session.sessions_dir, "s").metrics) == {"bash": 110, "later": 1}
    recorder.stop()
    assert calls(compact(session.sessions_dir, "s").metrics) == {"bash": 110, "later": 1}
    assert os.listdir(session.segments) == []


def test_records_that_are_called_fsynced_are_in_the_new_session(session: Session) -> None:
    recorder = attach("s", session.sessions_dir, durability="disk")
    recorder.record_tool_call("before", True, 1)
    shutil.rmtree(session.root)
    for number in range(1, 11):
        recorder.record_tool_call("after", True, 1)
        assert Path(session.journal).read_bytes().count(b'"after"') == number
    assert calls(compact(session.sessions_dir, "s").metrics) == {"after": 10}


def test_segment_that_is_full_after_its_removal_is_handed_over_whole_and_before_its_successors(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FIRST_SEGMENT_BYTES", 1024)
    monkeypatch.setattr(writer, "MAX_SEGMENT_BYTES", 1024)
    recorder = attach("s", session.sessions_dir)
    recorder.record_tool_call("bash", True, 1)
    shutil.rmtree(session.root)
    session.make()
    with locked(session):  # nothing can be handed over when it is full
        for _ in range(50):
            recorder.record_tool_call("bash", True, 1)
    assert calls(compact(session.sessions_dir, "s").metrics)["bash"] < 51  # the rest is only here
    recorder.flush()
    assert calls(compact(session.sessions_dir, "s").metrics) == {"bash": 51}
    recorder.stop()
    assert calls(compact(session.sessions_dir, "s").metrics) == {"bash": 51}


def test_drops_in_a_segment_that_was_removed_are_told_once(session: Session) -> None:
    recorder = attach("s", session.sessions_dir)
    recorder.record_tool_call("bash", True, 1)
    (one,) = staging.staging(session)._writers
    one._drop("no_space")
    shutil.rmtree(session.root)
    for _ in range(2):
        recorder.flush()
        found = compact(session.sessions_dir, "s").metrics
        assert (calls(found), found.dropped) == ({"bash": 1}, {"no_space": 1})


@pytest.mark.slow
def test_owner_of_a_removed_session_owns_the_new_one_and_counts_on(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        collector.record_tool_call("merged", True, 1)
        collector.flush()
        collector.record_tool_call("staged", True, 1)
        shutil.rmtree(sessions / "s")
        with Forked(lambda: attach("s", sessions).record_tool_call("worker", True, 1)) as child:
            assert child.wait() == 0
        collector.record_tool_call("staged", True, 1)
        collector.flush()
        with pytest.raises(SessionOwnedError):
            Collector("s", sessions)
        assert calls(load(sessions, "s")) == {"staged": 2, "worker": 1}
    assert calls(load(sessions, "s")) == {"staged": 2, "worker": 1}


@pytest.mark.slow
def test_owner_whose_lease_was_removed_takes_it_again(sessions: Path) -> None:
    with Collector("s", sessions) as collector:
        (sessions / "s" / "owner.lock").unlink()
        collector.record_tool_call("bash", True, 1)
        collector.flush()
        with pytest.raises(SessionOwnedError, match="this process"):
            Collector("s", sessions)


@pytest.mark.slow
def test_owner_whose_lease_another_has_by_now_says_so_and_merges_nothing(
    sessions: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Collector("s", sessions)
    one.record_tool_call("one", True, 1)
    (sessions / "s" / "owner.lock").unlink()
    with Collector("s", sessions) as other:
        other.record_tool_call("other", True, 1)
        published = (sessions / "s" / "metrics.json").read_bytes()
        one.record_tool_call("one", True, 1)
        for _ in range(2):
            with pytest.raises(SessionOwnedError):
                one.flush()
        assert (sessions / "s" / "metrics.json").read_bytes() == published
        one.stop()
        assert "is owned by" in caplog.text
    assert calls(load(sessions, "s")) == {"one": 2, "other": 1}


def test_compaction_whose_lease_is_removed_before_it_publishes_publishes_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach("s", session.sessions_dir).record_tool_call("bash", True, 1)
    fold = metrics_file.read_totals

    def remove(where: Session) -> object:
        Path(session.owner_lock).unlink()
        return fold(where)

    with monkeypatch.context() as patch:
        patch.setattr(metrics_file, "read_totals", remove)
        with pytest.raises(SessionOwnedError, match="removed"):
            compact(session.sessions_dir, "s")
    assert not Path(session.metrics).exists()
    assert calls(compact(session.sessions_dir, "s").metrics) == {"bash": 1}


def test_lease_that_is_removed_is_not_held(session: Session) -> None:
    with leased(session) as lease:
        Path(session.owner_lock).unlink()
        assert not lease.held
        other = Lease.take(session)
        assert other.held
        assert not lease.held
        other.release()


def test_holder_that_comes_after_the_lock_file_was_removed_holds_the_one_that_is_there(
    session: Session,
) -> None:
    inside = threading.Event()
    removed = threading.Event()
    held = []

    def hold() -> None:
        inside.set()
        removed.wait()

    thread = threading.Thread(target=Journal(session).hold, args=(hold,))
    thread.start()
    inside.wait()
    waiting = threading.Thread(
        target=Journal(session).hold, args=(lambda: held.append(os.stat(session.journal_lock).st_ino),)
    )
    Path(session.journal_lock).unlink()
    waiting.start()
    waiting.join()
    removed.set()
    thread.join()
    assert held == [os.stat(session.journal_lock).st_ino]


def test_session_that_is_removed_again_and_again_while_threads_record_loses_only_what_was_handed_over(
    sessions: Path,
) -> None:
    recorder = attach("s", sessions)
    done = threading.Event()
    recorded = 0

    def record() -> None:
        nonlocal recorded
        while not done.is_set():
            recorder.record_tool_call("bash", True, 1)
            recorded += 1

    thread = threading.Thread(target=record)
    thread.start()
    for _ in range(50):
        shutil.rmtree(sessions / "s", ignore_errors=True)
    done.set()
    thread.join()
    recorder.flush()  # makes it anew, and raises nothing
    before = recorded
    recorder.record_tool_call("last", True, 1)
    recorder.stop()
    found = compact(sessions, "s").metrics
    assert calls(found)["last"] == 1, found.dropped
    assert calls(found).get("bash", 0) <= before


def test_segment_that_is_removed_while_its_successor_is_made_loses_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.named("s", tmp_path)
    create = Segment.create

    def create_and_remove_the_old_one(*args: object) -> Segment:
        removed = sorted((tmp_path / "s" / "segments").glob("*.seg"))
        made = create(*args)  # type: ignore[arg-type]
        for path in removed:
            path.unlink()
        return made

    recorder = attach("s", tmp_path)
    recorder.record_tool_call("tool", True, 1)
    monkeypatch.setattr(Segment, "create", create_and_remove_the_old_one)
    recorder.record_phase_transition("x" * 4000)
    for _ in range(10):
        recorder.record_phase_transition("x" * 4000)
    recorder.record_tool_call("tool", True, 1)
    monkeypatch.undo()
    recorder.flush()
    metrics = compact(tmp_path, session.id).metrics
    assert calls(metrics) == {"tool": 2}
    assert [phase.transition_count for phase in metrics.phases] == [11]
