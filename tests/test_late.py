"""What a record imports, which is nothing, and forks in the middle of other imports."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

from m31a_mp import Collector, late, load
from workers import Forked

# What Python itself has imported at the start comes first; then everything that a record can go through.
RECORDS_OF_ALL_KINDS = """
import os, sys
before = set(sys.modules)
from m31a_mp import Recorder, attach
imported = set(sys.modules)
if {usage}:
    from m31a_mp import Usage
    imported = set(sys.modules)
sessions = sys.argv[1]
os.umask(0o777)
for durability in ("process", "disk"):
    recorder = attach("s", sessions, durability=durability)
    for name in ("bash", "\\N{{SNOWMAN}}", '"\\\\\\\\', "\\x00\\x1f\\x7f", "x" * 4096):
        recorder.record_tool_call(name, True, 1)
        recorder.record_phase_transition(name)
        recorder.record_phase_duration(name, 1, False)
        recorder.record_heal_trigger(name)
        recorder.record_bisect_trigger(name)
        if {usage}:
            recorder.record_llm_interaction(name, Usage(1, 2, 3), 0.5)
for _ in range(20_000):  # segments that are full, and spilled
    attach("s", sessions).record_tool_call("bash", True, 1)
with Recorder.from_env().tool_call("measured") as call:
    call.success = False
for call, wrong in ((recorder.record_tool_call, ("", 1, 1)), (recorder.record_llm_interaction, ("a", 1, 1))):
    try:
        call(*wrong)
    except (TypeError, ValueError):
        pass
    else:
        raise AssertionError
if os.fork() == 0:
    recorder.record_tool_call("bash", True, 1)
    os._exit(len(set(sys.modules) - imported))
assert os.wait()[1] == 0
recorder.flush()
recorder.stop()
attach("session", os.devnull).record_tool_call("bash", True, 1)  # which drops it
assert imported == set(sys.modules), set(sys.modules) - imported
print(*(imported - before))
"""


def modules_of(program: str, sessions: Path, **environment: str) -> set[str]:
    """What a program prints, which is the modules that it has imported."""
    command = [sys.executable, "-S", "-c", program, str(sessions)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    variables = {"PYTHONPATH": path, "M31A_MP_SESSION": str(sessions / "s"), **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("usage", [False, True])
def test_record_of_any_kind_in_any_state_imports_nothing(tmp_path: Path, usage: bool) -> None:
    with Collector("s", tmp_path):
        modules_of(RECORDS_OF_ALL_KINDS.format(usage=usage), tmp_path)
    metrics = load(tmp_path, "s")
    assert metrics is not None
    assert metrics.dropped == {}
    assert {tool.name: tool.call_count for tool in metrics.tools} == {
        "bash": 20_000 + 2 + 1,
        "measured": 1,
        **dict.fromkeys(("\N{SNOWMAN}", '"\\\\', "\x00\x1f\x7f", "x" * 4096), 2),
    }


def test_worker_imports_little(tmp_path: Path) -> None:
    with Collector("s", tmp_path):
        modules = modules_of(RECORDS_OF_ALL_KINDS.format(usage=False), tmp_path)
    ours = {name for name in modules if name.startswith("m31a_mp")}
    small = {"__future__", "_struct", "errno", "fcntl", "itertools", "mmap", "struct", "zlib"}
    assert modules - ours <= small


def test_fork_waits_for_the_end_of_a_late_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the child, where nobody ends that import, would wait for it as soon as it needs the same."""
    (tmp_path / "slow_module.py").write_text("import gates\ngates.begun.set()\ngates.go.wait()\n")
    (tmp_path / "gates.py").write_text("import threading\nbegun, go = threading.Event(), threading.Event()\n")
    monkeypatch.syspath_prepend(tmp_path)

    def import_slowly() -> None:
        with late.imports:
            import_module("slow_module")

    def fork_meanwhile() -> None:
        gates = import_module("gates")
        thread = threading.Thread(target=import_slowly)
        thread.start()
        gates.begun.wait()
        os.register_at_fork(before=gates.go.set)  # runs before the hook that waits, as the later one
        with Forked(import_slowly) as child:
            assert child.wait() == 0
        thread.join()

    with Forked(fork_meanwhile) as child:
        assert child.wait() == 0


def test_fork_does_not_wait_for_ever_for_an_import_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "_PATIENCE_SECONDS", 0.1)
    lock, begun, taken = threading.Lock(), threading.Event(), threading.Event()

    def import_what_takes_the_lock() -> None:
        with late.imports:
            begun.set()
            taken.wait()
            with lock:
                pass

    def take_lock() -> None:
        lock.acquire()
        taken.set()

    def take_late_lock() -> None:
        with late.imports:
            pass

    def fork_meanwhile() -> None:
        thread = threading.Thread(target=import_what_takes_the_lock)
        thread.start()
        begun.wait()
        # As `logging` does. The hook that was registered last runs first.
        os.register_at_fork(before=take_lock, after_in_parent=lock.release, after_in_child=lock.release)
        with Forked(take_late_lock) as child:
            assert child.wait() == 0
        thread.join()
        take_late_lock()

    with Forked(fork_meanwhile) as child:
        assert child.wait() == 0
