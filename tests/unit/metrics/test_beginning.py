"""The beginning of a session: the first `metrics.json` is that of a compaction, and any news ends it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m31a_mp import Collector, attach, load, verify
from m31a_mp.metrics import file
from m31a_mp.metrics.beginning import Beginning
from m31a_mp.metrics.file import encoded, publish, read_totals
from m31a_mp.metrics.totals import Totals
from m31a_mp.session.paths import MAX_ID_BYTES, Session, is_session_id
from m31a_mp.system import process
from metrics_of import SESSION
from workers import Forked


def begun(session: Session, started: int | None = None) -> Beginning:
    beginning = Beginning(session, time.time_ns() if started is None else started)
    assert beginning.lasts(lambda: True)
    return beginning


@settings(max_examples=50)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_ID_BYTES // 4).filter(
        is_session_id
    ),
    st.integers(0, 1_700_000_000 * 10**9),  # what is ahead of the clock is not believed
    st.text(st.characters(exclude_categories=["Cs"])),
)
@example("s", 1_700_000_000_368_275_123, "host")
@example("s", 1_700_000_000_000_000_123, "host")
def test_first_file_says_what_a_compaction_would_publish(
    all_sessions: Path, name: str, started: int, host: str
) -> None:
    session = Session.named(name, all_sessions / os.urandom(8).hex())
    session.make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "uname", type("Names", (), {"nodename": host, "sysname": "Linux"}))
        begun(session, started)
        found = Path(session.metrics).read_bytes()
        totals, restored = Totals(started), read_totals(session)
        assert restored
        assert restored.site
        publish(session, totals)
    assert totals.site
    totals.site = totals.site._replace(id=restored.site.id)
    assert restored == Totals(started // 1000 * 1000, site=totals.site)
    if not set('"\\') & set(name + host) and (name + host).isprintable():  # JSON has two forms of others
        assert found == encoded(name, totals)


def record(session: Session) -> None:
    attach(session.id, session.sessions_dir).record_tool_call("x", True, 1)


def record_and_die(session: Session) -> None:
    def work() -> None:
        record(session)
        os._exit(0)

    with Forked(work) as worker:
        worker.wait()


def store_in_a_segment(session: Session) -> None:
    attach(session.id, session.sessions_dir).record_tool_started("x", "1")


def touch(name: str) -> Callable[[Session], None]:
    return lambda session: Path(session.root, name).touch()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(record_and_die, id="a record of a process that is dead"),
        pytest.param(record, id="a record in the journal"),
        pytest.param(store_in_a_segment, id="a record in a segment"),
        pytest.param(touch("journal.000000000001.ndjson"), id="a sealed journal"),
        pytest.param(touch("journal.rejected.ndjson"), id="what is not known"),
        pytest.param(lambda session: publish(session, Totals(0)), id="a publication of another process"),
        pytest.param(lambda session: os.rmdir(session.segments), id="a directory that is gone"),
    ],
)
def test_news_end_the_beginning_for_good(session: Session, change: Callable[[Session], None]) -> None:
    beginning = begun(session)
    assert beginning.lasts(lambda: True)
    change(session)
    before = Path(session.metrics).read_bytes()
    assert not beginning.lasts(lambda: True)
    for path in (session.journal, session.rejected):
        Path(path).unlink(missing_ok=True)
    assert not beginning.lasts(lambda: True)
    assert Path(session.metrics).read_bytes() == before


def test_session_that_was_there_is_left_to_the_compaction(session: Session) -> None:
    publish(session, Totals(0))
    before = Path(session.metrics).read_bytes()
    assert not Beginning(session, time.time_ns()).lasts(lambda: True)
    assert Path(session.metrics).read_bytes() == before


def test_nothing_is_published_without_the_lease(session: Session) -> None:
    assert not Beginning(session, time.time_ns()).lasts(lambda: False)
    assert not os.path.exists(session.metrics)


def test_first_file_that_is_removed_is_published_anew(session: Session) -> None:
    beginning = begun(session)
    os.unlink(session.metrics)
    assert beginning.lasts(lambda: True)
    assert read_totals(session)


def test_record_that_is_drained_while_the_beginning_looks_ends_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = begun(session)
    store_in_a_segment(session)
    listdir = os.listdir

    def drained_after_the_first(path: str) -> list[str]:
        names = listdir(path)
        monkeypatch.setattr(os, "listdir", listdir)
        attach(session.id, session.sessions_dir).stop()
        return names

    monkeypatch.setattr(os, "listdir", drained_after_the_first)
    assert not beginning.lasts(lambda: True)
    assert listdir(session.segments) == []  # the drain came in between


def test_owner_without_records_writes_the_file_once(tmp_path: Path) -> None:
    collector = Collector(SESSION, tmp_path)
    path = tmp_path / SESSION / "metrics.json"
    before = path.stat()
    collector.flush()
    collector.stop()
    assert os.path.samestat(path.stat(), before)
    assert verify(tmp_path, SESSION) == []


def test_files_of_a_session_without_records_are_private(sessions: Path) -> None:
    with Collector(SESSION, sessions):
        modes = {path.name: path.stat().st_mode & 0o777 for path in (sessions / SESSION).iterdir()}
    private = dict.fromkeys(("journal.lock", "metrics.json", "owner.lock"), 0o600)
    assert modes == private | {"segments": 0o700}


def test_first_compaction_goes_on_from_what_the_beginning_published(session: Session) -> None:
    beginning = begun(session)
    published = file.begun(beginning)
    assert published
    assert published.is_current(session)
    read = read_totals(session)
    assert read
    assert published.totals.site == read.site
    assert published.totals.started is not None
    assert published.totals.started // 1000 * 1000 == read.started
    publish(session, Totals(0))
    assert not published.is_current(session)


def test_beginning_is_forgotten_when_another_owner_was_possible(tmp_path: Path) -> None:
    with Collector(SESSION, tmp_path) as collector:
        os.unlink(tmp_path / SESSION / "owner.lock")
        with Collector(SESSION, tmp_path) as other:
            other.record_tool_call("x", True, 1)
        collector.flush()
        metrics = load(tmp_path, SESSION)
        assert metrics
        assert [tool.call_count for tool in metrics.tools] == [1]


def test_boot_id_is_that_of_the_process(session: Session) -> None:
    begun(session)
    totals = read_totals(session)
    assert totals
    assert totals.site
    assert totals.site.place.boot == process.current().boot_id


def test_started_stays_when_there_are_records(tmp_path: Path) -> None:
    with Collector(SESSION, tmp_path) as collector:
        before = load(tmp_path, SESSION)
        collector.record_tool_call("x", True, 1)
    after = load(tmp_path, SESSION)
    assert before
    assert after
    assert after.started_at == before.started_at
