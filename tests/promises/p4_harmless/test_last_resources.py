"""The last inodes, descriptors, memory, and the last moments of a process: the program goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from m31a_mp import (
    Collector,
    JournalLockedError,
    attach,
    compact,
    load,
    verify,
)
from m31a_mp.journal.append import Journal
from m31a_mp.segments import staging
from m31a_mp.segments.writer import Writer
from metrics_of import calls
from workers import Forked


@pytest.mark.parametrize("small_disk", ["size=64m,nr_inodes=20"], indirect=True)
def test_workers_leave_the_inodes_that_publishing_needs(small_disk: Path) -> None:
    with Collector("s", small_disk) as collector:
        for _ in range(30):
            with Forked(lambda: attach("s", small_disk).record_tool_call("tool", True, 1)) as worker:
                assert worker.wait() == 0
        seen = calls(collector.snapshot())
        assert seen["tool"] > 0
        collector.flush()
        assert calls(load(small_disk, "s")) == seen


@pytest.mark.usefixtures("segments_at_once")
def test_program_that_closed_all_descriptors_keeps_a_file_of_the_size_of_a_segment(tmp_path: Path) -> None:
    def program() -> None:
        recorder = attach("s", tmp_path)
        recorder.record_tool_call("tool", True, 1)
        [segment] = (tmp_path / "s" / "segments").iterdir()
        size = segment.stat().st_size
        os.closerange(3, 1000)
        mine = [os.open(tmp_path / f"host {i}", os.O_RDWR | os.O_CREAT) for i in range(6)]
        for fd in mine:
            os.ftruncate(fd, size)
        recorder.stop()
        for fd in mine:
            os.fstat(fd)

    with Collector("s", tmp_path), Forked(program) as child:
        assert child.wait() == 0


def test_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> None:
        raise orjson.JSONDecodeError("Not enough memory to allocate buffer for parsing", "", 0)

    with Collector("s", tmp_path) as collector:
        collector.record_tool_call("tool", True, 1)
        with monkeypatch.context() as patch:
            patch.setattr(orjson, "loads", fail)
            with pytest.raises(MemoryError):
                collector.flush()
        collector.flush()
    assert calls(load(tmp_path, "s")) == {"tool": 1}
    assert verify(tmp_path, "s") == []


def test_record_does_not_raise_what_a_handler_of_the_log_raises(tmp_path: Path) -> None:
    program = """
import logging, sys
from m31a_mp import attach
class Handler(logging.Handler):
    def handle(self, record):
        raise RuntimeError
logging.getLogger("m31a_mp").addHandler(Handler())
attach("s", "/dev/null").record_tool_call("tool", True, 1)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


LAST = """
from m31a_mp import Usage, attach
class Last:
    def __init__(self):
        self.recorder = attach("s", {sessions!r})
    def __del__(self):
        for _ in range(300):
            self.recorder.record_tool_call("last", True, 1)
            self.recorder.record_phase_transition("last")
            self.recorder.record_phase_duration("last", 1, True)
            self.recorder.record_llm_interaction("last", USAGE, 1.0)
USAGE = Usage(1, 2, 3)
{keep}
"""


@pytest.mark.parametrize(
    "keep",
    [
        "last = Last()",
        "last = Last(); last.itself = last",
        "import builtins; builtins.last = Last()",
        "import m31a_mp.system.files, m31a_mp.segments.staging; last = Last()",
        "import sys, types; sys.modules['own'] = own = types.ModuleType('own'); own.last = Last()",
    ],
)
def test_finalizer_of_an_object_that_lives_to_the_end_of_the_interpreter_records(
    keep: str, tmp_path: Path
) -> None:
    program = LAST.format(sessions=str(tmp_path), keep=keep)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    metrics = compact(tmp_path, "s").metrics
    assert calls(metrics) == {"last": 300}
    assert [phase.transition_count for phase in metrics.phases] == [300]
    assert [llm.interaction_count for llm in metrics.llms] == [300]


@pytest.mark.usefixtures("segments_at_once")
def test_end_of_a_process_that_dropped_in_many_sessions_waits_for_their_locks_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, waits = 100.0, list[float]()

    def held(_: Journal, __: object, timeout: float) -> None:
        nonlocal now
        waits.append(timeout)
        now += timeout
        raise JournalLockedError("held", "journal.lock", [])

    monkeypatch.setattr(Writer, "_make_room", lambda writer, _: writer._drop("no_space"))
    recorders = [attach(f"s{i}", tmp_path) for i in range(5)]
    for recorder in recorders:
        recorder.record_tool_call("tool", True, 1)
    monkeypatch.setattr(Journal, "hold", held)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    staging._report_drops()
    assert len(waits) == len(recorders)
    assert sum(waits) == pytest.approx(staging._EXIT_SECONDS)
