"""Gathering: the latest states of all sites add up, each record once; what is wrong is told."""

from __future__ import annotations

import os
import shutil
import time
from errno import ENOSPC
from pathlib import Path

import orjson
import pytest

from damage import raising
from m31a_mp import Collector, SessionMetrics, StoreError, Usage, gather, load, merge
from m31a_mp.metrics.file import read_site
from m31a_mp.session.paths import Session
from m31a_mp.sharing.gather import Gathering
from m31a_mp.sharing.into import GatheredSession
from m31a_mp.sharing.sharer import Sharing
from m31a_mp.sharing.state import Header, State
from m31a_mp.sharing.store import open_store
from metrics_of import SESSION, count


def record(directory: Path, calls: int, url: str | None = None) -> None:
    with Collector(SESSION, directory, share=url) as collector:
        for i in range(calls):
            collector.record_tool_call("bash", i % 3 > 0, i)
            collector.record_llm_interaction("plan", Usage(i, 1, i + 1), 0.1, model="opus")


def share(directory: Path, url: str) -> None:
    Sharing(Session.named(SESSION, directory), open_store(url)).share(again=True)


def state_of(directory: Path) -> State:
    content = (directory / SESSION / "metrics.json").read_bytes()
    site = read_site(orjson.loads(content))
    assert site
    return State.of(site, content)


def problems(metrics: SessionMetrics) -> list[str]:
    return [site.problem for site in metrics.sites if site.problem]


def test_sites_add_up_exactly(url: str, tmp_path: Path) -> None:
    sites = [tmp_path / str(i) for i in range(3)]
    for i, site in enumerate(sites):
        record(site, i + 1, url)
    whole = gather(SESSION, url)
    parts = [metrics for site in sites if (metrics := load(site, SESSION))]
    expected = merge(*parts)
    assert [site.tool_calls for site in sorted(whole.sites, key=lambda s: s.tool_calls)] == [1, 2, 3]
    assert all(site.has_ended and not site.problem for site in whole.sites)
    whole.sites = []
    assert whole == expected
    assert whole.rest == expected.rest


def test_session_that_nobody_shared_is_not_an_empty_one(url: str, tmp_path: Path) -> None:
    record(tmp_path, 1, url)
    with pytest.raises(FileNotFoundError, match="no site has shared session 'other'"):
        gather("other", url)


def test_store_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none"):
        gather(SESSION, tmp_path / "none")
    with pytest.raises(StoreError, match=r"no such file|refused"):
        gather(SESSION, f"unix://:secret@{tmp_path}/none")


@pytest.mark.slow
def test_only_what_changed_is_read(url: str, tmp_path: Path) -> None:
    for i in range(3):
        record(tmp_path / str(i), 1, url)
    gathering = Gathering(SESSION, url)
    assert len(gathering.read()) == 3
    assert gathering.read() == set()
    record(tmp_path / "1", 1, url)
    assert len(gathering.read()) == 1
    assert count(gathering.sum().to_metrics(SESSION)) == 4


@pytest.mark.slow
def test_look_at_a_server_parses_only_what_changed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        record(tmp_path / str(i), 1, url)
    gathering = Gathering(SESSION, url)
    gathering.read()
    parsed: list[bytes] = []
    parse = Header.parse

    def parse_counted(line: bytes) -> Header:
        parsed.append(line)
        return parse(line)

    monkeypatch.setattr(Header, "parse", parse_counted)
    listed = 0 if "://" in url else 3  # a directory has each header in a file
    assert (gathering.read(), len(parsed)) == (set(), listed)
    share(tmp_path / "1", url)
    record(tmp_path / "1", 1, url)
    parsed.clear()
    assert len(gathering.read()) == 1
    assert len(parsed) == (listed or 1) + 1  # in the list, and before the state
    assert count(gathering.sum().to_metrics(SESSION)) == 4


def test_news_that_could_not_be_read_are_read_by_the_next_look(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, 1, url)
    gathering = Gathering(SESSION, url)
    gathering.look()
    record(tmp_path, 1, url)
    with monkeypatch.context() as patch:
        patch.setattr(gathering._store, "get", raising(StoreError("gone", url)))
        with pytest.raises(StoreError):
            gathering.look()
    assert count(gathering.look()) == 2
    record(tmp_path, 1, url)
    with monkeypatch.context() as patch:
        patch.setattr(gathering._store, "get", lambda *_: {})
        [problem] = problems(gathering.look())
        assert "its state is gone" in problem
    assert (count(gathering.look()), problems(gathering.look())) == (3, [])


def test_site_that_left_the_store_keeps_its_records(url: str, tmp_path: Path) -> None:
    record(tmp_path / "0", 2, url)
    gathering = Gathering(SESSION, url)
    assert count(gathering.look()) == 2
    other = tmp_path / "other"
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    if "://" in url:
        open_store(url)._client.flushall()  # type: ignore[attr-defined]
    record(other, 1, url)
    assert count(gathering.look()) == 3
    share(tmp_path / "0", url)
    assert count(gathering.look()) == count(gather(SESSION, url)) == 3


def test_late_share_into_an_emptied_store_takes_nothing_back(url: str, tmp_path: Path) -> None:
    record(tmp_path, 1)
    late = state_of(tmp_path)
    record(tmp_path, 2, url)
    gathering = Gathering(SESSION, url)
    assert count(gathering.look()) == 3
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    if "://" in url:
        open_store(url)._client.flushall()  # type: ignore[attr-defined]
    open_store(url).put(SESSION, late)
    assert gathering.read() == set()
    assert count(gathering.look()) == 3
    share(tmp_path, url)
    assert count(gather(SESSION, url)) == 3


def test_moved_directory_counts_once(url: str, tmp_path: Path) -> None:
    record(tmp_path / "0", 2, url)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    shutil.rmtree(tmp_path / "0")
    record(tmp_path / "1", 3, url)
    whole = gather(SESSION, url)
    assert count(whole) == 5
    assert len(whole.sites) == 1
    assert problems(whole) == []


@pytest.mark.parametrize("records", [-1, 2**63])
def test_site_whose_number_of_records_is_no_count_costs_only_itself(
    url: str, tmp_path: Path, records: int
) -> None:
    record(tmp_path / "0", 1, url)
    record(tmp_path / "1", 2)
    document = orjson.loads((tmp_path / "1" / SESSION / "metrics.json").read_bytes())
    document["m31a_mp"]["records"] = records
    site = read_site(document)
    assert site
    open_store(url).put(SESSION, State.of(site, orjson.dumps(document)))
    whole = gather(SESSION, url)
    [problem] = problems(whole)
    assert "not counted" in problem
    assert count(whole) == 1
    assert SessionMetrics.from_json(whole.to_json()) == whole


def test_copy_beside_its_living_original_is_told(url: str, tmp_path: Path) -> None:
    record(tmp_path / "0", 2, url)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    record(tmp_path / "1", 3, url)
    record(tmp_path / "0", 4, url)
    [problem] = problems(gather(SESSION, url))
    assert "counted twice" in problem


def test_copies_of_one_original_that_stopped_are_told(url: str, tmp_path: Path) -> None:
    record(tmp_path / "original", 3, url)
    for name in ("one", "other"):
        shutil.copytree(tmp_path / "original", tmp_path / name)
        record(tmp_path / name, 1, url)
    whole = gather(SESSION, url)
    assert count(whole) == 8
    assert len(problems(whole)) == 2
    assert all("is counted twice" in problem for problem in problems(whole))


def test_empty_copies_are_sites_of_their_own(url: str, tmp_path: Path) -> None:
    Collector(SESSION, tmp_path / "image").stop()
    for i in range(3):
        shutil.copytree(tmp_path / "image", tmp_path / str(i))
        record(tmp_path / str(i), i + 1, url)
    whole = gather(SESSION, url)
    assert count(whole) == 6
    assert problems(whole) == []


@pytest.mark.slow
def test_restored_metrics_go_on_above_what_was_shared(url: str, tmp_path: Path) -> None:
    record(tmp_path, 2, url)
    metrics = tmp_path / SESSION / "metrics.json"
    backup = metrics.read_bytes()
    for _ in range(5):
        record(tmp_path, 1, url)
    assert count(gather(SESSION, url)) == 7
    metrics.write_bytes(backup)
    record(tmp_path, 10, url)
    whole = gather(SESSION, url)
    assert count(whole) == 12  # what this machine says: the records after the backup are lost
    assert len(whole.sites) == 1


def test_twins_that_nothing_tells_apart_lose_nothing(url: str, tmp_path: Path) -> None:
    """Two machines run a clone of one disk: host, boot and inode are the same."""
    record(tmp_path, 1, url)
    metrics = tmp_path / SESSION / "metrics.json"
    with Collector(SESSION, tmp_path, share=url) as collector:
        collector.record_tool_call("bash", True, 1)
        collector.flush()
        assert not collector.share_now(time.monotonic() + 60)
        site = read_site(orjson.loads(metrics.read_bytes()))
        assert site
        twin = metrics.read_bytes().replace(b'"bash"', b'"twin"')
        for number in range(site.number + 1, site.number + 4):
            changed = orjson.loads(twin)
            changed["m31a_mp"]["site"]["number"] = number
            content = orjson.dumps(changed)
            twin_site = read_site(changed)
            assert twin_site
            assert open_store(url).put(SESSION, State.of(twin_site, content)) is None
        collector.record_tool_call("bash", True, 1)
    whole = gather(SESSION, url)
    assert {tool.name: tool.call_count for tool in whole.tools} == {"bash": 3, "twin": 2}
    assert len(whole.sites) == 2
    assert len(problems(whole)) == 1


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"{}\n{}"])
def test_damaged_state_costs_only_its_own_site(tmp_path: Path, garbage: bytes) -> None:
    url = str(tmp_path / "store")
    for i in range(2):
        record(tmp_path / str(i), 1, url)
    broken = state_of(tmp_path / "0").header.site
    (tmp_path / "store" / SESSION / f"{broken}.state").write_bytes(garbage)
    whole = gather(SESSION, url)
    assert count(whole) == 1
    [problem] = problems(whole)
    assert "not counted" in problem
    share(tmp_path / "0", url)
    assert count(gather(SESSION, url)) == 2


def test_damaged_state_counts_as_soon_as_it_is_shared_whole(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    record(tmp_path, 2, url)
    file = tmp_path / "store" / SESSION / f"{state_of(tmp_path).header.site}.state"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    gathering = Gathering(SESSION, url)
    for _ in range(2):
        [problem] = problems(gathering.look())
        assert "not counted" in problem
    share(tmp_path, url)  # with the same number
    assert (count(gathering.look()), problems(gathering.look())) == (2, [])


def test_damaged_state_takes_nothing_back_that_was_counted(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    record(tmp_path, 2, url)
    gathering = Gathering(SESSION, url)
    assert count(gathering.look()) == 2
    record(tmp_path, 1, url)
    file = tmp_path / "store" / SESSION / f"{state_of(tmp_path).header.site}.state"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    for _ in range(2):
        found = gathering.look()
        assert count(found) == 2
        [problem] = problems(found)
        assert "an older one is counted" in problem
    file.write_bytes(whole)
    assert (count(gathering.look()), problems(gathering.look())) == (3, [])


def test_damaged_metrics_and_those_of_a_newer_version_are_told(url: str, tmp_path: Path) -> None:
    record(tmp_path / "0", 1, url)
    state = state_of(tmp_path / "0")
    store = open_store(url)
    document = orjson.loads(state.content())
    document["m31a_mp"]["version"] = 2
    for i, content in enumerate((orjson.dumps(document), b"garbage", b'{"tools": 7}')):
        site = read_site(orjson.loads(state.content()))
        assert site
        other = type(site)(f"{i:032x}", 1, site.place)
        store.put(SESSION, State.of(other, content))
    whole = gather(SESSION, url)
    assert count(whole) == 1
    told = sorted(problems(whole))
    assert len(told) == 3
    assert any("version 2" in problem for problem in told)


def test_records_of_a_site_are_counted_whatever_they_are(url: str, tmp_path: Path) -> None:
    """Also those of which metrics.json keeps only the latest, or a sum."""
    with Collector(SESSION, tmp_path / "0", share=url) as collector:
        for _ in range(3):
            collector.record_startup(1, 1, 1, 1)
            collector.record_phase_duration("plan", 1, True)
            collector.record_heal_duration("plan", 1)
            collector.flush()
        with collector.tool_call("bash"):  # a beginning and an end
            pass
    record(tmp_path / "0", 4, url)
    record(tmp_path / "1", 2, url)
    assert sorted(site.records or 0 for site in gather(SESSION, url).sites) == [4, 19]
    gather_into(tmp_path / "whole", url)
    share(tmp_path / "whole", above := str(tmp_path / "above"))
    assert [site.records for site in gather(SESSION, above).sites] == [23]


def test_records_are_not_known_if_a_release_did_not_count_them(url: str, tmp_path: Path) -> None:
    record(tmp_path / "0", 2)
    file = tmp_path / "0" / SESSION / "metrics.json"
    document = orjson.loads(file.read_bytes())
    assert document["m31a_mp"].pop("records") == 4
    file.write_bytes(orjson.dumps(document))
    record(tmp_path / "0", 1, url)
    record(tmp_path / "1", 1, url)
    assert {site.records for site in gather(SESSION, url).sites} == {None, 2}
    gather_into(tmp_path / "whole", url)
    share(tmp_path / "whole", above := str(tmp_path / "above"))
    assert [site.records for site in gather(SESSION, above).sites] == [None]


def test_gathered_session_is_a_site_of_a_larger_one(url: str, tmp_path: Path) -> None:
    record(tmp_path / "0", 1, url)
    record(tmp_path / "1", 2, url)
    whole = gather(SESSION, url)
    assert count(whole) == 3
    again = SessionMetrics.from_json(orjson.loads(orjson.dumps(whole.to_json())))
    assert again.sites == whole.sites


# --- Gathered sessions that are shared in turn ------------------------------------------------------------


def gather_into(directory: Path, url: str) -> SessionMetrics:
    GatheredSession(Session.named(SESSION, directory), Gathering(SESSION, url)).update()
    metrics = load(directory, SESSION)
    assert metrics
    return metrics


def test_two_gatherers_of_one_store_count_once(tmp_path: Path) -> None:
    below, above = str(tmp_path / "below"), str(tmp_path / "above")
    for calls in (3, 4):
        record(tmp_path / str(calls), calls, below)
    for name in ("one", "other"):
        gather_into(tmp_path / name, below)
        share(tmp_path / name, above)
    assert (count(gather(SESSION, above)), len(gather(SESSION, above).sites)) == (7, 1)
    # One goes on, the other one is gone.
    record(tmp_path / "3", 1, below)
    gather_into(tmp_path / "one", below)
    share(tmp_path / "one", above)
    assert count(gather(SESSION, above)) == 8
    record(tmp_path / "5", 5, below)
    gather_into(tmp_path / "other", below)
    share(tmp_path / "other", above)
    assert count(gather(SESSION, above)) == 13
    assert not problems(gather(SESSION, above))


def test_gathered_session_beside_its_sites_counts_once(url: str, tmp_path: Path) -> None:
    record(tmp_path / "0", 2, url)
    record(tmp_path / "1", 3, url)
    gather_into(tmp_path / "whole", url)
    share(tmp_path / "whole", url)
    record(tmp_path / "1", 4, url)  # newer than the gathered one
    whole = gather(SESSION, url)
    assert (count(whole), len(whole.sites), problems(whole)) == (9, 2, [])


def test_gathered_sessions_with_some_sites_in_common_are_told(tmp_path: Path) -> None:
    stores = [str(tmp_path / name) for name in ("left", "right", "above")]
    record(tmp_path / "both", 1)
    record(tmp_path / "left only", 2, stores[0])
    record(tmp_path / "right only", 4, stores[1])
    for number, url in enumerate(stores[:2]):
        share(tmp_path / "both", url)
        gather_into(tmp_path / f"gathered {number}", url)
        share(tmp_path / f"gathered {number}", stores[2])
    whole = gather(SESSION, stores[2])
    assert count(whole) == 8
    assert len(problems(whole)) == 2
    assert all("is counted twice" in problem for problem in problems(whole))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 3])
def test_gathering_in_a_circle_counts_once(length: int, tmp_path: Path) -> None:
    urls = [str(tmp_path / f"store {place}") for place in range(length)]
    record(tmp_path / "site", 3, urls[0])
    for _ in range(4):
        for place, url in enumerate(urls):
            assert count(gather_into(tmp_path / f"gathered {place}", url)) == 3
            share(tmp_path / f"gathered {place}", urls[(place + 1) % length])
    told = problems(gather_into(tmp_path / "gathered 0", urls[0]))
    assert any("in a circle" in problem for problem in told) is (length > 1)
    record(tmp_path / "site", 2, urls[0])
    assert count(gather_into(tmp_path / "gathered 0", urls[0])) == 5


def test_problem_of_a_site_is_told_at_the_top(tmp_path: Path) -> None:
    """What is not counted below is not contained in the sum: the same site may be counted elsewhere."""
    below, above = str(tmp_path / "below"), str(tmp_path / "above")
    record(tmp_path / "good", 1, below)
    record(tmp_path / "damaged", 2, below)
    share(tmp_path / "damaged", above)
    site = state_of(tmp_path / "damaged").header.site
    file = tmp_path / "below" / SESSION / f"{site}.state"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    gather_into(tmp_path / "whole", below)
    share(tmp_path / "whole", above)
    whole = gather(SESSION, above)
    assert count(whole) == 3
    assert problems(whole) == ["sites of it that have a problem: 1 of 2"]


def test_state_that_could_not_be_published_is_published_by_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "store")
    record(tmp_path / "site", 1, url)
    gathered = GatheredSession(Session.named(SESSION, tmp_path / "whole"), Gathering(SESSION, url))
    gathered.update()
    record(tmp_path / "site", 1, url)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raising(OSError(ENOSPC, os.strerror(ENOSPC))))
        with pytest.raises(OSError, match="No space left"):
            gathered.update()
    assert count(load(tmp_path / "whole", SESSION)) == 1
    gathered.update()
    assert count(load(tmp_path / "whole", SESSION)) == 2


def test_gatherers_into_one_directory_publish_what_any_of_them_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them looks, is slow to publish, and ends."""
    url = str(tmp_path / "store")
    record(tmp_path / "site", 1, url)
    into = Session.named(SESSION, tmp_path / "whole")
    stays, ends = (GatheredSession(into, Gathering(SESSION, url)) for _ in range(2))
    for gatherer in (stays, ends):
        gatherer.update()
    record(tmp_path / "site", 1, url)
    read = ends._gathering.read

    def read_slowly() -> set[str]:
        new = read()
        record(tmp_path / "site", 5, url)
        assert stays.update()
        return new

    monkeypatch.setattr(ends._gathering, "read", read_slowly)
    assert ends.update()
    assert count(load(tmp_path / "whole", SESSION)) == 7
    published = (tmp_path / "whole" / SESSION / "metrics.json").read_bytes()
    for _ in range(3):
        assert not stays.update()
    assert (tmp_path / "whole" / SESSION / "metrics.json").read_bytes() == published  # nothing was new
