"""Measurements of whole programs: what an import costs, and a worker that records once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.measuring import Clock, Sample
from benchmarks.peers import PEERS, SESSION, MismatchError


def importing(root: Path, module: str, times: int) -> Sample:  # noqa: ARG001  # root: every measurement has one
    """What `python -X importtime` says of a module and all that it imports, and the whole program."""
    clock = Clock()
    said = [_run_python("-X", "importtime", "-c", f"import {module}")[1] for _ in range(times)]
    sample = clock.stop(times)
    lines = [line.split("|") for text in said for line in text.splitlines()]
    cumulative = [int(parts[1]) for parts in lines if parts[-1].strip() == module]
    return {**sample, "wall": median(cumulative) * times / 1e6, "program": sample["wall"] / times}


def short_worker(root: Path, peer: str, times: int) -> Sample:
    """Whole programs that record one call, one after the other."""
    one = PEERS[peer](root)
    one.start()
    program = SHORT_WORKERS[peer].format(root=str(root))
    clock = Clock()
    for _ in range(times):
        _run_python("-c", program)
    sample = clock.stop(times)
    one.finish()
    one.check([1] * times)
    return sample


SHORT_WORKERS = {
    "m31a_mp": "from m31a_mp import attach; attach('bench', {root!r}).record_tool_call('tool-0', False, 0)",
    "prometheus_client": """
from prometheus_client import Counter, Summary
Counter("calls", "tool calls", ["name", "success"]).labels("tool-0", False).inc()
Summary("duration", "in ms", ["name"]).labels("tool-0").observe(0)
""",
}


def bare_python(root: Path, times: int) -> Sample:  # noqa: ARG001
    """`python -c pass`."""
    clock = Clock()
    for _ in range(times):
        _run_python("-c", "pass")
    return clock.stop(times)


def worker_modules(root: Path) -> Sample:
    """Which expensive modules a worker has imported that attaches, records thrice, and exits."""
    program = f"""
import sys
before = set(sys.modules)
from m31a_mp import attach
recorder = attach({SESSION!r}, {str(root)!r})
for _ in range(3):
    recorder.record_tool_call("tool-0", False, 0)
print(*(set(sys.modules) - before))
"""
    modules = _run_python("-c", program)[0].split()
    expensive = ("psutil", "asyncio", "filelock.asyncio", "filelock._async", "multiprocessing", "subprocess")
    return {"modules": len(modules), "expensive": [name for name in expensive if name in modules]}


def _run_python(*arguments: str) -> tuple[str, str]:
    # Compiled once, as an installed package is; else a checkout would be compiled at every start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise MismatchError(f"{arguments[-1]!r} ended with status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout, done.stderr
