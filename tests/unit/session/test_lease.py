"""The lease of the owner: one at a time, and it says who."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import orjson
import pytest

from m31a_mp import SessionOwnedError
from m31a_mp.session import lease
from m31a_mp.session.lease import Lease, owning
from m31a_mp.session.paths import Session
from workers import Forked, leased


class TestLease:
    @pytest.mark.slow
    def test_lease_is_exclusive_and_can_be_given_back_twice(self, session: Session) -> None:
        taken = Lease.take(session)
        assert taken.held
        assert Lease.take_if_free(session) is None
        with pytest.raises(SessionOwnedError):
            Lease.take(session)
        taken.release()
        taken.release()
        assert not taken.held
        with leased(session) as other:
            assert other.held

    def test_lease_says_who_holds_it_and_nobody_when_it_was_given_back(self, session: Session) -> None:
        with leased(session):
            content = orjson.loads(Path(session.owner_lock).read_bytes())
            assert content["pid"] == os.getpid()
            assert content["started_at"].endswith(("Z", "+00:00"))
        assert Path(session.owner_lock).read_bytes() == b""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "content",
        [b"", b"garbage", b"[]", b'{"pid":"x"}', b'{"pid":1,"started_at":[]}', b"\0" * 100, b"[" * 9999],
    )
    def test_lease_with_any_content_can_be_taken_and_refused(
        self, session: Session, content: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease, "_BRIEF_SECONDS", 0.0)
        Path(session.owner_lock).write_bytes(content)
        with leased(session):
            Path(session.owner_lock).write_bytes(
                content
            )  # as a crash in the middle of the write may leave it
            with pytest.raises(SessionOwnedError, match=str(os.getpid())) as error:
                Lease.take(session)
            assert error.value.pid == os.getpid()
            assert error.value.path == session.owner_lock

    def test_long_line_of_a_crashed_owner_does_not_show_behind_the_new_one(self, session: Session) -> None:
        Path(session.owner_lock).write_bytes(b'{"pid":1,"started_at":"x"}' + b" " * 5000 + b"x")
        with leased(session):
            assert orjson.loads(Path(session.owner_lock).read_bytes())["pid"] == os.getpid()

    @pytest.mark.parametrize("is_killed", [True, False])
    def test_owner_for_moments_that_never_ends_keeps_no_other_out_for_long(
        self, is_killed: bool, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease, "_LEASE_SECONDS", 0.01)
        monkeypatch.setattr(lease, "_BRIEF_SECONDS", 60.0 if is_killed else 0.1)
        reading, writing = os.pipe()

        def never_end() -> None:
            os.write(writing, b".")
            signal.pause()

        with Forked(owning, session, never_end) as holder:
            os.read(reading, 1)
            if is_killed:
                killing = threading.Timer(0.1, holder.kill)
                killing.start()
                Lease.take(session).release()
                killing.join()
            else:
                os.kill(holder.pid, signal.SIGSTOP)
                with pytest.raises(SessionOwnedError, match=str(holder.pid)):
                    Lease.take(session)
        os.close(reading)
        os.close(writing)

    def test_owner_that_others_for_moments_take_turns_to_keep_out_comes_in_between(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A look at the lock's file may find it empty, or an owner for a moment in it."""
        monkeypatch.setattr(lease, "_LEASE_SECONDS", 0.0)
        lines = iter([b"", b'{"pid":1,"is_brief":true}'] * 5)
        take = Lease.take_if_free

        def fail_first(session: Session, timeout: float) -> Lease | None:
            line = next(lines, None)
            if line is None:
                return take(session, timeout)
            Path(session.owner_lock).write_bytes(line)
            return None

        monkeypatch.setattr(Lease, "take_if_free", fail_first)
        Lease.take(session).release()
