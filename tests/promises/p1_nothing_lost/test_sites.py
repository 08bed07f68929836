"""Many machines: sites, their workers and the store die at any time; in the end each record counts once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from crashes import Acknowledge, Run, cases, record_calls
from m31a_mp import Collector, SessionMetrics, attach, compact, gather, load
from m31a_mp.session.paths import Session
from m31a_mp.sharing import keeper
from m31a_mp.sharing.sharer import Sharing
from m31a_mp.sharing.store import open_store
from metrics_of import SESSION, calls, count
from servers import BINARIES, DURABLE, EMPTY, Server, server_kind, waited_for
from workers import Counters, Forked

SITES = 16
WORKERS = 2
AT_ONCE = 10  # records for each command to a worker


def share(directory: Path, url: str) -> None:
    """Share what a dead owner left, as the next one does."""
    compact(directory, SESSION)
    sharing = Sharing(Session.named(SESSION, directory), open_store(url))
    sharing.share(again=True)
    sharing.close()


class Site:
    """A machine: a directory, an owner that shares it, and workers that record when they are told."""

    def __init__(self, number: int, directory: Path, url: str, acknowledged: Counters) -> None:
        self.directory = directory / str(number)
        self.indexes = range(number * WORKERS, (number + 1) * WORKERS)
        self.is_killed = False
        self._acknowledged = acknowledged
        self._told = 0
        self._url = url
        self._reading, self._writing = os.pipe()
        self.process = Forked(self._own)

    def _own(self) -> None:
        os.setpgid(0, 0)
        with Collector(SESSION, self.directory, share=self._url, flush_interval=0.2) as collector:
            workers = [Forked(self._work, collector, index) for index in self.indexes]
            for worker in workers:
                assert worker.wait() == 0

    def _work(self, collector: Collector, index: int) -> None:
        while os.read(self._reading, 1) == b".":
            for _ in range(AT_ONCE):
                collector.record_tool_call(f"tool {index}", True, 1)
                self._acknowledged[index] += 1

    def record(self) -> None:
        """Have more recorded. Either worker may do it."""
        os.write(self._writing, b".")
        self._told += AT_ONCE

    def is_done(self) -> bool:
        return sum(self._acknowledged[index] for index in self.indexes) == self._told

    def kill(self) -> None:
        self.is_killed = True
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        os.write(self._writing, b"q" * WORKERS)
        return self.process.wait()

    def clean_up(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        os.close(self._reading)
        os.close(self._writing)


@contextmanager
def sites_of(directory: Path, url: str, acknowledged: Counters) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        sites = []
        for number in range(SITES):
            sites.append(Site(number, directory, url, acknowledged))
            stack.callback(sites[-1].clean_up)
        yield sites


def gathered(url: str) -> SessionMetrics | None:
    with suppress(OSError):
        return gather(SESSION, url)
    return None


def mayhem(server: Server) -> Iterator[str]:
    """Do something to the server, and say what; undo it when the next thing comes."""
    yield "nothing"
    server.kill()
    yield "killed"
    server.start()
    yield "started again"
    server.stop()
    yield "stopped"
    server.resume()
    server.do("CLIENT", "KILL", "TYPE", "normal")
    yield "connections cut"
    server.do("CONFIG", "SET", "maxmemory", 1)
    yield "memory full"
    server.do("CONFIG", "SET", "maxmemory", 0)
    for site in server.do("HKEYS", f"m31a_mp:{{{SESSION}}}:sites")[: SITES // 2]:
        server.do("HSET", f"m31a_mp:{{{SESSION}}}:sites", site, b"garbage")
    yield "garbage in the hash"
    server.do("FLUSHALL")
    server.do("SET", f"m31a_mp:{{{SESSION}}}:sites", "a value of another type")
    yield "a value of another type"
    server.do("FLUSHALL")
    yield "emptied"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [EMPTY, DURABLE], ids=["forgets", "persists"])
@pytest.mark.parametrize("kind", BINARIES or ["none"])
def test_sixteen_sites_and_a_server_under_attack_lose_and_double_nothing(
    kind: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    acknowledged = Counters(tmp_path / "acknowledged", SITES * WORKERS)
    with server_kind(kind, *options) as server, sites_of(tmp_path, server.url, acknowledged) as sites:
        for number, what in enumerate(mayhem(server)):
            living = [site for site in sites if not site.is_killed]
            for site in living:
                site.record()
                site.record()
            if number % 2:
                living.pop(number).kill()  # in the middle of its records, or of a share
            waited_for(partial(all_done, living))
            if what not in {"killed", "stopped"} and (metrics := gathered(server.url)):
                assert count(metrics) <= sum(acknowledged.read()) + SITES * WORKERS, what
        for site in sites:
            if site.is_killed:
                share(site.directory, server.url)
            else:
                assert site.end() == 0
        whole = gather(SESSION, server.url)
    assert [site.problem for site in whole.sites if site.problem] == []
    assert len(whole.sites) == SITES
    found = calls(whole)
    for site in sites:
        for index in site.indexes:
            least = acknowledged[index]
            most = least + site.is_killed  # the last record of a killed worker may not be acknowledged
            assert least <= found.get(f"tool {index}", 0) <= most, index


def all_done(sites: list[Site]) -> bool:
    return all(site.is_done() for site in sites)


def _shared_life(sessions: Path, acknowledge: Acknowledge) -> None:
    """An owner shares now and then; a worker dies; the owner stops."""
    collector = Collector(SESSION, sessions, share=sessions / "store")
    for _ in range(2):
        record_calls(collector, acknowledge, 2)
        collector.flush()
        assert not collector.share_now(time.monotonic() + 60)
    if not os.fork():
        record_calls(collector, acknowledge, 2)
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    record_calls(collector, acknowledge, 1)
    collector.stop()


@pytest.mark.slow
def test_owner_that_dies_at_any_step_is_whole_again_after_the_next_share(tmp_path: Path) -> None:
    for number, (point, nth) in enumerate(list(cases(_shared_life, tmp_path / "whole"))):
        sessions = tmp_path / str(number)
        run = Run(_shared_life, sessions, (point, nth))
        assert run.status == -signal.SIGKILL, (point, nth)
        url = str(sessions / "store")
        before = gathered(url)
        assert before is None or count(before) <= run.acknowledged + 1, (point, nth)
        share(sessions, url)
        whole = gather(SESSION, url)
        assert whole.sites[0].problem == "", (point, nth)
        assert len(whole.sites) == 1, (point, nth)
        assert run.acknowledged <= count(whole) <= run.acknowledged + 1, (point, nth)
        assert count(load(sessions, SESSION)) == count(whole), (point, nth)


@pytest.mark.parametrize("is_before", [True, False])
def test_death_around_the_replacement_of_a_state_in_a_directory(tmp_path: Path, is_before: bool) -> None:
    url = str(tmp_path / "store")
    with Collector(SESSION, tmp_path, share=url) as collector:
        record_calls(collector, lambda: None, 2)

    def share_and_die() -> None:
        real = os.replace

        def replace(source: str, target: str) -> None:
            if not is_before:
                real(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        compact(tmp_path, SESSION)
        os.replace = replace  # type: ignore[assignment]
        share(tmp_path, url)

    record_calls(attach(SESSION, tmp_path), lambda: None, 1)
    with Forked(share_and_die) as child:
        assert child.wait() == -signal.SIGKILL
    assert count(gather(SESSION, url)) in {2, 3}
    share(tmp_path, url)
    assert count(gather(SESSION, url)) == 3


ATTACHED = 3
ROUNDS = 12


def _attached(sessions: Path, url: str, acknowledged: Counters, index: int) -> None:
    keeper._TRY_SECONDS = keeper.FLUSH_SECONDS = 0.05
    recorder = attach(SESSION, sessions, share=url)
    while True:
        recorder.record_tool_call(f"tool {index}", True, 1)
        acknowledged[index] += 1
        time.sleep(0.002)


def _owner(sessions: Path, acknowledged: Counters) -> None:
    with Collector(SESSION, sessions) as collector:
        before = acknowledged.read()
        collector.flush()
        found = calls(load(sessions, SESSION))
        assert all(found.get(f"tool {i}", 0) >= least for i, least in enumerate(before))


@pytest.mark.slow
def test_owners_come_and_go_while_attached_processes_that_share_are_killed(tmp_path: Path) -> None:
    sessions, url = tmp_path / "sessions", str(tmp_path / "store")
    acknowledged = Counters(tmp_path / "acknowledged", ATTACHED)
    with ExitStack() as stack:

        def started(index: int) -> Forked:
            return stack.enter_context(Forked(_attached, sessions, url, acknowledged, index))

        attached = [started(index) for index in range(ATTACHED)]
        for number in range(ROUNDS):
            index = number % ATTACHED
            acknowledged.wait_for(index, acknowledged[index] + 10)
            with Forked(_owner, sessions, acknowledged) as owner:
                if number % 3 == 0:
                    time.sleep(0.005 * number)  # at any moment of its life
                    owner.kill()
                else:
                    assert owner.wait() == 0  # it was not refused
            attached[index].kill()
            attached[index] = started(index)
        for process in attached:
            process.kill()
        share(sessions, url)
        found = calls(gather(SESSION, url))
    assert found == calls(load(sessions, SESSION))
    for index in range(ATTACHED):
        least = acknowledged[index]
        assert least <= found[f"tool {index}"] <= least + ROUNDS, index
