"""What a record imports, which is nothing, and what a worker does, which is little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m31a_mp import Collector, load

# What Python itself has imported at the start comes first; then everything that a record can go through.
RECORDS_OF_ALL_KINDS = """
import os, sys
before = set(sys.modules)
from m31a_mp import Recorder, Usage, attach
imported = set(sys.modules)
sessions = sys.argv[1]
os.umask(0o777)
for durability in ("process", "disk"):
    recorder = attach("s", sessions, durability=durability)
    for name in ("bash", "\\N{SNOWMAN}", '"\\\\\\\\', "\\x00\\x1f\\x7f", "x" * 4096):
        recorder.record_tool_call(name, True, 1)
        recorder.record_phase_transition(name)
        recorder.record_phase_duration(name, 1, False)
        recorder.record_heal_trigger(name)
        recorder.record_bisect_trigger(name)
        recorder.record_cancellation("execute", name)
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


def modules_of(program: str, sessions: Path) -> set[str]:
    """What a program prints, which is the modules that it has imported."""
    command = [sys.executable, "-S", "-c", program, str(sessions)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    variables = {"PYTHONPATH": path, "M31A_MP_SESSION": str(sessions / "s")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_record_of_any_kind_in_any_state_imports_nothing(tmp_path: Path) -> None:
    with Collector("s", tmp_path):
        modules_of(RECORDS_OF_ALL_KINDS, tmp_path)
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
        modules = modules_of(RECORDS_OF_ALL_KINDS, tmp_path)
    ours = {name for name in modules if name.startswith("m31a_mp")}
    small = {
        "__future__",
        "_collections",
        "_functools",
        "atexit",
        "_struct",
        "contextvars",
        "_contextvars",
        "errno",
        "fcntl",
        "itertools",
        "mmap",
        "resource",
        "select",
        "struct",
        "zlib",
    }
    assert modules - ours <= small
