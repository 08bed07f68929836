"""`journal.rejected.ndjson`: nothing that was set aside gets lost or doubled."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m31a_mp import Collector, verify
from m31a_mp.metrics.rejected import Rejected, append, read
from m31a_mp.session.paths import Session

ONE = Rejected("journal.000000000001.ndjson", 0, "why", b"one\n")
TWO = Rejected("journal.000000000001.ndjson", 7, "why not", b"\xff\0two")


@given(st.binary(max_size=200), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**63 - 1))
def test_any_piece_comes_back_as_it_was(all_sessions: Path, data: bytes, reason: str, offset: int) -> None:
    path = all_sessions / uuid.uuid4().hex
    item = Rejected("journal", offset, reason, data)
    append(str(path), [item])
    append(str(path), [item])
    assert list(read(str(path))) == [item]
    assert {"file", "offset", "reason"} < orjson.loads(path.read_bytes()).keys()


def test_pieces_are_kept_in_order_and_once(tmp_path: Path) -> None:
    path = tmp_path / "rejected"
    assert list(read(str(path))) == []
    append(str(path), [])
    assert not path.exists()
    append(str(path), [ONE])
    append(str(path), [ONE, TWO])
    append(str(path), [TWO])
    assert list(read(str(path))) == [ONE, TWO]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_torn_tail_costs_itself_and_not_what_comes_after_it(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rejected"
    append(str(path), [ONE, TWO])
    path.write_bytes(path.read_bytes()[:-cut])
    third = Rejected("journal.000000000002.ndjson", 0, "why", b"three")
    append(str(path), [TWO, third])
    assert list(read(str(path))) == [ONE, TWO, third]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"garbage", b"[]", b"{}", b"1", b"null", b"\xff", b'{"file":"x"}', b"[" * 2000,
        b'{"file":[],"offset":0,"reason":"x","text":"y"}',
        b'{"file":"f","offset":{},"reason":"x","text":"y"}',
        b'{"file":"f","offset":0,"reason":"x","base64":1}', b'{"file":"f","offset":0,"reason":"x","text":1}',
        b'{"file":"f","offset":0,"reason":[],"text":"y"}',
        b'{"file":"f","offset":"0","reason":"x","text":"y"}',
    ],
)  # fmt: skip
def test_line_that_is_none_harms_nobody(session: Session, line: bytes) -> None:
    Path(session.rejected).write_bytes(ONE.encode() + line + b"\n" + TWO.encode())
    found = verify(session.sessions_dir, "s")
    assert [(finding.file, finding.offset) for finding in found] == [(ONE.file, 0), (TWO.file, 7)]
    with Collector("s", session.sessions_dir) as collector:
        Path(session.journal).write_bytes(b"garbage\n")
        collector.flush()
        assert collector.snapshot().rejected == 1
    assert {item.data for item in read(session.rejected)} >= {ONE.data, TWO.data, b"garbage\n"}


def test_piece_that_is_found_after_a_fresh_start_is_kept_beside_the_old_one(session: Session) -> None:
    for text in (b"one\n", b"two\n"):
        with Collector("s", session.sessions_dir):
            Path(session.journal).write_bytes(text)
        Path(session.metrics).unlink()  # as one is told to do when it is damaged: counting starts from zero
    assert [item.data for item in read(session.rejected)] == [b"one\n", b"two\n"]
    assert len(verify(session.sessions_dir, "s")) == 2


def test_symlink_planted_in_its_place_is_not_followed(session: Session, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    Path(session.rejected).symlink_to(victim)
    Path(session.journal).write_bytes(b"garbage\n")
    with suppress(OSError):
        Collector("s", session.sessions_dir).stop()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("planted", ["symlink", "dangling", "directory"])
def test_what_is_planted_in_its_place_stops_no_flush(session: Session, tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    if planted == "directory":
        Path(session.rejected).mkdir()
    else:
        Path(session.rejected).symlink_to(victim)
    if planted == "symlink":
        victim.write_bytes(b"precious")
    with Collector("s", session.sessions_dir) as collector:
        for flushes in range(1, 4):
            Path(session.journal).write_bytes(b"garbage\n")
            collector.record_heal_trigger("plan")
            collector.flush()
            metrics = collector.snapshot()
            assert (metrics.phases[0].heal_trigger_count, metrics.rejected) == (flushes, flushes)
    assert not victim.exists() or victim.read_bytes() == b"precious"
    assert planted == "directory" or [item.data for item in read(session.rejected)] == [b"garbage\n"] * 3
