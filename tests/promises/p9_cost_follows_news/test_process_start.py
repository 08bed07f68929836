"""What a process opens and imports before it has done its work: a script starts one for each record."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from m31a_mp import Collector, attach
from metrics_of import loaded, outcomes
from workers import Forked

# Runs a program, and says at its end which modules it has imported, and which files it has opened.
OBSERVED = """
import atexit, os, sys
opened, told = [], int(sys.argv.pop(1))
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)

@atexit.register
def tell():
    os.write(told, "\\n".join([" ".join(sys.modules), *opened]).encode(errors="replace"))
"""
COMMAND_LINE = "from m31a_mp.cli import main; sys.exit(main())"

# Too expensive for a process that only records: most take longer to import than Python takes to start.
OF_COMMANDS = {"click", "rich"}
OF_OTHERS = {"filelock", "psutil"}
OF_READERS = {"orjson", "dataclasses", "typing"}
OF_PYTHON = {"argparse", "asyncio", "inspect", "json", "logging", "multiprocessing", "pathlib", "subprocess"}
OF_PYTHON |= {"contextlib", "fractions", "shutil", "tempfile", "threading"}
COLD = {f"m31a_mp.{name}" for name in ("collector", "inspection", "metrics", "model", "kinds.catalog")}


@dataclass
class Observed:
    status: int
    modules: set[str]
    opened: list[str]

    def of_session(self, session: Path) -> list[str]:
        """The opened files of a session; not those of modules."""
        return [path for path in self.opened if path.startswith(str(session))]


def observe(program: str, *arguments: str | Path, session: Path) -> Observed:
    reading, writing = os.pipe()
    path = os.pathsep.join(entry for entry in sys.path if entry)
    variables = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "M31A_MP_SESSION": str(session)}
    command = [sys.executable, "-S", "-c", OBSERVED + program, str(writing), *map(str, arguments)]
    done = subprocess.run(command, env=variables, pass_fds=[writing], capture_output=True, check=False)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        modules, *opened = pipe.read().split("\n")
    assert done.stderr == b""
    return Observed(done.returncode, set(modules.split()), opened)


RECORD = ("record", "tool", "x", "--ok", "--duration-ms", "5")


def test_record_imports_nothing_that_it_does_not_need(sessions: Path) -> None:
    seen = observe(COMMAND_LINE, *RECORD, session=sessions / "s")
    assert seen.status == 0
    assert seen.modules & (OF_COMMANDS | OF_OTHERS | OF_READERS | OF_PYTHON | COLD) == set()
    assert outcomes(attach("s", sessions).snapshot()) == {"x": (1, 0)}


def test_run_in_a_session_with_an_owner_imports_nothing_that_it_does_not_need(sessions: Path) -> None:
    with Collector("s", sessions) as owner:
        seen = observe(COMMAND_LINE, "run", "--", "sh", "-c", "exit 3", session=sessions / "s")
        assert seen.status == 3
        assert seen.modules & (OF_COMMANDS | OF_OTHERS | OF_READERS | OF_PYTHON | COLD) == set()
        assert outcomes(owner.snapshot()) == {"sh": (0, 1)}


def test_run_that_owns_the_session_imports_what_a_collector_needs(sessions: Path) -> None:
    seen = observe(COMMAND_LINE, "run", "--", "true", session=sessions / "s")
    assert seen.status == 0
    assert seen.modules & (OF_COMMANDS | OF_OTHERS) == set()
    assert seen.modules & OF_PYTHON <= {"contextlib", "inspect", "json"}  # for orjson
    assert outcomes(loaded(sessions, "s")) == {"true": (1, 0)}


@pytest.mark.parametrize("is_new", [True, False])
def test_collector_imports_neither_filelock_nor_psutil_nor_threads(sessions: Path, is_new: bool) -> None:
    if not is_new:
        with Forked(record_and_die, sessions) as owner:
            owner.wait()
    program = "from m31a_mp import Collector; Collector('s', sys.argv[1]).record_tool_call('x', True, 1)"
    seen = observe(program, sessions, session=sessions / "s")
    assert seen.status == 0
    assert seen.modules & (OF_COMMANDS | OF_OTHERS) == set()
    assert seen.modules & OF_PYTHON <= {"contextlib", "inspect", "json"}  # for orjson
    assert outcomes(loaded(sessions, "s"))["x"] == (1, 0)


def record_and_die(sessions: Path) -> None:
    Collector("s", sessions).record_tool_call("make", True, 1)
    os._exit(0)


@pytest.mark.parametrize("arguments", [("--help",), (), ("--version",), ("shwo",)])
def test_help_and_mistakes_import_nothing_that_reads_sessions(
    sessions: Path, arguments: tuple[str, ...]
) -> None:
    program = COMMAND_LINE.replace("sys.exit(main())", "main()")
    seen = observe(f"sys.stderr = open(os.devnull, 'w'); {program}", *arguments, session=sessions / "s")
    assert seen.status == 0
    assert "click" in seen.modules
    assert seen.modules & ({"rich", "orjson", "logging", "subprocess"} | OF_OTHERS | COLD) == set()


def test_show_of_a_finished_session_imports_neither_filelock_nor_psutil(sessions: Path) -> None:
    with Collector("s", sessions) as owner:
        owner.record_tool_call("x", True, 1)
    seen = observe(COMMAND_LINE, "show", session=sessions / "s")
    assert seen.status == 0
    assert seen.modules & (OF_OTHERS | {"asyncio", "logging", "subprocess"}) == set()


def test_record_opens_the_same_files_whatever_lies_in_the_session(sessions: Path) -> None:
    session = sessions / "s"
    observe(COMMAND_LINE, *RECORD, session=session)
    second = observe(COMMAND_LINE, *RECORD, session=session).of_session(session)
    with Collector("s", sessions) as owner:
        for i in range(1000):
            owner.record_tool_call(f"tool-{i}", True, 1)
        owner.flush()
        for i in range(20):
            with Forked(leave_a_segment, sessions, i) as worker:
                worker.wait()
        observe(COMMAND_LINE, *RECORD, session=session)
        assert len(list((session / "segments").iterdir())) >= 20
        later = observe(COMMAND_LINE, *RECORD, session=session).of_session(session)
    assert 0 < len(later) <= len(second)
    assert str(session / "metrics.json") not in later


def leave_a_segment(sessions: Path, i: int) -> None:
    recorder = attach("s", sessions)
    for _ in range(100):
        recorder.record_tool_call(f"tool-{i}", True, 1)
    os._exit(0)
