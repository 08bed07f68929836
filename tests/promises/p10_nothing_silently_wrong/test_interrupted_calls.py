"""A call that is under way is seen; one whose process died in it is counted, once, and is not missing."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from damage import tool_call
from m31a_mp import Collector, Recorder, SessionMetrics, attach, compact, load, verify
from m31a_mp.inspection.status import status
from m31a_mp.kinds.call import Caller
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.session.paths import Session
from m31a_mp.system import process
from metrics_of import SESSION, flushed, loaded, looked, looked_from_outside
from workers import METHODS, BoomError, Forked, Workers, begin, changed

SYS_EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
LOOKS = [flushed, looked, looked_from_outside]
Look = Callable[[Collector, Path], SessionMetrics]


def counted(metrics: SessionMetrics, tool: str = "hangs") -> tuple[int, int, int]:
    """How many calls are under way, how many are counted, and how many of these were interrupted."""
    found = metrics.tool(tool)
    running = [call for call in metrics.running if call.name == tool]
    return (len(running), found.call_count, found.interrupted_count) if found else (len(running), 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("method", METHODS)
def test_worker_killed_in_a_call_counts_once_in_every_way_to_see_it(
    method: str, look: Look, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    worker = started.start(method)
    worker.do(begin)
    [call] = look(collector, tmp_path).running
    assert (call.name, call.pid, call.host) == ("hangs", worker.pid, os.uname().nodename)
    worker.kill()
    for _ in range(3):
        assert counted(look(collector, tmp_path)) == (0, 1, 1)
    collector.stop()
    assert counted(loaded(tmp_path)) == (0, 1, 1)
    assert verify(tmp_path, SESSION) == []


@pytest.mark.parametrize("method", METHODS)
def test_call_of_a_process_that_lives_stays_under_way(
    method: str, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    worker = started.start(method)
    worker.do(begin)
    for _ in range(3):
        assert counted(flushed(collector, tmp_path)) == (1, 0, 0)
    collector.stop()
    assert counted(compact(tmp_path, SESSION).metrics) == (1, 0, 0)  # a new owner does not know better


def test_dead_process_that_nobody_has_waited_for_is_dead(collector: Collector, tmp_path: Path) -> None:
    with Forked(begin, collector) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert counted(flushed(collector, tmp_path)) == (0, 1, 1)


def test_end_that_a_dead_process_left_in_its_segment_counts_and_nothing_is_interrupted(
    collector: Collector, tmp_path: Path
) -> None:
    def call(recorder: Recorder) -> None:
        with recorder.tool_call("hangs"):
            attach(SESSION, tmp_path).flush()  # the beginning is in the journal, the end in the segment

    with Forked(call, collector) as child:
        assert child.wait() == 0
    assert counted(flushed(collector, tmp_path)) == (0, 1, 0)


@pytest.mark.parametrize("damage", [b"", b"garbage\n"])
def test_interrupted_call_stays_so_in_a_look_that_reads_the_journal_anew(
    damage: bytes, collector: Collector, tmp_path: Path
) -> None:
    with Forked(begin, collector) as child:
        assert child.wait() == 0
    assert counted(looked(collector, tmp_path)) == (0, 1, 1)
    with Path(Session.named(SESSION, tmp_path).journal).open("ab") as journal:
        # A line behind the room of an append that was never filled: the next look does not go on there.
        journal.write(damage + bytes(50) + tool_call("bash"))
    for _ in range(3):
        assert counted(looked(collector, tmp_path)) == (0, 1, 1)


@pytest.mark.parametrize("look", LOOKS)
def test_process_that_asks_whether_another_lives_is_not_taken_for_it(
    look: Look, collector: Collector, tmp_path: Path
) -> None:
    with Forked(begin, collector) as child:
        assert child.wait() == 0
    [segment] = list_segments(Session.named(SESSION, tmp_path).segments)
    with SegmentFile.open(segment) as file:
        assert not file.is_locked()
        assert counted(look(collector, tmp_path)) == (0, 1, 1)


def test_owner_killed_in_its_own_call_is_counted_by_the_next(tmp_path: Path) -> None:
    def own() -> None:
        collector = Collector(SESSION, tmp_path)
        begin(collector)
        collector.flush()
        os.kill(os.getpid(), 9)

    with Forked(own) as owner:
        assert owner.wait() == -9
    assert counted(loaded(tmp_path)) == (1, 0, 0)
    with Collector(SESSION, tmp_path) as collector:
        assert counted(collector.snapshot()) == (0, 1, 1)
    assert counted(loaded(tmp_path)) == (0, 1, 1)


def test_child_forked_in_a_call_leaves_the_end_to_its_parent(collector: Collector, tmp_path: Path) -> None:
    with collector.tool_call("hangs"):
        pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert counted(flushed(collector, tmp_path)) == (0, 1, 0)


def test_program_that_is_replaced_in_a_call_is_interrupted_when_it_ends(
    collector: Collector, tmp_path: Path
) -> None:
    def become_another_program(recorder: Recorder) -> None:
        begin(recorder)
        program = "import sys; print('ready', flush=True); sys.stdin.read()"
        os.dup2(stdin[0], 0)
        os.dup2(stdout[1], 1)
        os.execv(sys.executable, [sys.executable, "-c", program])

    stdin, stdout = os.pipe(), os.pipe()
    with Forked(become_another_program, collector) as child:
        os.close(stdin[0])
        assert os.read(stdout[0], 5) == b"ready"
        assert counted(flushed(collector, tmp_path)) == (1, 0, 0)
        os.close(stdin[1])
        assert child.wait() == 0
        assert counted(flushed(collector, tmp_path)) == (0, 1, 1)


@pytest.mark.parametrize("misleads", [{"boot_id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427"}, {"started": 1}])
def test_worker_that_maps_a_segment_lives_whatever_its_identity_says(
    collector: Collector, tmp_path: Path, misleads: dict[str, int | str]
) -> None:
    seen_by_itself = changed(process.current(), **misleads)

    def call(recorder: Recorder) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "current", lambda: changed(seen_by_itself, pid=os.getpid()))
            with recorder.tool_call("hangs"):
                os.write(told[1], b".")
                signal.pause()

    told = os.pipe()
    with Forked(call, collector) as child:
        os.read(told[0], 1)
        for look in LOOKS:
            assert counted(look(collector, tmp_path)) == (1, 0, 0)
        child.kill()
        assert counted(flushed(collector, tmp_path)) == (0, 1, 1)


def test_process_whose_main_thread_has_ended_lives(collector: Collector, tmp_path: Path) -> None:
    stop, entered = os.pipe(), threading.Event()

    def call() -> None:
        with collector.tool_call("hangs"):
            entered.set()
            os.read(stop[0], 1)
        os._exit(0)

    def leave_it_to_a_thread() -> None:
        threading.Thread(target=call).start()
        entered.wait()
        ctypes.CDLL(None).syscall(SYS_EXIT, 0)  # only this thread ends

    with Forked(leave_it_to_a_thread) as child:
        while process._stat(child.pid)[0] != "Z":
            os.sched_yield()
        assert not process.proven_dead(changed(process.current(), pid=child.pid, started=0))
        assert counted(flushed(collector, tmp_path)) == (1, 0, 0)
        os.write(stop[1], b".")
        assert child.wait() == 0
        assert counted(flushed(collector, tmp_path)) == (0, 1, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to make a pid namespace")
def test_proc_of_another_pid_namespace_proves_nothing() -> None:
    program = (
        "import sys; from m31a_mp.system import process as p;"
        "me = p.current(); me.pid += 1000; sys.exit(p.proven_dead(me))"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", program]
    assert subprocess.run(command, check=False).returncode == 0


def test_handler_that_raises_as_the_block_is_entered_leaves_no_call_under_way(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = collector._put_tool_started

    def record_and_raise(name: str, call: str) -> None:
        record(name, call)
        raise BoomError

    monkeypatch.setattr(collector, "_put_tool_started", record_and_raise)
    with pytest.raises(BoomError), collector.tool_call("hangs"):
        pytest.fail("the block was entered")
    metrics = flushed(collector, tmp_path)
    assert counted(metrics) == (0, 1, 0)
    assert metrics.tools[0].errors == {"BoomError": 1}


def test_interruption_that_metrics_json_does_not_have_yet_is_told(
    collector: Collector, tmp_path: Path
) -> None:
    with Forked(begin, collector) as child:
        child.wait()
        collector.record_tool_call("other", True, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "proven_dead", lambda _: False)  # it died right after
            collector.stop()
    assert counted(loaded(tmp_path)) == (1, 0, 0)
    found = status(Session.named(SESSION, tmp_path))
    assert (found.unmerged, found.interrupted, counted(found.metrics)) == (0, 1, (0, 1, 1))
    done = compact(tmp_path, SESSION)
    assert (done.records, done.interrupted) == (0, 1)
    assert status(Session.named(SESSION, tmp_path)).interrupted == 0


@pytest.mark.parametrize(
    ("other", "is_interrupted"),
    [
        ({"boot_id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427"}, True),
        ({"started": 1}, True),
        ({"namespace": 1}, False),
        ({"boot_id": ""}, False),
        ({"namespace": 0}, False),
        ({"started": 0}, False),
    ],
)
def test_only_a_proof_of_death_interrupts(
    collector: Collector, tmp_path: Path, other: dict[str, int | str], is_interrupted: bool
) -> None:
    who = changed(process.current(), **other)
    before, behind = Caller(who.pid, who.started, who.namespace, who.boot_id, "host").ids("run")
    collector.record_tool_started("hangs", f"{before}1{behind}")
    assert counted(flushed(collector, tmp_path)) == ((0, 1, 1) if is_interrupted else (1, 0, 0))


@pytest.mark.slow
def test_worker_of_a_pool_killed_in_a_call_is_in_the_table_and_the_others_go_on(tmp_path: Path) -> None:
    with Collector(SESSION, tmp_path) as collector:
        workers = []
        for method in METHODS[:3]:
            process_ = multiprocessing.get_context(method).Process(target=hang, args=(collector,))  # type: ignore[attr-defined]
            process_.start()
            workers.append(process_)
        while len(collector.snapshot().running) < 3:
            pass
        workers[0].kill()
        workers[0].join()
        assert counted(collector.snapshot()) == (2, 1, 1)
        for worker in workers[1:]:
            worker.kill()
            worker.join()
    metrics = load(tmp_path, SESSION)
    assert metrics is not None
    assert counted(metrics) == (0, 3, 3)
    assert metrics.totals.interrupted == 3


def hang(recorder: Recorder) -> None:
    with recorder.tool_call("hangs"):
        threading.Event().wait()


def test_session_is_in_the_phase_that_was_entered_last_until_that_ends(collector: Collector) -> None:
    assert collector.snapshot().current_phase is None
    collector.record_phase_transition("plan")
    with collector.phase("execute"):
        current = collector.snapshot().current_phase
        assert current is not None
        assert (current.phase, current.ended_at) == ("execute", None)
    assert collector.snapshot().current_phase is None
    collector.record_phase_duration("failed at once", 0, False)
    assert collector.snapshot().phases[-1].ended_at is not None


def test_block_in_a_child_that_c_code_forked_ends_in_that_child(collector: Collector, tmp_path: Path) -> None:
    collector.record_tool_call("parent", True, 1)
    pid = ctypes.PyDLL(None).fork()  # Python's hooks do not run
    if not pid:
        with collector.tool_call("hangs"):
            pass
        os._exit(0)
    os.waitpid(pid, 0)
    assert counted(flushed(collector, tmp_path)) == (0, 1, 0)
