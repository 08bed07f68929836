"""Who a process is: a pid alone is not enough, and doubt means alive."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from m31a_mp import compact
from m31a_mp.system import files, process
from workers import changed


def test_this_process_is_seen_alive() -> None:
    me = process.current()
    assert me.pid == os.getpid()
    assert process.seen_alive(me)


def test_pid_that_belongs_to_another_process_now_is_not_seen_alive() -> None:
    me = process.current()
    assert not process.seen_alive(changed(me, started=me.started - 1))


def test_process_of_another_boot_or_namespace_is_not_seen() -> None:
    assert not process.seen_alive(changed(process.current(), boot_id="0" * 36))
    assert not process.seen_alive(changed(process.current(), namespace=1))


def test_process_is_seen_until_it_ends_and_not_as_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process._identity(child.pid)
    assert process.seen_alive(identity)
    assert child.stdin
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
    assert not process.seen_alive(identity)
    child.wait()
    assert not process.seen_alive(identity)


def test_doubt_means_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> str:
        raise PermissionError

    me = process.current()
    monkeypatch.setattr(files, "read", denied)
    assert process.seen_alive(me)


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**40, 2**70])
def test_number_that_is_no_pid_is_of_no_process(pid: int) -> None:
    assert not process.seen_alive(changed(process.current(), pid=pid))


def test_process_that_only_proc_hides_is_seen_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(*_: object) -> str:
        raise FileNotFoundError

    me = process.current()
    monkeypatch.setattr(files, "read", hidden)
    assert process.seen_alive(me)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not process.seen_alive(changed(me, pid=child.pid))


def test_forked_child_is_another_process() -> None:
    parent = process.current()
    pid = os.fork()
    if not pid:
        child = process.current()
        os._exit(0 if child.pid == os.getpid() != parent.pid and process.seen_alive(child) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert process.current() == parent


@pytest.mark.parametrize("name", ["a b", "a) S 1 (b", ")"])
def test_start_is_told_of_a_process_with_any_name(name: str) -> None:
    started = process._started(os.getpid())
    with open("/proc/self/comm", "r+") as stream:
        old = stream.read()
        stream.seek(0)
        stream.write(name)
    try:
        assert process._started(os.getpid()) == started
    finally:
        with open("/proc/self/comm", "w") as stream:
            stream.write(old)


def test_process_is_described_by_pid_and_name_and_a_gone_one_by_its_pid() -> None:
    assert f"pid {os.getpid()}" in process.describe(os.getpid())
    assert " ".join(psutil.Process().name().split()) in process.describe(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process.describe(child.pid) == f"pid {child.pid}"


def test_start_time_is_a_time_before_now() -> None:
    told = process.start_time(os.getpid())
    assert told
    started = datetime.fromisoformat(told)
    assert started.utcoffset() == timedelta(0)
    assert started <= datetime.now(UTC)


WITHOUT_PROC = """
import os, sys

opened = os.open


def hidden(path, *arguments, **options):
    if os.fspath(path).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", path)
    return opened(path, *arguments, **options)


os.open = hidden
import psutil
psutil.PROCFS_PATH = "/nowhere"
from m31a_mp import Collector, attach

with Collector("s", sys.argv[1]) as collector:
    attach("s", sys.argv[1]).record_tool_call("bash", True, 1)
    collector.flush()
    attach("s", sys.argv[1]).record_tool_call("bash", True, 1)
"""

AT_THE_END = """
import builtins, sys
from m31a_mp import attach


class Last:
    def __init__(self):
        self.recorder = attach("s", sys.argv[1])

    def __del__(self):
        self.recorder.record_tool_call("bash", True, 1)


builtins.last = [Last(), Last()]
"""


@pytest.mark.parametrize("program", [WITHOUT_PROC, AT_THE_END])
def test_records_are_kept_without_proc_and_in_a_finalizer_at_the_end(sessions: Path, program: str) -> None:
    command = [sys.executable, "-c", program, str(sessions)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    (tool,) = compact(sessions, "s").metrics.tools
    assert tool.call_count == 2
