"""Random operations of several processes on one session, against a plain dict."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from weakref import ref

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.inspection.snapshot import Looks
from m31a_mp.journal.append import Journal
from m31a_mp.metrics import totals
from m31a_mp.segments import staging, writer
from m31a_mp.segments.drain import drain
from m31a_mp.segments.reader import list_segments
from m31a_mp.segments.staging import Staging
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from m31a_mp.system.flock import FileLock
from strategies import Record, around_line_ends, entries, expected, few_records, killed_while_appending
from workers import changed, locked, unmap

_EPOCH = datetime.fromtimestamp(0, UTC)
_NOW = 1_800_000_000_000_000_000
_ODD = 0x9E3779B97F4A7C15
_MEMORY = Path("/dev/shm")  # nothing here needs a disk, and an fsync there is free
_YEAR = 365 * 24 * 3600 * 10**9

slots = st.integers(0, 2)


class Crash(BaseException):
    """A process ends here."""


class Process:
    """What a process of its own would have: its staging, and a recorder on it."""

    def __init__(self, session: Session) -> None:
        self.staging = Staging(session)
        self._session = session
        with self.running():
            self.recorder = attach(session.id, session.sessions_dir)

    @contextmanager
    def running(self) -> Iterator[None]:
        staging._stagings[self._session.root] = ref(self.staging)
        try:
            yield
        finally:
            del staging._stagings[self._session.root]

    def die(self) -> None:
        """As SIGKILL: the kernel unmaps its memory, and nothing else happens."""
        unmap(self.staging)


class Mayhem(RuleBasedStateMachine):
    """Slot 0 is the process of the owner, the other slots are workers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(writer, "FIRST_SEGMENT_BYTES", 640)
        self.patch.setattr(writer, "MAX_SEGMENT_BYTES", 2048)
        ticks = itertools.count(_NOW, 1000)
        self.patch.setattr(staging, "time_ns", lambda: next(ticks))
        for module in (time, totals):  # no foreign record is of a time that is yet to come
            self.patch.setattr(module, "time_ns", lambda: _NOW + 2 * _YEAR)
        writers = itertools.count(1)  # their ids are in no order, and the same when an example is repeated
        self.patch.setattr(os, "urandom", lambda n: (next(writers) * _ODD % 2**64).to_bytes(n, "big"))
        # That of a process which is gone: whether it lives is then told by the lock alone.
        gone = changed(process.current(), started=1)
        self.patch.setattr(process, "current", lambda: gone)
        self.ticks = ticks
        self.foreign = itertools.count(1)
        self.directory = tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)
        self.session = Session.named("s", Path(self.directory.name))
        self.looks = Looks(self.session)  # of a program that watches all owners
        self.recorded: list[tuple[int, Record]] = []
        self.processes = [Process(self.session) for _ in range(3)]
        self.collector = self._open()
        self.started_at = self.collector.snapshot().started_at

    def teardown(self) -> None:
        try:
            self.collector.flush()
            self._check_file()
            for one in self.processes[1:]:
                one.die()
            for half_made in Path(self.session.segments).glob(
                ".*"
            ):  # its maker is dead, but might have been slow
                os.utime(half_made, (0, 0))
            self._stop()
            self._check_file()
            left = {path.name for path in Path(self.session.root).iterdir()}
            assert left == {"metrics.json", "journal.lock", "owner.lock", "segments"}
            assert not list(Path(self.session.segments).iterdir())
        finally:
            self.collector.stop()
            self.patch.undo()
            self.directory.cleanup()

    def _check_file(self) -> None:
        metrics = load(self.session.sessions_dir, "s")
        assert metrics
        assert entries(metrics) == expected(self.recorded)
        first = min((moment for moment, _ in self.recorded), default=_NOW + 2 * _YEAR)
        assert metrics.started_at == min(self.started_at, _EPOCH + timedelta(microseconds=first // 1000))

    def _open(self) -> Collector:
        with self.processes[0].running():
            return Collector("s", self.session.sessions_dir)

    def _stop(self) -> None:
        with self.processes[0].running():
            self.collector.stop()

    def _crash(self, slot: int) -> None:
        self.processes[slot].die()
        self.processes[slot] = Process(self.session)
        if slot == 0:
            assert self.collector._lease
            self.collector._lease._lock.release()  # as the kernel does; the line in the file stays
            self.collector._lease = None

    @contextmanager
    def _crash_at(self, step: int) -> Iterator[None]:
        steps = itertools.count(1)

        def reached(point: str) -> None:
            if next(steps) == step:
                raise Crash(point)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "reached", reached)
            yield

    def _record(self, slot: int, record: Record) -> None:
        time = next(self.ticks) + 1000  # what the clock will say next
        record.perform(self.processes[slot].recorder)
        self.recorded.append((time, record))

    @rule(slot=slots, record=few_records)
    def record(self, slot: int, record: Record) -> None:
        self._record(slot, record)

    @rule(slot=slots, record=few_records, times=st.integers(2, 40))
    def record_many(self, slot: int, record: Record, times: int) -> None:
        for _ in range(times):
            self._record(slot, record)

    @rule(slot=slots, record=few_records, times=st.integers(2, 40))
    def record_while_the_journal_is_locked(self, slot: int, record: Record, times: int) -> None:
        lock = FileLock(self.session.journal_lock)
        assert lock.acquire()
        for _ in range(times):
            self._record(slot, record)
        lock.release()

    @rule(slot=slots, record=few_records, records=st.integers(1, 20), step=st.integers(1, 12))
    def crash_while_recording(self, slot: int, record: Record, records: int, step: int) -> None:
        acknowledged = len(self.recorded)
        time = 0
        try:
            with self._crash_at(step):
                for _ in range(records):
                    time = next(self.ticks) + 1000
                    record.perform(self.processes[slot].recorder)
                    self.recorded.append((time, record))
        except Crash:
            self._crash(slot)
            if slot == 0:
                self.collector = self._open()
            # The call did not return: its record may be there, or not.
            in_doubt = [*self.recorded, (time, record)]
            if entries(self.collector.snapshot()) == expected(in_doubt):
                self.recorded = in_doubt
        assert len(self.recorded) >= acknowledged

    @rule(slot=st.integers(1, 2))
    def hand_over(self, slot: int) -> None:
        with self.processes[slot].running():
            self.processes[slot].recorder.flush()

    @rule(slot=st.integers(1, 2))
    def stop_worker(self, slot: int) -> None:
        with self.processes[slot].running():
            self.processes[slot].recorder.stop()

    @rule(slot=st.integers(1, 2))
    def crash_worker(self, slot: int) -> None:
        self._crash(slot)

    @rule(slot=slots, record=few_records, line=st.integers(0, 3), shift=st.sampled_from([-20, -1, 0, 1, 20]))
    def crash_of_another_while_appending(self, slot: int, record: Record, line: int, shift: int) -> None:
        """Whoever drained is gone; some of the bytes are there, and all of the segments."""
        for _ in range(staging.STRAIGHT_RECORDS + 3):  # the last ones are in a segment
            self._record(slot, record)
        killed_while_appending(self.session, around_line_ends(line, shift))

    @rule()
    def drain(self) -> None:
        log = Journal(self.session)
        with locked(self.session):
            drain(log, list_segments(self.session.segments))

    @rule()
    def flush(self) -> None:
        self.collector.flush()
        self._check_file()

    @rule(step=st.integers(1, 30))
    def crash_while_flushing(self, step: int) -> None:
        try:
            with self._crash_at(step):
                self.collector.flush()
        except Crash:
            self._crash(0)
            self.collector = self._open()

    @rule(step=st.integers(1, 30))
    def crash_while_opening(self, step: int) -> None:
        self._crash(0)
        try:
            with self._crash_at(step):
                self.collector = self._open()
        except Crash:
            self.collector = self._open()

    @rule()
    def reopen(self) -> None:
        self._stop()
        self._check_file()
        self.collector = self._open()

    @rule()
    def record_after_stop_and_compact(self) -> None:
        self._stop()
        self._record(0, Record("tool_call", ("late", True, 1)))
        compaction = compact(self.session.sessions_dir, "s")
        assert compaction.records == 1
        assert entries(compaction.metrics) == expected(self.recorded)
        self.collector = self._open()

    @rule()
    def crash_owner_and_compact(self) -> None:
        self._crash(0)
        compact(self.session.sessions_dir, "s")
        self._check_file()
        self.collector = self._open()

    @rule()
    def look_from_outside(self) -> None:
        metrics = self.looks.look(lambda fold: fold.totals.to_metrics("s"))
        assert entries(metrics) == expected(self.recorded)

    @rule(record=few_records, shift=st.sampled_from([-_YEAR, 0, _YEAR]))
    def append_foreign_line(self, record: Record, shift: int) -> None:
        time = _NOW + shift + next(self.foreign)
        with Path(self.session.journal).open("ab") as stream:
            stream.write(record.line(time))
        self.recorded.append((time, record))

    @invariant()
    def snapshot_is_what_was_recorded(self) -> None:
        metrics = self.collector.snapshot()
        assert entries(metrics) == expected(self.recorded)
        first = min((moment for moment, _ in self.recorded), default=_NOW + 2 * _YEAR)
        assert metrics.started_at == min(self.started_at, _EPOCH + timedelta(microseconds=first // 1000))
        assert not metrics.dropped
        assert not metrics.rejected

    @invariant()
    def verify_finds_nothing(self) -> None:
        assert verify(self.session.sessions_dir, "s") == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # to shrink an example that fails takes long
def test_random_operations_add_up_to_what_was_recorded() -> None:
    run_state_machine_as_test(
        Mayhem,
        settings=settings(
            max_examples=80,
            stateful_step_count=30,
            phases=set(Phase) - {Phase.explain},
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
