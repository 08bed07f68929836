"""The names that a program imports, and what the package says of itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import m31a_mp
from m31a_mp import Collector, Measured, Recorder, Stopwatch, attach

ROOT = Path(__file__).parent.parent.parent


def test_version_is_known_without_reading_the_metadata_of_packages() -> None:
    program = (
        "import sys, m31a_mp; m31a_mp.__version__; raise SystemExit('importlib.metadata' in sys.modules)"
    )
    variables = {"PYTHONPATH": str(Path(m31a_mp.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-S", "-c", program], env=variables, check=False).returncode == 0


def test_version_is_written_once_and_the_build_reads_it_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    source = ROOT / settings["tool"]["hatch"]["version"]["path"]
    assert source.samefile(m31a_mp.__file__)
    assert f'\n__version__ = "{m31a_mp.__version__}"' in source.read_text()


def test_every_public_name_can_be_had_and_has_a_docstring() -> None:
    for name in m31a_mp.__all__:
        value = getattr(m31a_mp, name)
        assert name == "__version__" or inspect.getdoc(value), name


def test_blocks_that_are_measured_can_be_annotated(tmp_path: Path) -> None:
    stopwatch: Stopwatch = attach("s", tmp_path).tool_call("bash")
    assert type(stopwatch) is Stopwatch
    with stopwatch as call:
        measured: Measured = call
        assert type(measured) is Measured


class TestRecorderSaysWhereItRecords:
    def test_recorder_of_a_session(self, sessions: Path) -> None:
        recorder = attach("the session", sessions)
        assert recorder.session_id == "the session"
        assert recorder.directory == str(sessions / "the session")

    def test_relative_directory_is_absolute_from_the_start(self) -> None:
        recorder = attach("s", "here")
        assert recorder.directory == str(Path.cwd() / "here" / "s")

    def test_recorder_of_no_session(self) -> None:
        recorder = Recorder(None)
        assert recorder.session_id is None
        assert recorder.directory is None

    def test_collector(self, sessions: Path) -> None:
        with Collector("s", sessions) as collector:
            assert (collector.session_id, collector.directory) == ("s", str(sessions / "s"))
        assert (collector.session_id, collector.directory) == ("s", str(sessions / "s"))

    def test_disabled_collector_has_its_id_and_no_directory(self, sessions: Path) -> None:
        collector = Collector("s", sessions, enabled=False)
        assert (collector.session_id, collector.directory) == ("s", None)


def test_documents_and_changelog_of_the_package_are_where_the_wheel_takes_its_files_from() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    target = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    (package,) = target["packages"]
    assert set(target) == {"packages", "hooks"}  # nothing is left out
    for name in ("CHANGELOG.md", "README.md", "cli/README.md", "py.typed"):
        assert (ROOT / package / name).is_file(), name


SMOKE = """
import multiprocessing, sys
from m31a_mp import Collector, Usage, compact, verify

def work(recorder):
    recorder.record_tool_call("grep", True, 1)
    recorder.record_llm_interaction("plan", Usage(1, 2, 3), 0.5)

if __name__ == "__main__":
    with Collector("s", sys.argv[1]) as metrics:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            pool.map(work, [metrics] * 10)
        assert metrics.snapshot().tools[0].call_count == 10
    assert compact(sys.argv[1], "s").metrics.llms[0].interaction_count == 10
    assert verify(sys.argv[1], "s") == []
"""


@pytest.mark.slow
def test_wheel_records_where_nothing_but_what_it_needs_is_installed(tmp_path: Path) -> None:
    def run(*command: str | Path, status: int = 0) -> str:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == status, done.stderr
        return done.stderr

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")  # pure Python: to compile it must be asked for
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    (tmp_path / "smoke.py").write_text(SMOKE)
    run(python, "smoke.py", tmp_path / "sessions")
    assert "click and rich are not installed" in run(python, "-m", "m31a_mp", status=125)
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    assert {"m31a_mp/py.typed", "m31a_mp/README.md", "m31a_mp/CHANGELOG.md"} <= names
    templates = Path(m31a_mp.__file__).parent / "exports" / "templates"
    assert {f"m31a_mp/exports/templates/{path.name}" for path in templates.iterdir()} <= names
