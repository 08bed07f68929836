"""What a process opens and imports before it has done its work: a script starts one for each record."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from m31a_mp import Collector, attach
from m31a_mp.metrics.file import read_totals
from m31a_mp.session.paths import Session
from metrics_of import loaded, outcomes
from workers import Forked

# Runs a program, and says at its end which modules it has imported, and which files it has opened. A fork is
# told as if it were a file.
OBSERVED = """
import atexit, os, sys
opened, told = [], int(sys.argv.pop(1))
told_of = {"open": lambda path, *_: opened.append(str(path)), "os.fork": lambda: opened.append("fork")}
sys.addaudithook(lambda event, arguments: told_of.get(event, lambda *_: None)(*arguments))

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
OF_PYTHON |= {"contextlib", "decimal", "fractions", "shutil", "tempfile", "threading"}
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


@pytest.mark.parametrize("is_new", [True, False])
def test_run_that_owns_the_session_imports_what_it_merges_with_while_the_command_runs(
    sessions: Path, is_new: bool
) -> None:
    before = 0
    if not is_new:
        with Collector("s", sessions) as owner:
            owner.record_tool_call("x", True, 1)
        before = publications(sessions)
        observe(COMMAND_LINE, *RECORD, session=sessions / "s")
    seen = observe(COMMAND_LINE, "run", "--", "true", session=sessions / "s")
    assert seen.status == 0
    assert seen.modules & (OF_COMMANDS | OF_OTHERS) == set()
    assert seen.modules & OF_PYTHON <= {"contextlib", "inspect", "json"}  # for orjson
    start = seen.opened[: seen.opened.index("fork")]
    assert not [path for path in start if "orjson" in path or "dataclasses" in path or "compactor" in path]
    assert [path for path in seen.opened if "orjson" in path]
    assert outcomes(loaded(sessions, "s")) == {"true": (1, 0)} | ({} if is_new else {"x": (2, 0)})
    # Once, and a new session at its start, too: then it has a beginning.
    assert publications(sessions) == before + 1 + is_new


def publications(sessions: Path) -> int:
    totals = read_totals(Session.named("s", sessions))
    assert totals
    assert totals.site
    return totals.site.number


@pytest.mark.parametrize(
    "use",
    [
        pytest.param("Collector('s', sys.argv[1])", id="dropped at once"),
        pytest.param("owner = Collector('s', sys.argv[1])", id="left to the end"),
        pytest.param("owner = Collector('s', sys.argv[1]); owner.flush(); owner.stop()", id="stopped"),
    ],
)
def test_collector_of_a_new_session_imports_no_more_than_a_worker_while_nothing_is_recorded(
    sessions: Path, use: str
) -> None:
    worker = observe("from m31a_mp import attach; attach('w', sys.argv[1])", sessions, session=sessions / "s")
    owner = observe(f"from m31a_mp import Collector; {use}", sessions, session=sessions / "s")
    assert owner.status == worker.status == 0
    opening = {f"m31a_mp.{name}" for name in ("collector", "ending", "metrics", "metrics.beginning")}
    assert owner.modules - worker.modules == opening | {"m31a_mp.session.lease"}
    assert owner.modules & (OF_COMMANDS | OF_OTHERS | OF_READERS | OF_PYTHON) == set()
    assert outcomes(loaded(sessions, "s")) == {}


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


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), (), ("--version",), ("shwo",)])
def test_help_and_mistakes_import_nothing_that_reads_sessions(
    sessions: Path, arguments: tuple[str, ...]
) -> None:
    program = COMMAND_LINE.replace("sys.exit(main())", "main()")
    seen = observe(f"sys.stderr = open(os.devnull, 'w'); {program}", *arguments, session=sessions / "s")
    assert seen.status == 0
    assert "click" in seen.modules
    assert seen.modules & ({"rich", "orjson", "logging", "subprocess"} | OF_OTHERS | COLD) == set()


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_show_of_a_finished_session_imports_only_what_a_look_needs(
    sessions: Path, arguments: tuple[str, ...]
) -> None:
    with Collector("s", sessions) as owner:
        owner.record_tool_call("x", True, 1)
    seen = observe(COMMAND_LINE, "show", *arguments, session=sessions / "s")
    assert seen.status == 0
    of_rich = {name for name in seen.modules if name.startswith("rich.")}
    assert of_rich <= {"rich.cells", "rich._cell_widths", "rich._extension"} | {  # how wide a character is
        name for name in of_rich if name.startswith("rich._unicode_data")
    }
    assert seen.modules & (OF_OTHERS | {"click"}) == set()
    assert seen.modules & OF_PYTHON <= {"contextlib", "inspect", "json"}  # for orjson
    assert not {name for name in seen.modules if name.startswith("m31a_mp.sharing")}


def test_show_in_colours_imports_rich_but_not_click(sessions: Path) -> None:
    with Collector("s", sessions) as owner:
        owner.record_tool_call("x", True, 1)
    program = f"os.environ['FORCE_COLOR'] = '1'; {COMMAND_LINE}"
    seen = observe(program, "show", session=sessions / "s")
    assert "rich.console" in seen.modules
    assert "click" not in seen.modules


@pytest.mark.slow
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
