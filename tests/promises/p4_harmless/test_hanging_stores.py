"""A store that hangs, refuses or is gone harms nobody: not those who record, not those who merge or fork."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from m31a_mp import Collector, gather, verify
from m31a_mp import collector as collectors
from m31a_mp.inspection import unshared as unshared_module
from m31a_mp.sharing import sharer
from m31a_mp.sharing.directory import DirectoryStore
from metrics_of import SESSION, count, count_of
from servers import Server, waited_for
from workers import Forked


def sockets() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return {link for link in found if link.startswith("socket:")}


def shared(server: Server) -> int:
    """The number of the state that the server has; read by a client of its own."""
    [line] = server.do("HVALS", f"m31a_mp:{{{SESSION}}}:sites")
    return int(line.partition(b" ")[0])


@pytest.fixture
def own_server(server: Server) -> Server:
    server.do("FLUSHALL")
    return server


def test_records_flushes_and_looks_go_on_while_the_store_hangs(own_server: Server, tmp_path: Path) -> None:
    with Collector(SESSION, tmp_path, share=own_server.url) as collector:
        assert not collector.share_now(time.monotonic() + 60)
        before = shared(own_server)
        own_server.stop()
        try:
            for _ in range(20):
                for _ in range(100):
                    collector.record_tool_call("bash", True, 1)
                collector.flush()
                assert count(collector.snapshot()) == count_of(tmp_path)
            with Forked(collector.record_tool_call, "bash", True, 1) as child:
                assert child.wait() == 0
        finally:
            own_server.resume()
        collector.flush()
        waited_for(lambda: shared(own_server) > before)
        waited_for(lambda: count(gather(SESSION, own_server.url)) == 2001)


@pytest.mark.slow
def test_stop_ends_although_the_store_hangs_and_says_what_to_do(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collectors, "_SHARE_SECONDS", 0.1)
    collector = Collector(SESSION, tmp_path, share=own_server.url)
    assert not collector.share_now(time.monotonic() + 60)
    own_server.stop()
    try:
        collector.record_tool_call("bash", True, 1)
        collector.stop()
        with Collector(SESSION, tmp_path):
            pass  # the lease was given back
    finally:
        own_server.resume()
    command = re.search(r"m31a-mp (share --once --to \S+ \S+)", caplog.text)
    assert command
    program = [sys.executable, "-m", "m31a_mp", *command[1].split()]
    subprocess.run(program, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert count(gather(SESSION, own_server.url)) == 1


def test_store_that_hangs_from_the_first_share_on_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of a network file system may hang without an error, and without an end."""
    go_on = threading.Event()
    monkeypatch.setattr(DirectoryStore, "put", lambda *_: go_on.wait() and None)
    monkeypatch.setattr(unshared_module, "_GRACE_NS", 0)
    collector = Collector(SESSION, tmp_path, share=tmp_path / "store")
    waited_for(lambda: any("the store hangs" in str(found) for found in verify(tmp_path, SESSION)))
    go_on.set()
    collector.stop()
    assert verify(tmp_path, SESSION) == []


def test_stop_tells_a_program_without_logging(tmp_path: Path) -> None:
    program = (
        "import sys; from m31a_mp import Collector\n"
        "Collector('s', sys.argv[1], share=f'unix://:secret@{sys.argv[1]}/none').stop()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "is not shared: " in done.stderr
    assert "m31a-mp share --once" in done.stderr
    assert "secret" not in done.stderr


def test_failures_are_warned_of_once_and_end_when_the_store_is_back(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharer, "_LAST_RETRY_SECONDS", 0.01)
    with Collector(SESSION, tmp_path, share=own_server.url, flush_interval=0.01) as collector:
        assert not collector.share_now(time.monotonic() + 60)
        own_server.kill()
        for _ in range(5):
            collector.record_tool_call("bash", True, 1)
            assert collector.share_now(time.monotonic() + 60)
        assert caplog.text.count("is not shared with other machines") == 1
        own_server.start()
        waited_for(lambda: count(gather(SESSION, own_server.url)) == 5 if own_server.do("DBSIZE") else False)


@pytest.mark.slow
def test_forks_at_any_moment_of_a_share_leave_parent_and_child_well(
    own_server: Server, tmp_path: Path
) -> None:
    others = sockets()
    with Collector(SESSION, tmp_path, share=own_server.url) as collector:
        assert not collector.share_now(time.monotonic() + 60)
        assert sockets() - others
        ended = threading.Event()

        def share_all_the_time() -> None:
            while not ended.is_set():
                collector.record_tool_call("parent", True, 1)
                collector.flush()
                assert not collector.share_now(time.monotonic() + 60)

        thread = threading.Thread(target=share_all_the_time)
        thread.start()

        def child() -> None:
            assert not sockets() - others
            collector.record_tool_call("child", True, 1)
            collector.stop()
            assert collector.share_now(0.0) == ""

        children = []
        for _ in range(50):
            with Forked(child) as forked:
                children.append(forked.wait())
        ended.set()
        thread.join()
        assert children == [0] * 50
        collector.flush()
        assert not collector.share_now(time.monotonic() + 60)
    whole = gather(SESSION, own_server.url)
    tool = whole.tool("child")
    assert tool
    assert tool.call_count == 50
    assert len(whole.sites) == 1


def test_forgotten_collector_leaves_no_thread(tmp_path: Path) -> None:
    collector = Collector(SESSION, tmp_path, share=tmp_path / "store")
    names = [thread.name for thread in threading.enumerate()]
    assert "m31a_mp share" in names
    del collector
    waited_for(lambda: "m31a_mp share" not in [thread.name for thread in threading.enumerate()])


def test_program_that_ends_without_stop_shares_its_end(own_server: Server, tmp_path: Path) -> None:
    program = (
        "import sys; from m31a_mp import Collector\n"
        "c = Collector('s', sys.argv[1], share=sys.argv[2]); c.record_tool_call('bash', True, 1)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), own_server.url]
    subprocess.run(command, check=True, timeout=60)
    assert count(gather(SESSION, own_server.url)) == count_of(tmp_path)
