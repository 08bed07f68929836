"""A session's directory, its names, and the numbers of its journals."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from m31a_mp import Collector, MetricsError, attach, compact, load
from m31a_mp.metrics import file as metrics_file
from m31a_mp.session.paths import MAX_WAITING, Session
from strategies import Record


def test_naming_a_session_touches_nothing(sessions: Path) -> None:
    session = Session.named("s", sessions)
    assert not session.exists()
    assert session.sealed() == []
    assert not sessions.exists()


@pytest.mark.parametrize("wrong", [None, 1, b"s", Path("s")])
def test_session_id_that_is_no_string_is_a_type_error(sessions: Path, wrong: str) -> None:
    with pytest.raises(TypeError, match="session_id"):
        Session.named(wrong, sessions)


@pytest.mark.parametrize("wrong", [None, 1, b"/tmp"])
def test_directory_that_is_no_path_is_a_type_error(wrong: str) -> None:
    with pytest.raises(TypeError):
        Session.named("s", wrong)


def test_relative_directory_is_resolved_when_the_session_is_named(
    sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sessions.parent)
    session = Session.named("s", sessions.name)
    monkeypatch.chdir("/")
    assert session.root == str(sessions / "s")


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("name", ["a", "b", "s", "segments"])
def test_exception_of_a_handler_at_a_new_directory_reaches_the_program(
    sessions: Path, name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def strike(path: str, mode: int) -> None:
        if side == "after" or os.path.basename(path) != name:
            make(path, mode)
        if os.path.basename(path) == name:
            raise TimeoutError("time is up")

    session = Session.named("s", sessions / "a" / "b")
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", strike)
        with pytest.raises(TimeoutError, match="time is up"):
            session.make()
    session.make()
    for directory in (sessions / "a", sessions / "a" / "b", sessions / "a" / "b" / "s"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_directories_that_exist_keep_their_mode(sessions: Path) -> None:
    sessions.mkdir(mode=0o755)
    (sessions / "s").mkdir(mode=0o750)
    Session.named("s", sessions).make()
    assert stat.S_IMODE(sessions.stat().st_mode) == 0o755
    assert stat.S_IMODE((sessions / "s").stat().st_mode) == 0o750
    assert stat.S_IMODE((sessions / "s" / "segments").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["s", "s/segments"])
@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_directory_that_is_none_is_an_error_and_a_symlink_is_not_followed(
    sessions: Path, tmp_path: Path, name: str, kind: str
) -> None:
    (sessions / name).parent.mkdir(parents=True)
    if kind == "file":
        (sessions / name).touch()
    else:
        (sessions / name).symlink_to(tmp_path)
    with pytest.raises((MetricsError, OSError)):
        Collector("s", sessions)
    recorder = attach("s", sessions)
    recorder.record_tool_call("bash", True, 1)
    recorder.stop()
    assert list(tmp_path.iterdir()) == []


def test_sealed_journals_are_folded_in_the_order_of_their_numbers(session: Session) -> None:
    for number in (2, 10, 1):
        data = b'{"event":"phase_duration","phase":"plan","duration_ms":%d,"success":true}\n' % number
        Path(session.sealed_as(number)).write_bytes(data)
    (Path(session.root) / "journal.1.ndjson").write_bytes(b"somebody's")
    assert [number for number, _ in session.sealed()] == [1, 2, 10]
    compaction = compact(session.sessions_dir, "s")
    assert compaction.records == 3
    assert compaction.metrics.phases[0].duration_ms == 10
    assert session.sealed() == []
    assert (Path(session.root) / "journal.1.ndjson").exists()


def test_journal_is_never_sealed_under_a_number_that_counts_as_folded(session: Session) -> None:
    line = Record("heal_trigger", ("plan",)).line(1)
    for _ in range(3):
        Path(session.journal).write_bytes(line)
        compact(session.sessions_dir, "s")
    folded = metrics_file.read_totals(session)
    assert folded
    Path(session.sealed_as(folded.journal + 4)).write_bytes(line)
    Path(session.journal).write_bytes(line)
    compact(session.sessions_dir, "s")
    Path(session.journal).write_bytes(line)
    assert compact(session.sessions_dir, "s").metrics.phases[0].heal_trigger_count == 6


def test_journal_is_not_sealed_over_one_that_a_crash_left_sealed(session: Session) -> None:
    line = Record("heal_trigger", ("plan",)).line(1)
    Path(session.sealed_as(1)).write_bytes(line)
    Path(session.journal).write_bytes(line)
    assert compact(session.sessions_dir, "s").metrics.phases[0].heal_trigger_count == 2


@pytest.mark.parametrize("number", ["9" * 18, "9" * 19, "9" * 30, "9" * 200, "\u0661" * 12])
def test_planted_journal_of_an_absurd_number_stops_nothing(session: Session, number: str) -> None:
    line = Record("heal_trigger", ("plan",)).line(1)
    (Path(session.root) / f"journal.{number}.ndjson").write_bytes(line)
    for wanted in (1, 2, 3):
        Path(session.journal).write_bytes(line)
        compaction = compact(session.sessions_dir, "s")
        assert compaction.metrics.phases[0].heal_trigger_count in (wanted, wanted + 1)


@pytest.mark.parametrize("kind", ["directory", "symlink", "dangling"])
def test_planted_journal_that_is_no_file_is_rejected_once_and_stops_nothing(
    session: Session, kind: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    if kind == "directory":
        Path(session.sealed_as(7)).mkdir()
    else:
        Path(session.sealed_as(7)).symlink_to(victim)
    if kind == "symlink":
        victim.write_bytes(Record("heal_trigger", ("plan",)).line(1))
    assert attach("s", session.sessions_dir).snapshot().phases == []
    for flushes in range(1, 4):
        with Collector("s", session.sessions_dir) as collector:
            collector.record_heal_trigger("plan")
            assert collector.snapshot().phases[0].heal_trigger_count == flushes
            collector.flush()
            metrics = collector.snapshot()
        assert (metrics.phases[0].heal_trigger_count, metrics.rejected) == (flushes, 1)
    assert session.sealed() == []
    assert kind != "symlink" or victim.exists()


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_planted_journal_with_a_number_around_the_largest_that_may_wait_costs_no_record(
    session: Session, beyond: int
) -> None:
    with Collector("s", session.sessions_dir) as collector:
        for _ in range(2):
            collector.record_heal_trigger("plan")
            collector.flush()
        folded = metrics_file.read_totals(session)
        assert folded
        Path(session.sealed_as(folded.journal + MAX_WAITING + beyond)).touch()
        for heals in range(3, 6):
            collector.record_heal_trigger("plan")
            collector.flush()
            metrics = load(session.sessions_dir, "s")
            assert metrics
            assert (metrics.phases[0].heal_trigger_count, metrics.rejected) == (heals, beyond > 0)
    assert session.sealed() == []


@pytest.mark.parametrize("loss", ["damaged", "missing"])
def test_journal_sealed_after_a_rebuild_is_counted_by_a_copy_that_is_restored(
    session: Session, loss: str
) -> None:
    line = Record("heal_trigger", ("plan",)).line(1)
    with Collector("s", session.sessions_dir) as collector:
        for _ in range(5):
            collector.record_heal_trigger("plan")
            collector.flush()
    good = Path(session.metrics).read_bytes()
    if loss == "damaged":
        Path(session.metrics).write_bytes(b"garbage")
    else:
        Path(session.metrics).unlink()
    Path(session.journal).write_bytes(line)
    with pytest.MonkeyPatch.context() as patch:  # a crash after sealing

        def crash(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(metrics_file, "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            compact(session.sessions_dir, "s", rebuild=True)
    assert len(session.sealed()) == 1
    Path(session.metrics).write_bytes(good)
    assert compact(session.sessions_dir, "s").metrics.phases[0].heal_trigger_count == 6
    assert session.sealed() == []


def test_numbers_go_on_from_those_of_a_rebuild(session: Session) -> None:
    line = Record("heal_trigger", ("plan",)).line(1)
    numbers = []
    for _ in range(3):
        Path(session.journal).write_bytes(line)
        compact(session.sessions_dir, "s")
        folded = metrics_file.read_totals(session)
        assert folded
        numbers.append(folded.journal)
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert MAX_WAITING / 10 < numbers[0] < MAX_WAITING
