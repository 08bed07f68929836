"""Sharing without an owner: one process at a time merges and shares; the next one goes on when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from m31a_mp import Collector, Recorder, SessionOwnedError, attach, gather
from m31a_mp.inspection.status import Owner, State, owner_of, status
from m31a_mp.recorder import SHARE_VARIABLE
from m31a_mp.session import lease
from m31a_mp.session.lease import owning
from m31a_mp.session.paths import Session
from m31a_mp.sharing import keeper
from m31a_mp.system.flock import holders
from m31a_mp.system.process import start_time
from metrics_of import SESSION, count, count_of
from servers import waited_for
from workers import Forked, under_way

PROGRAM = """
import sys
from m31a_mp import attach
recorder = attach("s", sys.argv[1], share=sys.argv[2])
recorder.record_tool_call(sys.argv[3], True, 1)
print("ready", flush=True)
for line in sys.stdin:
    recorder.record_tool_call(sys.argv[3], True, 1)
    print("recorded", flush=True)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attempts come soon, and no thread goes on after its test."""
    monkeypatch.setattr(keeper, "_TRY_SECONDS", 0.02)
    monkeypatch.setattr(keeper, "FLUSH_SECONDS", 0.02)
    yield
    keeper._keepers.clear()
    waited_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("m31a_mp ")])


def gathered(url: str) -> int:
    try:
        return count(gather(SESSION, url))
    except (FileNotFoundError, OSError):
        return 0


def test_attached_process_merges_and_shares_without_an_owner(url: str, sessions: Path) -> None:
    recorder = attach(SESSION, sessions, share=url)
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: gathered(url) == 1)
    recorder.record_tool_call("bash", True, 1)
    recorder.stop()
    assert gathered(url) == 2  # stop() shares once more


@pytest.mark.slow
def test_owner_may_come_while_attached_processes_share(url: str, sessions: Path) -> None:
    """A program that crashed is started again, and the processes of its first run go on."""
    with Forked(own_and_die, sessions) as crashed:
        crashed.wait()
    recorder = attach(SESSION, sessions, share=url)
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: gathered(url) == 2)
    for calls in (4, 6):
        with Collector(SESSION, sessions) as owner:
            owner.record_tool_call("bash", True, 1)
            recorder.record_tool_call("bash", True, 1)
            owner.flush()
            assert count_of(sessions) == calls
            with pytest.raises(SessionOwnedError):
                Collector(SESSION, sessions)
        waited_for(lambda calls=calls: gathered(url) == calls)
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: gathered(url) == 7)


def own_and_die(sessions: Path) -> None:
    Collector(SESSION, sessions).record_tool_call("bash", True, 1)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_one_of_many_processes_has_the_turn_and_is_seen(url: str, sessions: Path) -> None:
    arguments = (sys.executable, "-c", PROGRAM, sessions, url, "bash")
    session = Session.named(SESSION, sessions)
    with under_way(*arguments) as one, under_way(*arguments) as two:
        waited_for(lambda: gathered(url) == 2)
        [pid] = holders(session.sharing_lock)
        assert pid in {one.pid, two.pid}
        assert waited_for(lambda: owner_of(session)) == Owner(pid, start_time(pid))
        assert status(session).state == State.RUNNING
    assert owner_of(session) is None


def test_removed_lock_is_taken_again(url: str, sessions: Path) -> None:
    recorder = attach(SESSION, sessions, share=url)
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: gathered(url) == 1)
    lock = sessions / SESSION / "sharing.lock"
    lock.unlink()
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: gathered(url) == 2)
    waited_for(lambda: holders(str(lock)) == [os.getpid()])


def test_owner_waits_for_a_merge_as_long_as_it_takes(sessions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge has much to do after a crash, and does what the owner would have to do."""
    session = Session.named(SESSION, sessions)
    session.make()
    monkeypatch.setattr(lease, "_LEASE_SECONDS", 0.001)
    is_merging, go_on = threading.Event(), threading.Event()

    def merge() -> None:
        is_merging.set()
        go_on.wait()

    merging = threading.Thread(target=owning, args=(session, merge))
    merging.start()
    is_merging.wait()
    tried: list[float] = []
    take = lease.Lease.take_if_free

    def take_at_last(session: Session, timeout: float) -> lease.Lease | None:
        tried.append(timeout)
        if len(tried) == 10:
            go_on.set()
            merging.join()
        return take(session, timeout)

    monkeypatch.setattr(lease.Lease, "take_if_free", take_at_last)
    Collector(SESSION, sessions).stop()
    assert len(tried) == 10


def test_owner_is_left_alone(url: str, sessions: Path) -> None:
    with Collector(SESSION, sessions, share=url) as owner:
        attach(SESSION, sessions, share=url).record_tool_call("bash", True, 1)
        owner.flush()
    assert gathered(url) == 1


@pytest.mark.slow
def test_next_process_goes_on_when_the_one_that_shares_is_killed(url: str, sessions: Path) -> None:
    arguments = (sys.executable, "-c", PROGRAM, sessions, url)
    with under_way(*arguments, "one") as one:
        waited_for(lambda: gathered(url) >= 1)
        with under_way(*arguments, "two") as two:
            assert two.stdin
            assert two.stdout
            for process in (one, two):
                assert process.stdin
                assert process.stdout
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "recorded\n"
            one.kill()
            one.wait()
            waited_for(lambda: gathered(url) == 4)
            two.stdin.write("\n")
            two.stdin.flush()
            waited_for(lambda: gathered(url) == 5)
    assert len(gather(SESSION, url).sites) == 1


@pytest.mark.slow
def test_process_that_ends_shares_what_it_recorded_last(url: str, sessions: Path) -> None:
    program = PROGRAM.partition("print")[0]
    subprocess.run([sys.executable, "-c", program, str(sessions), url, "bash"], check=True, timeout=60)
    with Collector(SESSION, sessions, share=url):
        pass  # whether its thread got to own the session or not
    assert gathered(url) == 1


@pytest.mark.slow
def test_program_that_ends_at_once_shares_its_record(url: str, sessions: Path) -> None:
    program = "import sys; from m31a_mp import attach\n"
    program += "attach('s', sys.argv[1], share=sys.argv[2]).record_tool_call('bash', True, 1)"
    for calls in (1, 2):
        subprocess.run([sys.executable, "-c", program, sessions, url], check=True)
        assert gathered(url) == calls


def record_one(sessions: Path, url: str) -> None:
    with attach(SESSION, sessions, share=url) as recorder:
        recorder.record_tool_call("bash", True, 1)


@pytest.mark.slow
def test_workers_of_a_pool_that_is_closed_leave_nothing_unshared(url: str, sessions: Path) -> None:
    with get_context("fork").Pool(2) as pool:
        pool.starmap(record_one, [(sessions, url)] * 20)
        pool.close()
        pool.join()
    assert gathered(url) == 20


def test_environment_names_the_store_to_children(
    url: str, sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector(SESSION, sessions, share=url) as collector:
        assert collector.env()[SHARE_VARIABLE] == url
        for name, value in collector.env().items():
            monkeypatch.setenv(name, value)
    recorder = Recorder.from_env()
    assert recorder.env() == collector.env()
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: gathered(url) == 1)


@pytest.mark.parametrize("wrong", ["http://host", "redis://:secret@host:port", "host:6379", ""])
def test_wrong_store_of_the_environment_stops_no_program(
    wrong: str, sessions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SHARE_VARIABLE, wrong)
    with Collector(SESSION, sessions) as collector:
        collector.record_tool_call("bash", True, 1)
    assert ("M31A_MP_SHARE" in caplog.text) is bool(wrong)
    assert "secret" not in caplog.text


def test_store_of_the_environment_that_cannot_be_opened_is_told_once(
    sessions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SHARE_VARIABLE, "redis://:secret@host?foo=1")
    attempts: list[object] = []
    taken = keeper.Keeper._take_turn

    def take(self: keeper.Keeper) -> object:
        attempts.append(self)
        return taken(self)

    monkeypatch.setattr(keeper.Keeper, "_take_turn", take)
    recorder = attach(SESSION, sessions)
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: len(attempts) > 5)
    assert caplog.text.count("has no option 'foo'") == 1
    assert "secret" not in caplog.text
    waited_for(lambda: not holders(str(sessions / SESSION / "sharing.lock")))  # between two attempts


def test_wrong_store_in_an_argument_is_refused_and_nothing_is_made(sessions: Path) -> None:
    for wrong in ("http://host", "redis://:secret@host:port", "host:6379", "redis://host?foo=1", ""):
        with pytest.raises(ValueError, match=r"store|server"):
            Collector(SESSION, sessions, share=wrong)
        with pytest.raises(ValueError, match=r"store|server"):
            attach(SESSION, sessions, share=wrong)
    assert not sessions.exists()


def test_disabled_collector_shares_nothing(tmp_path: Path, sessions: Path) -> None:
    Collector(SESSION, sessions, False, share=tmp_path / "store").stop()
    assert not (tmp_path / "store").exists()


def test_child_of_a_fork_keeps_nothing_and_may_start_its_own(url: str, sessions: Path) -> None:
    recorder = attach(SESSION, sessions, share=url)
    recorder.record_tool_call("bash", True, 1)
    waited_for(lambda: gathered(url) == 1)

    def child() -> None:
        assert not keeper._keepers
        recorder.record_tool_call("bash", True, 1)
        recorder.stop()
        assert not keeper._keepers
        attach(SESSION, sessions, share=url)
        assert list(keeper._keepers) == [Session.named(SESSION, sessions)]

    with Forked(child) as forked:
        assert forked.wait() == 0
    waited_for(lambda: gathered(url) == 2)


def test_fork_waits_for_the_import_of_a_thread(sessions: Path) -> None:
    """A child must not find a module half imported, whose import never ends in it."""
    program = """
import os, sys, threading
from m31a_mp.sharing import keeper
started, go_on = threading.Event(), threading.Event()
def importing():
    with keeper._importing:
        started.set()
        go_on.wait(10)
threading.Thread(target=importing).start()
started.wait()
threading.Timer(0.05, go_on.set).start()
pid = os.fork()
assert go_on.is_set()
if not pid:
    with keeper._importing:
        os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
with keeper._importing:
    pass
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert not os.path.exists(sessions)


def test_fork_while_a_thread_imports_ends_and_says_nothing(sessions: Path, tmp_path: Path) -> None:
    """What is imported takes locks that a fork holds, too, and registers what forks do."""
    program = """
import os, sys, threading
from importlib.abc import MetaPathFinder
from m31a_mp import attach
importing, forking = threading.Event(), threading.Event()
class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "redis" and threading.current_thread().name == "m31a_mp keep":
            importing.set()
            forking.wait()
sys.meta_path.insert(0, Finder())
recorder = attach("s", sys.argv[1], share=sys.argv[2])
recorder.record_tool_call("bash", True, 1)
importing.wait()
os.register_at_fork(before=forking.set)
pid = os.fork()
if not pid:
    import logging, filelock, redis
    recorder.record_tool_call("bash", True, 1)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    store = tmp_path / "store"
    store.mkdir()
    command = [sys.executable, "-c", program, str(sessions), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    assert count_of(sessions) == 2
