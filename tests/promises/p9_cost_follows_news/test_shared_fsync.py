"""Threads that record to the disk share its fsyncs: one is enough for all that wait."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from m31a_mp import attach, compact
from m31a_mp.segments import staging
from m31a_mp.session.paths import Session
from metrics_of import count

pytestmark = pytest.mark.usefixtures("small_segments")


class SharedDisk:
    """Threads that record to the disk. An fsync of the journal lasts until every other thread waits, too.

    It stands in for the counter of its recorder, from which a call takes a ticket when its record is
    staged, and whoever syncs for all another one.
    """

    def __init__(self, session: Session, threads: int) -> None:
        self.fsyncs = 0
        self.too_early: list[str] = []
        self.kept_waiting = False
        self.recorder = attach(session.id, session.sessions_dir, durability="disk")
        self._journal = session.journal
        self._alive = threads
        self._changed = threading.Condition()
        self._has_begun = threading.Event()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, int] = {}  # threads whose records are not on the disk, and their tickets
        self._staged = 0
        self._on_disk = b""
        stage = staging.staging(session)
        stage._group_commit._tickets = self  # type: ignore[assignment]

    def __next__(self) -> int:
        with self._changed:
            number = next(self._numbers)
            if threading.get_ident() in self._waiting:
                self._staged = number
            else:
                self._waiting[threading.get_ident()] = number
                self._changed.notify_all()
            return number

    def _fsync(self, fsync: Callable[[int], None], fd: int) -> None:
        if os.fstat(fd).st_ino != os.stat(self._journal).st_ino:
            return fsync(fd)
        covered = Path(self._journal).read_bytes()  # what is written later need not be
        with self._changed:
            self.fsyncs += 1
            self.kept_waiting |= not self._changed.wait_for(
                lambda: self.kept_waiting or len(self._waiting) == self._alive, timeout=5
            )
            fsync(fd)
            self._on_disk = covered
            # Their calls may return now, also while another fsync is under way.
            self._waiting = {who: ticket for who, ticket in self._waiting.items() if ticket >= self._staged}
        return None

    def _record(self, name: str, records: int) -> None:
        self._has_begun.set()
        try:
            for i in range(records):
                self.recorder.record_tool_call(f"{name} {i}", True, 1)
                if f'"{name} {i}"'.encode() not in self._on_disk:
                    self.too_early.append(f"{name} {i}")
        finally:
            with self._changed:
                self._alive -= 1
                self._changed.notify_all()

    def run(self, records: int) -> None:
        threads = [
            threading.Thread(target=self._record, args=(f"thread {i}", records), daemon=True)
            for i in range(self._alive)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", partial(self._fsync, os.fsync))
            for thread in threads:
                # One by one: Python raises where two threads install the function that measures coverage.
                self._has_begun.clear()
                thread.start()
                self._has_begun.wait()
            for thread in threads:
                thread.join()


def test_records_that_wait_while_an_fsync_is_under_way_share_the_next_one(session: Session) -> None:
    disk = SharedDisk(session, threads=16)
    disk.run(records=1)
    assert disk.fsyncs == 2  # the first thread's, and one for the fifteen that came meanwhile
    assert disk.too_early == []
    assert count(disk.recorder.snapshot()) == 16


def test_thread_whose_record_is_on_the_disk_does_not_wait_for_another_fsync(session: Session) -> None:
    disk = SharedDisk(session, threads=8)
    disk.run(records=20)
    assert disk.too_early == []
    assert not disk.kept_waiting
    assert disk.fsyncs <= 8 * 20 // 4 + 8
    assert count(compact(session.sessions_dir, "s").metrics) == 160


def test_threads_that_record_to_the_disk_at_full_speed_return_after_an_fsync_of_their_record(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = attach("s", session.sessions_dir, durability="disk")
    fsync = os.fsync
    on_disk = b""
    too_early = []

    def watched(fd: int) -> None:
        nonlocal on_disk
        covered = Path(session.journal).read_bytes()
        fsync(fd)
        if os.readlink(f"/proc/self/fd/{fd}") == session.journal:
            on_disk = covered

    def record(name: str) -> None:
        for i in range(50):
            recorder.record_tool_call(f"{name} {i}", True, 1)
            if f'"{name} {i}"'.encode() not in on_disk:
                too_early.append((name, i))

    threads = [threading.Thread(target=record, args=(f"thread {i}",)) for i in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", watched)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert too_early == []
    assert count(compact(session.sessions_dir, "s").metrics) == 400
