"""The lease of the owner: one at a time, and it says who."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from m31a_mp import SessionOwnedError
from m31a_mp.session.lease import Lease
from m31a_mp.session.paths import Session
from workers import leased


class TestLease:
    def test_lease_is_exclusive_and_can_be_given_back_twice(self, session: Session) -> None:
        lease = Lease.take(session)
        assert lease.held
        assert Lease.take_if_free(session) is None
        with pytest.raises(SessionOwnedError):
            Lease.take(session)
        lease.release()
        lease.release()
        assert not lease.held
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
    def test_lease_with_any_content_can_be_taken_and_refused(self, session: Session, content: bytes) -> None:
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
