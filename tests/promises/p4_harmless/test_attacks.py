"""What attackers from outside found: each was a promise broken once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from m31a_mp import (
    Collector,
    JournalLockedError,
    SessionMetrics,
    ToolMetric,
    attach,
    compact,
    load,
    save,
    verify,
)
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.segments import staging
from m31a_mp.segments.segment import Segment
from m31a_mp.segments.writer import Writer
from m31a_mp.session.paths import Session
from metrics_of import calls
from workers import Forked

LARGEST = sys.float_info.max


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "none", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


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


@pytest.mark.parametrize("small_disk", ["size=1m"], indirect=True)
def test_worker_that_dropped_records_tells_it_when_it_ends(small_disk: Path) -> None:
    program = f"""
import os, sys
from m31a_mp import attach
recorder = attach("s", {str(small_disk)!r})
recorder.record_tool_call("tool", True, 1)
os.unlink({str(small_disk / "filler")!r})
"""
    with Collector("s", small_disk) as collector:
        fill(small_disk)
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        assert collector.snapshot().dropped == {"no_space": 1}


@pytest.mark.parametrize("small_disk", ["size=1m"], indirect=True)
def test_snapshot_tells_what_its_own_process_dropped_before_any_file_says_it(small_disk: Path) -> None:
    with Collector("s", small_disk) as collector:
        fill(small_disk)
        for _ in range(7):
            collector.record_tool_call("tool", True, 1)
        assert collector.snapshot().dropped == {"no_space": 7}
        (small_disk / "filler").unlink()
        collector.flush()
        assert collector.snapshot().dropped == {"no_space": 7}


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


def test_segment_that_is_removed_while_its_successor_is_made_loses_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.named("s", tmp_path)
    create = Segment.create

    def create_and_remove_the_old_one(*args: object) -> Segment:
        removed = sorted((tmp_path / "s" / "segments").glob("*.seg"))
        made = create(*args)  # type: ignore[arg-type]
        for path in removed:
            path.unlink()
        return made

    recorder = attach("s", tmp_path)
    recorder.record_tool_call("tool", True, 1)
    monkeypatch.setattr(Segment, "create", create_and_remove_the_old_one)
    recorder.record_phase_transition("x" * 4000)
    for _ in range(10):
        recorder.record_phase_transition("x" * 4000)
    recorder.record_tool_call("tool", True, 1)
    monkeypatch.undo()
    recorder.flush()
    metrics = compact(tmp_path, session.id).metrics
    assert calls(metrics) == {"tool": 2}
    assert [phase.transition_count for phase in metrics.phases] == [11]


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


@pytest.mark.parametrize(
    ("costs", "total"),
    [
        ([LARGEST, LARGEST], LARGEST),
        ([-LARGEST, -LARGEST], -LARGEST),
        ([1.7e308, 1.7e308, -1.7e308], 1.7e308),
    ],
)
def test_sum_that_overflows_stops_at_its_own_end(costs: list[float], total: float) -> None:
    sums = ExactSum()
    for cost in costs:
        sums.append(cost)
    assert sums.value() == pytest.approx(total)


def test_counts_of_a_foreign_file_that_add_up_to_less_than_an_integer_of_go_stop_there(
    tmp_path: Path,
) -> None:
    save(
        tmp_path, "s", SessionMetrics("s", tools=[ToolMetric("tool", -(2**63)), ToolMetric("tool", -(2**63))])
    )
    assert calls(compact(tmp_path, "s").metrics) == {"tool": -(2**63)}
    assert calls(load(tmp_path, "s")) == {"tool": -(2**63)}


@pytest.mark.parametrize("version", [b"true", b"1.0", b'"1"', b"null"])
def test_version_that_only_equals_ours_is_none_of_ours(version: bytes, tmp_path: Path) -> None:
    with Collector("s", tmp_path):
        pass
    path = tmp_path / "s" / "metrics.json"
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": ' + version))
    assert [finding.file for finding in verify(tmp_path, "s")] == ["metrics.json"]


@pytest.mark.slow
def test_path_that_is_not_utf8_is_text_in_json(tmp_path: Path) -> None:
    sessions = os.fsencode(tmp_path) + b"/\xff"
    run = [sys.executable, "-m", "m31a_mp"]
    subprocess.run(
        [*run, "run", "--session", sessions + b"/s", "--", "true"], check=True, capture_output=True
    )
    for command in ("show", "verify", "compact"):
        done = subprocess.run([*run, command, "--json", sessions + b"/s"], check=True, capture_output=True)
        assert orjson.loads(done.stdout)["session"].endswith("/\\xff/s")


def test_batch_of_a_foreign_writer_counts_once_before_it_is_merged(tmp_path: Path) -> None:
    line = b'{"event":"tool_call","name":"tool","success":true,"duration_ms":1}\n'
    batch = Batch("foreign", 0, line)
    with Collector("s", tmp_path):
        (tmp_path / "s" / "journal.ndjson").write_bytes(2 * (batch.header() + line))
    assert calls(load(tmp_path, "s")) == {"tool": 1}


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


def test_slips_of_newcomers_are_told_what_helps(tmp_path: Path) -> None:
    recorder = attach("s", tmp_path)
    with pytest.raises(TypeError, match=r'@recorder\.tool\("NAME"\)'):
        recorder.tool(print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="from_response"):
        recorder.record_llm_interaction("plan", {"prompt_tokens": 1}, 0.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="metrics must be a SessionMetrics, not dict"):
        save(tmp_path, "s", {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sessions_dir must be a path, not NoneType"):
        Collector("s", None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


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
    staging._tell_drops()
    assert len(waits) == len(recorders)
    assert sum(waits) == pytest.approx(staging._EXIT_SECONDS)
