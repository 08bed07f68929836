#!/usr/bin/env python3
"""Run real tools over a source tree in a multiprocessing pool, kill a worker on the way, lose no record.

Every call is recorded with its true duration and outcome. When the record call has returned, the process
also notes it in a ledger, a plain file that knows nothing of the library. The call in which the worker is
killed is interrupted: the process that killed the worker notes it. At the end metrics.json and the ledger
stand side by side, and the exit status is 1 if they differ anywhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from m31a_mp import Collector, PhaseMetric, Recorder, SessionMetrics, ToolMetric, WorkflowPhase, load

# What each phase runs on every file. Much of it fails: few files have a TODO, some are not meant to compile.
PHASES = {
    WorkflowPhase.PLAN: {"wc": ["wc", "--lines"]},
    WorkflowPhase.EXECUTE: {"grep": ["grep", "--quiet", "TODO"], "sha256sum": ["sha256sum"]},
    WorkflowPhase.VERIFY: {"py_compile": [sys.executable, "-m", "py_compile"]},
}

INTERRUPTED = "interrupted"
"""What the ledger notes of a call whose process was killed in it."""

# Without a file it waits for standard input, as a tool does that hangs.
HANGS = PHASES[WorkflowPhase.EXECUTE]["sha256sum"]

# No phase takes nearly as long: a worker that is lost against the plan fails the demo, and hangs nothing.
PATIENCE_SECONDS = 300

Arguments = TypeVarTuple("Arguments")
Metric = TypeVar("Metric", ToolMetric, PhaseMetric)


# --- What was recorded, by another account -----------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """What the callers of `record_*` were told was recorded."""

    path: Path

    def witness(self, record: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        """Call a `record_*` method, and note the call when it has returned."""
        record(*arguments)
        self.note(record.__name__, *arguments)

    def note(self, method: str, *arguments: object) -> None:
        """Note what is recorded."""
        line = json.dumps([method, *arguments]) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())  # a single write at the end of the file, whoever else writes there

    def add_up(self) -> tuple[dict[str, ToolMetric], dict[str, PhaseMetric]]:
        """Count the tools and the phases, without the library."""
        tools: dict[str, ToolMetric] = {}
        phases: dict[str, PhaseMetric] = {}
        for line in self.path.read_text("utf-8").splitlines():
            method, name, *arguments = json.loads(line)
            if method in {"record_tool_call", INTERRUPTED}:
                _add_call(tools.setdefault(name, ToolMetric(name)), *arguments)
            else:
                _add_to_phase(phases.setdefault(name, PhaseMetric(name)), method, *arguments)
        return tools, phases


def _add_call(tool: ToolMetric, success: bool = False, duration_ms: int | None = None) -> None:
    tool.call_count += 1
    tool.success_count += success
    tool.fail_count += not success
    tool.interrupted_count += duration_ms is None
    tool.total_duration_ms += duration_ms or 0
    timed = tool.call_count - tool.interrupted_count
    tool.avg_duration_ms = tool.total_duration_ms / timed if timed else 0.0


def _add_to_phase(phase: PhaseMetric, method: str, duration_ms: int = 0, success: bool = False) -> None:
    match method:
        case "record_phase_transition":
            phase.transition_count += 1
        case "record_heal_trigger":
            phase.heal_trigger_count += 1
        case "record_phase_duration":
            phase.duration_ms, phase.success = duration_ms, success


# --- In the workers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker:
    """What a process of the pool works with. On its way to a spawned one a Collector becomes a Recorder."""

    recorder: Recorder
    ledger: Ledger
    hanging: Connection
    environment: dict[str, str]


_worker: Worker


def start_worker(worker: Worker) -> None:
    global _worker  # noqa: PLW0603  # a pool has no other way to give its tasks something for good
    _worker = worker


def inspect(phase: WorkflowPhase, path: Path) -> bool:
    """Run the phase's tools on a file; returns whether all of them succeeded."""
    results = [run(tool, [*command, str(path)]) for tool, command in PHASES[phase].items()]
    return all(results)


def run(tool: str, command: list[str]) -> bool:
    """Run a tool and record the call; returns whether it succeeded."""
    quiet = subprocess.DEVNULL
    started = time.monotonic_ns()
    process = subprocess.run(
        command, stdin=quiet, stdout=quiet, stderr=quiet, env=_worker.environment, check=False
    )
    success = process.returncode == 0
    _worker.ledger.witness(_worker.recorder.record_tool_call, tool, success, milliseconds_since(started))
    return success


def inspect_again(phase: WorkflowPhase, path: Path) -> bool:
    """Do the work of a worker that died."""
    _worker.ledger.witness(_worker.recorder.record_heal_trigger, phase)
    return inspect(phase, path)


def inspect_and_hang(phase: WorkflowPhase, path: Path) -> None:
    """Inspect a file, then hang in one more tool, and tell the main process who hangs."""
    inspect(phase, path)
    call = _worker.recorder.tool_call(HANGS[0])
    with call, subprocess.Popen(HANGS, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as tool:
        # What came before is recorded and noted, this call has begun, and nothing comes after: only the end
        # of this process ends the input. So wherever in here the kill arrives, the two must agree exactly.
        _worker.hanging.send(os.getpid())
        tool.wait()


# --- In the main process ------------------------------------------------------------------------------


def run_phase(pool: Pool, phase: WorkflowPhase, files: list[Path]) -> bool:
    """Inspect the files; returns whether all tools succeeded on all of them."""
    return all(pool.map_async(partial(inspect, phase), files).get(PATIENCE_SECONDS))


def run_phase_and_kill(
    pool: Pool, phase: WorkflowPhase, files: list[Path], hanging: Connection, ledger: Ledger
) -> bool:
    """The same, but the worker with the first file hangs there, and is killed while the others work."""
    pool.apply_async(inspect_and_hang, (phase, files[0]))  # never returns
    others = pool.map_async(partial(inspect, phase), files[1:])
    if not hanging.poll(PATIENCE_SECONDS):
        raise TimeoutError("no worker came to the tool that hangs")
    pid = hanging.recv()
    os.kill(pid, signal.SIGKILL)
    ledger.note(INTERRUPTED, HANGS[0])
    print(f"killed worker {pid} at work on {files[0].name}; the next one does it again")
    again = pool.apply_async(inspect_again, (phase, files[0]))
    return all([*others.get(PATIENCE_SECONDS), again.get(PATIENCE_SECONDS)])


def run_session(
    collector: Collector, ledger: Ledger, files: list[Path], start_method: str, jobs: int
) -> None:
    """Go through the phases with a pool of workers."""
    context = multiprocessing.get_context(start_method)
    hanging, announce = context.Pipe(duplex=False)
    # What py_compile makes goes beside the ledger, not into the tree that is inspected.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(ledger.path.with_name("pycache"))}
    worker = Worker(collector, ledger, announce, environment)
    with context.Pool(jobs, start_worker, (worker,)) as pool:
        for phase in PHASES:
            ledger.witness(collector.record_phase_transition, phase)
            started = time.monotonic_ns()
            if phase is WorkflowPhase.EXECUTE:
                success = run_phase_and_kill(pool, phase, files, hanging, ledger)
            else:
                success = run_phase(pool, phase, files)
            ledger.witness(collector.record_phase_duration, phase, milliseconds_since(started), success)


def milliseconds_since(started_ns: int) -> int:
    return (time.monotonic_ns() - started_ns) // 1_000_000


# --- Before and after ---------------------------------------------------------------------------------


def compare(
    heading: str, recorded: dict[str, Metric], noted: dict[str, Metric], row: Callable[[Metric], str]
) -> bool:
    """Print two accounts of the same things side by side; returns whether they agree."""
    print(f"\n{heading:<63} | the same, by the ledger")
    agree = True
    for name in recorded | noted:
        left, right = (row(side[name]) if name in side else "missing" for side in (recorded, noted))
        print(f"{name:<12}{left:<51} | {right}{'' if left == right else '  <- differs'}")
        agree &= left == right
    return agree


def tool_row(tool: ToolMetric) -> str:
    counts = f"{tool.call_count:>6}{tool.success_count:>5}{tool.fail_count:>7}{tool.interrupted_count:>8}"
    return f"{counts}{tool.total_duration_ms:>10} ms{tool.avg_duration_ms:>9.1f} ms"


def phase_row(phase: PhaseMetric) -> str:
    outcome = "yes" if phase.success else "no"
    counts = f"{phase.transition_count:>7}{phase.heal_trigger_count:>7}{outcome:>7}"
    return f"{counts}{phase.duration_ms:>10} ms"


def report(metrics: SessionMetrics, ledger: Ledger) -> bool:
    """Print the session's tables beside the ledger's; returns whether they agree."""
    tools, phases = ledger.add_up()
    tools_agree = compare(
        "tool         calls   ok failed cut off        total      average",
        {tool.name: tool for tool in metrics.tools},
        tools,
        tool_row,
    )
    phases_agree = compare(
        "phase       entered healed     ok     duration",
        {phase.phase: phase for phase in metrics.phases},
        phases,
        phase_row,
    )
    return tools_agree and phases_agree


def source_files(tree: Path, limit: int) -> list[Path]:
    """At most so many Python files, from all over the tree; what others installed is left out."""
    files = sorted(
        path for path in tree.rglob("*.py") if path.is_file() and "site-packages" not in path.parts
    )
    count = min(limit, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--start-method", choices=["fork", "forkserver", "spawn"], default="spawn")
    parser.add_argument("--files", type=int, default=200, help="how many at most (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="workers (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    files = source_files(options.tree, options.files)
    if not files:
        print(f"pool_demo: there are no Python files in {options.tree}", file=sys.stderr)
        return 2
    print(f"{len(files)} files of {options.tree}, {options.jobs} workers started by {options.start_method}")
    with tempfile.TemporaryDirectory() as scratch:
        ledger = Ledger(Path(scratch, "ledger"))
        with Collector("demo", scratch) as collector:
            run_session(collector, ledger, files, options.start_method, options.jobs)
        metrics = load(scratch, "demo")
        agree = metrics is not None and report(metrics, ledger)
    print("\nmetrics.json and the ledger", "agree" if agree else "DIFFER")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
