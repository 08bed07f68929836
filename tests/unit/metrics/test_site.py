"""Sites: their numbers only grow, and a copied directory becomes a site of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
import pytest

from m31a_mp import Collector, compact, load, save
from m31a_mp.metrics import site as sites
from m31a_mp.metrics.file import read_totals
from m31a_mp.metrics.note import note_path
from m31a_mp.metrics.site import Place, Site, following, new_id
from m31a_mp.session.paths import Session
from metrics_of import SESSION

HERE = Place(131, "boot", "host")


def site_of(sessions: Path, name: str = SESSION) -> Site:
    totals = read_totals(Session.named(name, sessions))
    assert totals
    assert totals.site
    return totals.site


def record(sessions: Path, name: str = SESSION) -> Site:
    """Record once more, as a new owner; return the site afterwards."""
    with Collector(name, sessions) as collector:
        collector.record_tool_call("bash", True, 1)
    return site_of(sessions, name)


def refused(sessions: Path, **refusal: object) -> None:
    note = note_path(Session.named(SESSION, sessions), "store")
    Path(note).write_bytes(orjson.dumps({"refused": refusal}))


def test_number_grows_with_each_publication_over_owners(sessions: Path) -> None:
    first = record(sessions)
    numbers = [first.number]
    for _ in range(3):
        again = record(sessions)
        assert again.id == first.id
        numbers.append(again.number)
    assert sorted(set(numbers)) == numbers


def test_number_grows_if_metrics_are_saved(sessions: Path) -> None:
    before = record(sessions)
    metrics = load(sessions, SESSION)
    assert metrics
    save(sessions, SESSION, metrics)
    after = site_of(sessions)
    assert (after.id, after.number) == (before.id, before.number + 1)


def test_number_is_not_used_again_if_the_publication_fails(
    sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector(SESSION, sessions) as collector:
        before = site_of(sessions).number
        collector.record_tool_call("bash", True, 1)
        real = os.replace

        def replace_and_fail(source: str, target: str) -> None:
            real(source, target)
            monkeypatch.setattr(os, "replace", real)
            raise OSError("injected")

        monkeypatch.setattr(os, "replace", replace_and_fail)
        with pytest.raises(OSError, match="injected"):
            collector.flush()
        assert site_of(sessions).number == before + 1  # others may have read that
        collector.flush()
        assert site_of(sessions).number == before + 2


def test_copied_directory_becomes_a_site_that_contains_the_other(sessions: Path) -> None:
    before = record(sessions)
    shutil.copytree(sessions / SESSION, sessions / "copy")
    assert site_of(sessions, "copy") == before  # nothing new is in it
    copy = record(sessions, "copy")
    assert copy.id != before.id
    assert copy.origins == {before.id: before.number}
    shutil.copytree(sessions / "copy", sessions / "copy of it")
    second = record(sessions, "copy of it")
    assert second.origins == {before.id: before.number, copy.id: copy.number}
    assert record(sessions).id == before.id


def test_renamed_directory_stays_the_same_site(sessions: Path) -> None:
    before = record(sessions)
    (sessions / SESSION).rename(sessions / "renamed")
    assert record(sessions, "renamed").id == before.id


@pytest.mark.parametrize(
    ("there", "is_same"),
    [
        (Place(131, "other boot", "host"), True),  # rebooted
        (Place(131, "boot", "other host"), True),  # in another container
        (Place(132, "boot", "host"), False),  # copied
        (Place(131, "other boot", "other host"), False),  # a clone of the disk
    ],
)
def test_place_is_that_of_the_directory_not_of_the_container_or_the_boot(there: Place, is_same: bool) -> None:
    assert HERE.is_same(there) is is_same


def test_rebuilt_metrics_are_a_new_site(sessions: Path) -> None:
    before = record(sessions)
    (sessions / SESSION / "metrics.json").write_bytes(b"garbage")
    compact(sessions, SESSION, rebuild=True)
    assert site_of(sessions).id != before.id


def test_refusal_of_a_restored_file_lifts_the_number_above_the_one_there(sessions: Path) -> None:
    before = record(sessions)
    refused(sessions, site=before.id, number=100)
    after = record(sessions)
    assert (after.id, after.number > 100) == (before.id, True)


def test_refusal_for_a_living_copy_makes_a_new_site(sessions: Path) -> None:
    before = record(sessions)
    refused(sessions, site=before.id, number=100, last=1)
    after = record(sessions)
    assert after.id != before.id
    assert after.origins == {before.id: 1}


@pytest.mark.parametrize(
    "refusal",
    [{"site": new_id(), "number": 100}, {"site": "x"}, {"site": "", "number": "many"}, {}],
)
def test_other_refusals_change_nothing(sessions: Path, refusal: dict[str, object]) -> None:
    before = record(sessions)
    refused(sessions, **refusal)
    assert record(sessions).id == before.id
    note = Path(note_path(Session.named(SESSION, sessions), "store"))
    for garbage in (b"", b"[]", b'{"refused":1}', b"\0" * 100_000):
        note.write_bytes(garbage)
        assert record(sessions).id == before.id


def test_origins_are_bounded(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "_MAX_ORIGINS", 3)
    site = Site(new_id(), 1, HERE)
    for _ in range(10):
        site = following(site, session)
        site = Site(site.id, site.number, HERE, site.origins)
    assert len(site.origins) == 3


@pytest.mark.parametrize(
    "change",
    [{"id": "x"}, {"id": None}, {"number": 0}, {"number": "1"}, {"origins": {"x": 1}}, {"inode": None}],
)
def test_damaged_site_is_damage(change: dict[str, object]) -> None:
    kept = Site(new_id(), 1, HERE).kept()
    assert Site.restored(kept).kept() == kept
    with pytest.raises((TypeError, ValueError)):
        Site.restored(kept | change)
