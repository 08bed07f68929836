"""Measurements of whole programs: what an import costs, a worker that records once, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.measuring import Clock, Sample
from benchmarks.peers import PEERS, SESSION, MismatchError
from m31a_mp import Collector, compact, load, verify


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


def python(root: Path, program: str, times: int) -> Sample:  # noqa: ARG001
    """`python -c PROGRAM`."""
    clock = Clock()
    for _ in range(times):
        _run_python("-c", program)
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


COMMANDS: dict[str, tuple[str, ...]] = {
    "record": ("record", "tool", "tool-0", "--ok", "--duration-ms", "5"),
    "run": ("run", "--", "true"),
    "help": ("--help",),
    "show": ("show",),
}


def command_line(root: Path, command: str, times: int, *, is_owned: bool = False) -> Sample:
    """Commands of `m31a-mp`, as they are installed, one after the other.

    Args:
        root: Where the session is.
        command: One of `COMMANDS`.
        times: How many.
        is_owned: Whether another process owns the session meanwhile. Otherwise `run` merges each time.
    """
    owner = Collector(SESSION, root)
    owner.record_tool_call("before", success=True, duration_ms=1)
    if not is_owned:
        owner.stop()
    program = [str(Path(sys.executable).with_name("m31a-mp")), *COMMANDS[command]]
    clock = Clock()
    for _ in range(times):
        _run(program, **owner.env())
    sample = clock.stop(times)
    owner.stop()
    compact(root, SESSION)
    recorded = {"record": {"tool-0": times}, "run": {"true": times}}.get(command, {})
    _check_calls(root, {"before": 1} | recorded)
    return sample


def opened_session(root: Path, times: int) -> Sample:
    """Programs that import the library and open a new session, one after the other."""
    clock = Clock()
    for i in range(times):
        program = "import m31a_mp; m31a_mp.Collector({!r}, {!r})"
        _run_python("-c", program.format(f"{SESSION}-{i}", str(root)))
    sample = clock.stop(times)
    for i in range(times):
        _check_calls(root, {}, f"{SESSION}-{i}")
    return sample


def _check_calls(root: Path, recorded: dict[str, int], session: str = SESSION) -> None:
    if findings := verify(root, session):
        raise MismatchError(f"verify() found {'; '.join(map(str, findings[:3]))}")
    metrics = load(root, session)
    counted = {tool.name: tool.call_count for tool in metrics.tools} if metrics else None
    if counted != recorded:
        raise MismatchError(f"counted {counted}, recorded were {recorded}")


def _run_python(*arguments: str) -> tuple[str, str]:
    return _run([sys.executable, *arguments])


def _run(command: list[str], **variables: str) -> tuple[str, str]:
    # Compiled once, as an installed package is; else a checkout would be compiled at every start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, **variables}
    )
    if done.returncode:
        raise MismatchError(f"{command[-1]!r} ended with status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout, done.stderr
