"""Harm that the host program must not come to: its descriptors, and the sessions that it serves."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from m31a_mp import Collector, attach, compact
from m31a_mp.segments import staging, writer
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import FileLock
from metrics_of import calls
from workers import Forked

THREADS = 60
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("has it", flush=True)
time.sleep(9999)
"""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are so small that a few records fill one."""
    monkeypatch.setattr(writer, "FIRST_SEGMENT_BYTES", 1024)
    monkeypatch.setattr(writer, "MAX_SEGMENT_BYTES", 1024)


@pytest.mark.usefixtures("small")
@pytest.mark.usefixtures("segments_at_once")
def test_full_segments_take_no_descriptor_however_many_the_lock_keeps_back(session: Session) -> None:
    recorder = attach("s", session.sessions_dir)
    recorder.record_tool_call("first", True, 1)
    lock = FileLock(session.journal_lock)
    assert lock.acquire()
    before = descriptors()
    for _ in range(2000):
        recorder.record_tool_call("bash", True, 1)
    assert len(os.listdir(session.segments)) > 100
    assert descriptors() == before
    lock.release()
    for _ in range(2000):
        recorder.record_tool_call("bash", True, 1)
    assert len(os.listdir(session.segments)) < 100  # records alone have taken them to the journal
    found = compact(session.sessions_dir, "s").metrics
    assert calls(found) == {"bash": 4000, "first": 1}
    assert not found.dropped


def test_host_opens_files_while_the_locks_holder_is_stopped_and_all_is_counted_when_it_is_gone(
    session: Session,
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, session.journal_lock], stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline()
    holder.send_signal(signal.SIGSTOP)

    def record(recorded: int) -> None:
        writer.FIRST_SEGMENT_BYTES = writer.MAX_SEGMENT_BYTES = 2048
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        recorder = attach("s", session.sessions_dir)

        def fill() -> None:
            for _ in range(recorded):
                recorder.record_tool_call("bash", True, 1)

        threads = [threading.Thread(target=fill) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in range(20):
            os.open("/dev/null", os.O_RDONLY)

    with Forked(lambda: record(500)) as host:
        assert host.wait() == 0
    holder.kill()
    holder.wait()
    holder.stdout.close()
    found = compact(session.sessions_dir, "s").metrics
    assert [tool.call_count for tool in found.tools] == [16 * 500]
    assert not found.dropped
    assert os.listdir(session.segments) == []


@pytest.mark.slow
def test_threads_that_never_stop_share_what_descriptors_there_are(sessions: Path) -> None:
    def record() -> None:
        writer.FIRST_SEGMENT_BYTES = writer.MAX_SEGMENT_BYTES = 4096
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * THREADS + 40, 2 * THREADS + 40))
        recorder = attach("s", sessions)
        begin = threading.Barrier(THREADS)

        def fill() -> None:
            begin.wait()
            for _ in range(1000):
                recorder.record_tool_call("bash", True, 1)

        threads = [threading.Thread(target=fill) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with Forked(record) as host:
        assert host.wait() == 0
    found = compact(sessions, "s").metrics
    assert [tool.call_count for tool in found.tools] == [THREADS * 1000]
    assert not found.dropped


@pytest.mark.parametrize("is_kept", [False, True])
def test_process_that_serves_many_sessions_has_few_descriptors_and_loses_nothing(
    sessions: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    monkeypatch.setattr(staging, "MAX_ACTIVE", 8)
    gc.collect()
    others = set(staging._alive)  # of other tests
    kept = []
    attach("first", sessions).record_tool_call("bash", True, 1)
    before = descriptors()
    for _ in range(2):
        for number in range(50):
            recorder = attach(f"{number}", sessions)
            recorder.record_tool_call("bash", True, 1)
            if is_kept:
                kept.append(recorder)
    assert descriptors() <= before + 8
    gc.collect()
    assert len(staging._alive.keys() - others) <= 8 + len(kept)
    for number in range(50):
        (tool,) = compact(sessions, f"{number}").metrics.tools
        assert tool.call_count == 2


@pytest.mark.usefixtures("segments_at_once")
def test_session_that_is_served_again_and_again_keeps_its_segment(sessions: Path) -> None:
    for _ in range(100):
        attach("s", sessions).record_tool_call("bash", True, 1)
    assert len(os.listdir(sessions / "s" / "segments")) == 1


def test_fork_takes_no_part_in_what_a_recorder_that_is_gone_had_staged(sessions: Path) -> None:
    attach("s", sessions).record_tool_call("parent", True, 1)
    with Forked(lambda: attach("s", sessions).record_tool_call("child", True, 1)) as child:
        assert child.wait() == 0
    attach("s", sessions).record_tool_call("parent", True, 1)
    with Collector("s", sessions) as collector:
        found = collector.snapshot().tools
    assert {tool.name: tool.call_count for tool in found} == {"child": 1, "parent": 2}


def test_last_part_of_a_file_system_is_left_to_others(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = 4096
    size = 10_000
    free = size

    def status(_: object) -> os.statvfs_result:
        return os.statvfs_result((block, block, size, free, free, 100, 100, 100, 0, 255))

    monkeypatch.setattr(os, "statvfs", status)
    recorder = attach("s", session.sessions_dir)
    recorder.record_tool_call("kept", True, 1)
    recorder.stop()
    free = size // 20 + 2  # enough for a small one, and its records in the journal
    recorder.record_tool_call("kept", True, 1)
    recorder.stop()
    free = size // 20
    recorder.record_tool_call("dropped", True, 1)
    found = compact(session.sessions_dir, "s").metrics
    assert calls(found) == {"kept": 2}
    recorder.flush()
    assert compact(session.sessions_dir, "s").metrics.dropped == {"no_space": 1}
