"""Several processes share one session: what is told of each store does not depend on who wrote last."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from m31a_mp import Collector, StoreError, gather, verify
from m31a_mp.inspection.unshared import unshared
from m31a_mp.metrics import note as notes
from m31a_mp.metrics.file import read_totals
from m31a_mp.metrics.note import note_path, read_note, read_notes
from m31a_mp.session.paths import Session
from m31a_mp.sharing.directory import DirectoryStore
from m31a_mp.sharing.sharer import Sharing
from m31a_mp.sharing.state import Header, State
from m31a_mp.system import process
from metrics_of import SESSION, count
from workers import Forked, changed


class Gone(DirectoryStore):
    """A store that one process cannot reach; others may."""

    def put(self, *_: object) -> None:
        raise StoreError(f"{self.url}: cut off", self.url)


def record(session: Session) -> None:
    with Collector(SESSION, session.sessions_dir) as collector:
        collector.record_tool_call("bash", True, 1)


def told(session: Session) -> list[str]:
    totals = read_totals(session)
    return [found.reason for found in unshared(session, totals.site if totals else None)]


def fail(sharing: Sharing, *, has_ended: bool = False) -> None:
    with pytest.raises(StoreError):
        sharing.share(again=True, has_ended=has_ended)


@pytest.mark.parametrize("is_gone_last", [False, True])
def test_store_that_is_gone_is_told_beside_one_that_is_well(
    is_gone_last: bool, session: Session, tmp_path: Path
) -> None:
    record(session)
    gone, well = Sharing(session, Gone("/gone")), Sharing(session, DirectoryStore(str(tmp_path)))
    if not is_gone_last:
        fail(gone)
    well.share(again=True)
    if is_gone_last:
        fail(gone)
    assert told(session) == ["/gone: cut off"]
    [finding] = verify(session.sessions_dir, SESSION)
    assert session.name_of(note_path(session, "/gone")) == finding.file
    record(session)
    well.share()
    assert told(session) == ["/gone: cut off"]


def test_every_store_that_is_gone_is_told(session: Session) -> None:
    record(session)
    for url in ("/one", "/other"):
        fail(Sharing(session, Gone(url)))
    assert sorted(told(session)) == ["/one: cut off", "/other: cut off"]


def test_state_that_another_process_shared_is_shared(session: Session, tmp_path: Path) -> None:
    """One of two processes is cut off from their store."""
    record(session)
    cut_off, well = Sharing(session, Gone(str(tmp_path))), Sharing(session, DirectoryStore(str(tmp_path)))
    fail(cut_off)
    assert told(session) == [f"{tmp_path}: cut off"]
    well.share()
    assert told(session) == []
    fail(cut_off)
    assert told(session) == []
    before = time.time_ns()
    record(session)
    fail(cut_off)
    assert told(session) == [f"{tmp_path}: cut off"]
    assert read_note(note_path(session, str(tmp_path)))["failing_since"] >= before
    well.share()
    assert told(session) == []


def test_ended_process_is_not_told_of_while_another_one_shares(session: Session, tmp_path: Path) -> None:
    """A session may be moved to another store."""
    record(session)
    with Forked(fail, Sharing(session, Gone("/killed"))) as child:
        child.wait()
    assert told(session) == ["/killed: cut off"]  # the last one
    fail(Sharing(session, Gone("/stopped")), has_ended=True)
    assert told(session) == ["/stopped: cut off"]
    Sharing(session, DirectoryStore(str(tmp_path))).share()
    assert told(session) == []
    Sharing(session, DirectoryStore(str(tmp_path))).share(again=True, has_ended=True)
    assert told(session) == []
    assert len(read_notes(session)) == 3


def test_process_that_cannot_be_seen_shares_as_long_as_it_writes(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(session)
    with monkeypatch.context() as patch:
        elsewhere = changed(process.current(), namespace=1)
        patch.setattr(process, "current", lambda: elsewhere)
        fail(Sharing(session, Gone("/elsewhere")))
    Sharing(session, DirectoryStore(str(tmp_path))).share()
    assert told(session) == ["/elsewhere: cut off"]
    monkeypatch.setattr(notes, "_SILENT_NS", 0)
    assert told(session) == []


def test_refusal_of_one_store_is_repaired_whatever_another_one_says(session: Session, tmp_path: Path) -> None:
    first, second = (Sharing(session, DirectoryStore(str(tmp_path / name))) for name in ("first", "second"))
    record(session)
    shutil.copy(session.metrics, tmp_path / "copy")
    record(session)
    first.share()
    shutil.copy(tmp_path / "copy", session.metrics)
    first.is_refused = False
    again = Sharing(session, DirectoryStore(str(tmp_path / "first")))
    with pytest.raises(Exception, match="another state of this site"):
        again.share()
    second.share()
    assert [reason.partition(" has ")[0] for reason in told(session)] == [str(tmp_path / "first")]
    record(session)
    again.share()
    second.share()
    assert told(session) == []
    for name in ("first", "second"):
        assert count(gather(SESSION, tmp_path / name)) == 2


@pytest.mark.parametrize(
    "garbage", [b"", b"[]", b'{"by":1,"written_at":"x"}', b'{"by":[1,2,3,4]}', b"\0" * 9]
)
def test_damaged_note_tells_nothing(garbage: bytes, session: Session) -> None:
    record(session)
    Path(note_path(session, "/store")).write_bytes(garbage)
    assert told(session) == []


def test_newer_state_that_another_process_shared_meanwhile_refuses_nothing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(session)
    slow, quick = (Sharing(session, DirectoryStore(str(tmp_path))) for _ in range(2))
    put = DirectoryStore.put

    def put_later(store: DirectoryStore, session_id: str, state: State) -> Header | None:
        monkeypatch.setattr(DirectoryStore, "put", put)
        record(session)
        quick.share()
        return put(store, session_id, state)

    monkeypatch.setattr(DirectoryStore, "put", put_later)
    slow.share()
    assert (slow.is_refused, told(session)) == (False, [])
    assert count(gather(SESSION, tmp_path)) == 2
