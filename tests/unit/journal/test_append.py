"""What appends to the journal: whole or not at all, and under its lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from damage import line
from m31a_mp.errors import JournalLockedError
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from m31a_mp.system.flock import FileLock
from workers import locked


class TestAppending:
    def test_write_that_fails_half_way_leaves_the_journal_as_it_was(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(session.journal).write_bytes(line("before"))
        write_all = files.write_all

        def half(fd: int, data: bytes, *where: int) -> None:
            write_all(fd, data[: len(data) // 2], *where)
            raise OSError(28, "no space left on device")

        monkeypatch.setattr(files, "write_all", half)
        with locked(session), pytest.raises(OSError, match="no space"):
            Journal(session).append([Batch("00000000000000aa", 1, line("new"))])
        assert Path(session.journal).read_bytes() == line("before")

    def test_lock_that_another_holds_raises_after_the_timeout_and_names_him(self, session: Session) -> None:
        lock = FileLock(session.journal_lock)
        assert lock.acquire()
        with pytest.raises(JournalLockedError, match=str(os.getpid())) as error:
            Journal(session).hold(lambda: pytest.fail("two hold the lock"), 0.01)
        assert error.value.holders == [os.getpid()]
        lock.release()
        assert Journal(session).hold(lambda: "held", 0) == "held"

    def test_seal_of_no_journal_makes_none(self, session: Session) -> None:
        with locked(session):
            assert not Journal(session).seal(1)
        assert session.sealed() == []
