"""The first records of a process go straight to the journal, or to a segment if that cannot be."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from errno import ENOSPC
from functools import partial
from pathlib import Path

import pytest

from m31a_mp import Collector, Recorder, attach, compact, verify
from m31a_mp.segments import staging
from m31a_mp.segments.staging import STRAIGHT_RECORDS
from m31a_mp.segments.writer import Writer
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from metrics_of import calls, checkpoint_writers, count, counted
from moments import Moments, traces_every_instruction
from workers import BoomError, Forked, locked

INTERRUPTS = 300


def record(recorder: Recorder, times: int = 1, name: str = "tool") -> None:
    for _ in range(times):
        recorder.record_tool_call(name, True, 1)


def segments_of(session: Session) -> list[str]:
    return os.listdir(session.segments)


def die_after(session: Session, times: int) -> None:
    with Forked(record, attach("s", session.sessions_dir), times) as worker:
        assert worker.wait() == 0


# --- Where a record goes ------------------------------------------------------------------------------


def test_process_makes_a_segment_for_the_first_record_after_those_that_go_straight(session: Session) -> None:
    recorder = attach("s", session.sessions_dir)
    for number in range(1, STRAIGHT_RECORDS + 1):
        record(recorder)
        assert Path(session.journal).read_bytes().count(b"\n") == number
        assert segments_of(session) == []
    record(recorder)
    assert len(segments_of(session)) == 1
    assert calls(recorder.snapshot()) == {"tool": STRAIGHT_RECORDS + 1}


def test_workers_that_record_little_and_die_leave_no_file_and_no_mark(session: Session) -> None:
    with Collector("s", session.sessions_dir) as collector:
        for _ in range(20):
            die_after(session, 3)
        assert segments_of(session) == []
        collector.flush()
        assert checkpoint_writers(Path(session.sessions_dir)) == set()
        assert calls(collector.snapshot()) == {"tool": 60}


def test_forked_child_of_a_process_that_has_a_segment_records_straight_again(session: Session) -> None:
    recorder = attach("s", session.sessions_dir)
    record(recorder, STRAIGHT_RECORDS + 1)
    with Forked(record, recorder, 3) as child:
        assert child.wait() == 0
    assert len(segments_of(session)) == 1
    assert Path(session.journal).read_bytes().count(b"\n") == STRAIGHT_RECORDS + 3


def test_record_that_finds_the_lock_taken_makes_a_segment_and_so_do_all_after_it(session: Session) -> None:
    recorder = attach("s", session.sessions_dir)
    with locked(session):
        record(recorder)
    record(recorder)
    assert len(segments_of(session)) == 1
    assert not Path(session.journal).exists()
    assert calls(compact(session.sessions_dir, "s").metrics) == {"tool": 2}


def test_call_that_begins_makes_a_segment_whose_lock_shows_that_its_process_lives(session: Session) -> None:
    recorder = attach("s", session.sessions_dir)
    record(recorder)
    with recorder.tool_call("tool"):
        assert len(segments_of(session)) == 1


def test_record_too_long_for_a_line_of_the_journal_makes_a_segment(session: Session) -> None:
    attach("s", session.sessions_dir).record_cancellation("plan", "x" * 4096)
    assert len(segments_of(session)) == 1
    assert len(compact(session.sessions_dir, "s").metrics.cancellations) == 1


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_record_in_a_session_that_is_removed_between_records_makes_it_again(
    session: Session, durability: str
) -> None:
    recorder = attach("s", session.sessions_dir, durability=durability)
    for _ in range(STRAIGHT_RECORDS):
        record(recorder)
        shutil.rmtree(session.root)
    record(recorder)
    assert calls(compact(session.sessions_dir, "s").metrics) == {"tool": 1}


def test_durable_record_that_goes_straight_is_fsynced(
    session: Session, durable_calls: list[tuple[str, str]]
) -> None:
    record(attach("s", session.sessions_dir, durability="disk"))
    line = durable_calls.index(("pwrite", "journal.ndjson"))
    assert durable_calls.index(("fsync", "journal.ndjson")) > line


# --- Deaths and trouble in the middle -----------------------------------------------------------------


def partial_writes(part: Callable[[bytes], bytes], then: Callable[[], object]) -> Callable[..., int]:
    pwrite = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        written = pwrite(fd, part(data), offset)
        then()
        return written

    return write


@pytest.mark.parametrize("missing", [1000, 100, 2, 1, 0])
def test_death_within_the_write_of_a_line_costs_nothing_that_was_acknowledged_and_doubles_nothing(
    session: Session, missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        recorder = attach("s", session.sessions_dir)
        record(recorder, 2)
        kill = partial_writes(
            lambda data: data[: max(0, len(data) - missing)], lambda: os.kill(os.getpid(), signal.SIGKILL)
        )
        monkeypatch.setattr(os, "pwrite", kill)
        record(recorder)

    with Forked(die) as worker:
        assert worker.wait() == -signal.SIGKILL
    expected = 3 if missing < 2 else 2  # a line without its newline is whole
    assert count(attach("s", session.sessions_dir).snapshot()) == expected
    die_after(session, 1)
    assert verify(session.sessions_dir, "s") == []
    assert calls(compact(session.sessions_dir, "s").metrics) == {"tool": expected + 1}


@pytest.mark.parametrize("can_cut", [True, False])
@pytest.mark.parametrize("missing", [1000, 100, 2, 1])
def test_write_that_falls_short_counts_its_record_once_though_the_owner_flushes_at_once(
    session: Session, missing: int, can_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector("s", session.sessions_dir) as owner:
        recorder = attach("s", session.sessions_dir)
        stage = staging.staging(session)
        make = stage._new_writer

        def flush_before_the_segment_is_made() -> Writer:
            owner.flush()
            return make()

        def fail(*_: object) -> None:
            raise OSError(ENOSPC, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(stage, "_new_writer", flush_before_the_segment_is_made)
            short = partial_writes(lambda data: data[: max(0, len(data) - missing)], patch.undo)
            patch.setattr(os, "pwrite", short)
            if not can_cut:
                patch.setattr(os, "ftruncate", fail)
            record(recorder)
        owner.flush()
        assert calls(owner.snapshot()) == {"tool": 1}
        record(recorder)
        owner.flush()
        assert calls(owner.snapshot()) == {"tool": 2}
    assert verify(session.sessions_dir, "s") == []


@pytest.mark.parametrize("limit", [200, 64 * 1024])
def test_limit_of_file_sizes_whose_signal_is_fatal_kills_no_process(session: Session, limit: int) -> None:
    line = b'{"event":"phase_transition","phase":"plan"}\n'
    Path(session.journal).write_bytes(line * 5000)

    def record_within_limits() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        recorder = attach("s", session.sessions_dir)
        record(recorder, 2000)
        recorder.stop()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open(session.root + "/mine", "wb", buffering=0) as file:
            file.write(bytes(limit))
            file.write(b"1")  # the signal is fatal

    with Forked(record_within_limits) as worker:
        assert worker.wait() == -signal.SIGXFSZ
    metrics = compact(session.sessions_dir, "s").metrics
    assert metrics.phases[0].transition_count == 5000
    assert count(metrics) == (0 if limit == 200 else 2000) or metrics.dropped


# --- Handlers at any moment ---------------------------------------------------------------------------


def interrupted_at_every_moment(sessions: Path, places: Path, handler: Callable[[Recorder], object]) -> None:
    """Record the first record of a process again and again, each time with a handler one moment later."""
    with places.open("w") as told:
        nth, where = 0, "the beginning"
        while where:
            nth += 1
            recorder = as_in_a_new_process(sessions)
            moments = Moments(nth, partial(handler, recorder))
            moments.trace(partial(record, recorder, 1, f"call {nth}"))
            where = moments.where
            told.write(f"{where}\n")


def as_in_a_new_process(sessions: Path) -> Recorder:
    staging._stagings.clear()
    return attach("s", sessions)


def record_another(recorder: Recorder) -> None:
    record(recorder, 1, "handler")


def look(recorder: Recorder) -> None:
    recorder.snapshot()


@pytest.mark.slow
@traces_every_instruction
@pytest.mark.parametrize("handler", [record_another, look, Recorder.stop])
def test_handler_at_any_moment_of_a_record_that_goes_straight_loses_and_doubles_nothing(
    session: Session, handler: Callable[[Recorder], object], tmp_path: Path
) -> None:
    sessions, places = Path(session.sessions_dir), tmp_path / "places"
    with Forked(interrupted_at_every_moment, sessions, places, handler) as child:
        assert child.wait() == 0
    told = places.read_text().splitlines()
    assert len(told) > 60
    compact(sessions, "s")
    expected = {f"call {nth}": 1 for nth in range(1, len(told) + 1)}
    if handler is record_another:
        expected["handler"] = len(told) - 1  # the last call had not so many moments
    assert counted(sessions) == expected
    assert verify(sessions, "s") == []


def interrupted_again_and_again(sessions: Path, places: Path, error: type[BaseException]) -> None:
    """A signal handler raises in the middle of first records, at moments that nobody foresees."""
    moments, nth, raised, armed, longest = random.Random(7), 0, 0, False, 1e-4

    def strike(*_: object) -> None:
        nonlocal raised
        if armed:
            raised += 1
            raise error

    signal.signal(signal.SIGALRM, strike)
    with Collector("s", sessions) as owner, places.open("w") as told:
        while raised < INTERRUPTS:
            nth += 1
            struck, caught = raised, False
            recorder, returned, started = as_in_a_new_process(sessions), False, time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, longest))
            try:
                armed = True
                record(recorder, 1, f"call {nth}")
                returned = True
                armed = False
                longest = max(1e-5, 0.9 * longest + 0.1 * (time.perf_counter() - started))
            except error:
                caught = True
            armed = False
            assert caught == (raised > struck)  # the exception is the program's
            signal.setitimer(signal.ITIMER_REAL, 0)
            told.write(f"{int(returned)}\n")
            if nth % 20 == 0:
                owner.flush()  # and forgets the marks of all who have no segment


@pytest.mark.slow
@pytest.mark.parametrize("error", [BoomError, TimeoutError, ValueError])
def test_exception_of_a_handler_in_a_record_that_goes_straight_doubles_nothing(
    session: Session, error: type[BaseException], tmp_path: Path
) -> None:
    sessions, places = Path(session.sessions_dir), tmp_path / "places"
    with Forked(interrupted_again_and_again, sessions, places, error) as child:
        assert child.wait() == 0
    found = counted(sessions)
    for nth, returned in enumerate(places.read_text().split(), 1):
        assert int(returned) <= found.get(f"call {nth}", 0) <= 1
    assert verify(sessions, "s") == []


@pytest.mark.parametrize("error", [BoomError, TimeoutError, ValueError])
@pytest.mark.parametrize("side", ["before", "after"])
def test_exception_at_either_side_of_the_write_counts_the_record_at_most_once(
    session: Session, side: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_there(point: str) -> None:
        if point == f"{side} append line":
            raise error

    with Collector("s", session.sessions_dir) as owner:
        with monkeypatch.context() as patch:
            patch.setattr(files, "reached", raise_there)
            patch.setattr(Writer, "_make_room", flushing_first(owner, patch))
            try:
                record(attach("s", session.sessions_dir))
            except error:
                is_told = True
            else:
                is_told = False
        owner.flush()
        assert count(owner.snapshot()) <= 1
        assert is_told  # the exception is the program's
    assert verify(session.sessions_dir, "s") == []


def flushing_first(owner: Collector, patch: pytest.MonkeyPatch) -> Callable[[Writer, int], bool]:
    """Have the owner flush, undisturbed, before the record gets a segment."""

    def flush_and_make_room(writer: Writer, need: int) -> bool:
        patch.undo()
        owner.flush()
        return writer._make_room(need)

    return flush_and_make_room
