"""A wrapped command runs, and its status is its own, whatever is wrong with the session or with telling so.

Each trouble is tried with `m31a-mp run` and with scripts/run_tool.py, as real processes. What they tell is
compared with what is there afterwards.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from m31a_mp import attach, compact
from m31a_mp.inspection.status import State, status
from m31a_mp.session.paths import Session
from workers import obey_permissions

ROOT = Path(__file__).parents[3]
RUN = [sys.executable, "-m", "m31a_mp", "run", "--session"]
RUN_TOOL = [sys.executable, str(ROOT / "scripts" / "run_tool.py")]
NAMES = {"run": "m31a-mp", "run with a phase": "m31a-mp", "run_tool": "run_tool"}
STARTS = {"run": RUN, "run with a phase": [*RUN[:-1], "--phase", "plan", RUN[-1]], "run_tool": RUN_TOOL}
OURS = {"M31A_MP_SESSION", "M31A_MP_DURABILITY"}
# Without coverage: what it writes at the end would fail as well, where nothing can be written or opened.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in OURS and not name.startswith("COVERAGE_")
} | {"PYTHONPATH": str(ROOT / "src")}

COMMAND = ["sh", "-c", "echo out; exit 7"]
# As that; but a shell complains where there is no working directory.
QUIET = [sys.executable, "-S", "-c", "print('out'); raise SystemExit(7)"]


class Wrapper:
    """One of the two programs that wrap a command."""

    def __init__(self, name: str) -> None:
        self.name = NAMES[name]
        self.start = STARTS[name]

    def __call__(
        self,
        directory: str | bytes | Path,
        *command: str,
        before: str = "",
        after: str = "",
        cwd: Path | None = None,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a session; `before` and `after` are what a shell does there and redirects."""
        line = shlex.join([*self.start, "DIRECTORY", "--", *(command or COMMAND)]).encode()
        line = line.replace(b"DIRECTORY", b"'" + os.fsencode(directory) + b"'")
        return subprocess.run(
            [b"sh", b"-c", before.encode() + b"\n" + line + b" " + after.encode()],
            env=ENVIRONMENT | variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=obey_permissions,
        )

    def told(self, result: subprocess.CompletedProcess[str]) -> str:
        """What it told, which is one line."""
        assert (result.returncode, result.stdout) == (7, "out\n"), result.stderr
        program, _, message = result.stderr.partition(": ")
        assert program == self.name
        assert message.count("\n") == 1
        assert "nothing is lost" not in message.lower() or "not recorded" not in message
        return message.removesuffix("\n")


@pytest.fixture(params=["run", "run_tool"])
def wrapper(request: pytest.FixtureRequest) -> Wrapper:
    return Wrapper(request.param)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Session]:
    """A session that does not exist yet, in a directory that may be made inaccessible."""
    yield Session.named("one", tmp_path / "sessions")
    for directory in (tmp_path / "sessions", tmp_path / "sessions" / "one"):
        with suppress(OSError):
            directory.chmod(0o700)


def recorded(session: Session) -> int:
    """How many calls of the command there are, merged or not."""
    return sum(tool.call_count for tool in attach(session.id, session.sessions_dir).snapshot().tools)


# --- Sessions that cannot be used ---------------------------------------------------------------------


def no_trouble(session: Session) -> None:
    pass


def file_in_its_place(session: Session) -> None:
    Path(session.sessions_dir).mkdir()
    Path(session.root).touch()


def file_in_place_of_all_sessions(session: Session) -> None:
    Path(session.sessions_dir).touch()


def symlink_that_leads_in_a_circle(session: Session) -> None:
    Path(session.sessions_dir).mkdir()
    Path(session.root).symlink_to(session.root)


def directory_that_nobody_may_enter(session: Session) -> None:
    session.make()
    Path(session.root).chmod(0)


def directory_of_all_that_nobody_may_enter(session: Session) -> None:
    session.make()
    Path(session.sessions_dir).chmod(0)


def directory_of_all_that_nobody_may_write(session: Session) -> None:
    Path(session.sessions_dir).mkdir()
    Path(session.sessions_dir).chmod(0o500)


def directory_that_nobody_may_write(session: Session) -> None:
    session.make()
    Path(session.segments).rmdir()
    Path(session.root).chmod(0o500)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        file_in_its_place,
        file_in_place_of_all_sessions,
        symlink_that_leads_in_a_circle,
        directory_that_nobody_may_enter,
        directory_of_all_that_nobody_may_enter,
        directory_of_all_that_nobody_may_write,
        directory_that_nobody_may_write,
    ],
)
def test_session_that_cannot_be_used_costs_the_record_and_nothing_else(
    wrapper: Wrapper, one: Session, make: Callable[[Session], None]
) -> None:
    make(one)
    assert wrapper.told(wrapper(one.root)).startswith("this call is not recorded: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "directory",
    ["x" * 201, "x" * 5000, "x" * 300 + "/one", b"\xff", "/", ".." + "/.." * 40, "back\\slash", "/dev/null"],
)
def test_name_that_no_session_can_have_costs_the_record_and_nothing_else(
    wrapper: Wrapper, tmp_path: Path, directory: str | bytes
) -> None:
    message = wrapper.told(wrapper(directory, cwd=tmp_path))
    assert message.startswith("this call is not recorded: ")
    assert not list(tmp_path.iterdir())


def test_path_that_is_not_utf_8_is_no_trouble(wrapper: Wrapper, tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/\xff/one"
    result = wrapper(directory)
    assert (result.returncode, result.stderr) == (7, "")
    assert recorded(Session.named("one", os.fsdecode(os.path.dirname(directory)))) == 1


def test_missing_home_is_no_trouble(wrapper: Wrapper, one: Session) -> None:
    result = wrapper(one.root, before="unset HOME USER LOGNAME")
    assert (result.returncode, result.stderr) == (7, "")
    assert recorded(one) == 1


# --- The working directory ----------------------------------------------------------------------------

GONE = "mkdir gone; cd gone; rmdir ../gone"


def test_command_in_a_deleted_working_directory_runs(wrapper: Wrapper, tmp_path: Path) -> None:
    message = wrapper.told(wrapper("one", *QUIET, before=GONE, cwd=tmp_path))
    assert message == "this call is not recorded: there is no working directory"


def test_command_in_a_deleted_working_directory_is_recorded_elsewhere(wrapper: Wrapper, one: Session) -> None:
    result = wrapper(one.root, *QUIET, before=f"cd {Path(one.sessions_dir).parent}; {GONE}")
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "")
    assert (recorded(one), status(one).state) == (1, State.FINISHED)


def test_run_without_a_session_in_a_deleted_working_directory_runs(tmp_path: Path) -> None:
    command = [*RUN[:-1], "--", *QUIET]
    result = subprocess.run(
        ["sh", "-c", f"{GONE}; {shlex.join(command)}"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (7, "out\n")
    assert result.stderr == "m31a-mp: this call is not recorded: there is no working directory\n"


# --- The environment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["/", "x" * 300, "\\", "/dev/null/x", "\udcff"])
def test_session_in_the_environment_that_is_none_costs_the_record(tmp_path: Path, value: str) -> None:
    command = [sys.executable, "-m", "m31a_mp", "run", "--", *COMMAND]
    environment = ENVIRONMENT | {"M31A_MP_SESSION": value}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (7, "out\n")
    assert result.stderr.startswith("m31a-mp: this call is not recorded: ")
    assert result.stderr.count("\n") == 1


def test_python_child_of_a_run_without_a_session_records_nothing(tmp_path: Path) -> None:
    child = "from m31a_mp import Recorder; raise SystemExit(Recorder.from_env().enabled)"
    command = [*RUN, "/", "--", sys.executable, "-c", child]
    result = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 0


def test_durability_that_is_none_is_told_and_replaced(wrapper: Wrapper, one: Session) -> None:
    command = ["sh", "-c", "echo out; exec test $M31A_MP_DURABILITY = process -a ${PWD}"]
    result = wrapper(one.root, *command, M31A_MP_DURABILITY="bogus")
    assert (result.returncode, result.stdout) == (0, "out\n")
    assert result.stderr == (
        f"{wrapper.name}: M31A_MP_DURABILITY is neither process nor disk, but 'bogus'; using process\n"
    )
    assert (recorded(one), status(one).state) == (1, State.FINISHED)


# --- Sessions that cannot be merged -------------------------------------------------------------------


def damaged(session: Session) -> None:
    Path(session.metrics).write_text("damaged")


def newer(session: Session) -> None:
    compact(session.sessions_dir, session.id)
    Path(session.metrics).write_text(
        Path(session.metrics).read_text().replace('"version": 1', '"version": 2')
    )
    assert '"version": 2' in Path(session.metrics).read_text()


def a_directory(session: Session) -> None:
    Path(session.metrics).mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (damaged, "cannot be used: it is not JSON"),
        (newer, "is of version 2"),
        (a_directory, "Is a directory"),
    ],
)
def test_session_that_cannot_be_merged_has_the_call_recorded(
    wrapper: Wrapper, one: Session, make: Callable[[Session], None], reason: str
) -> None:
    one.make()
    make(one)
    message = wrapper.told(wrapper(one.root))
    assert message.startswith("this call is recorded, but not merged into metrics.json: ")
    assert reason in message
    shutil.rmtree(one.metrics) if Path(one.metrics).is_dir() else Path(one.metrics).unlink()
    assert compact(one.sessions_dir, one.id).records == 2  # that it began, and how it ended


@pytest.mark.slow
def test_lock_that_is_never_given_back_has_the_call_recorded(wrapper: Wrapper, one: Session) -> None:
    one.make()
    lock = os.open(one.journal_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    message = wrapper.told(wrapper(one.root))
    assert message.startswith("this call is recorded, but not merged into metrics.json: ")
    assert f" is held by pid {os.getpid()} " in message
    os.close(lock)
    assert compact(one.sessions_dir, one.id).records == 2  # that it began, and how it ended


# --- Limits -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("descriptors", [5, 6, 7, 8, 9, 10, 12, 16])
def test_few_descriptors_cost_no_command(wrapper: Wrapper, one: Session, descriptors: int) -> None:
    result = wrapper(one.root, before=f"ulimit -n {descriptors}")
    assert (result.returncode, result.stdout) == (7, "out\n"), result.stderr
    if result.stderr:
        message = wrapper.told(result)
        assert message.startswith(("this call is ", "the session is not merged into metrics.json: "))
        assert ("not recorded" in message) is (recorded(one) == 0)
    else:
        assert (recorded(one), status(one).state) == (1, State.FINISHED)


def test_files_that_may_not_grow_cost_the_record_and_nothing_else(wrapper: Wrapper, one: Session) -> None:
    message = wrapper.told(wrapper(one.root, before="ulimit -f 0", PYTHONDONTWRITEBYTECODE="1"))
    assert message.startswith("this call is not recorded: ")
    assert recorded(one) == 0


# --- What happens while the command runs --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [
        "rm -r DIRECTORY",
        "rm -r DIRECTORY; touch DIRECTORY",
        "rm -r DIRECTORY; ln -s DIRECTORY DIRECTORY",
        "chmod 0 DIRECTORY",
        "chmod 0 DIRECTORY/..",
        "chmod 0500 DIRECTORY/segments",
        "chmod 0500 DIRECTORY",
        "rm DIRECTORY/metrics.json; mkdir DIRECTORY/metrics.json",
        "echo damaged >DIRECTORY/metrics.json",
        "rm -r DIRECTORY/segments; touch DIRECTORY/segments",
        "rm DIRECTORY/journal.lock; mkdir DIRECTORY/journal.lock",
    ],
)
@pytest.mark.parametrize("wrapper", STARTS, indirect=True)
def test_command_that_ruins_its_session_keeps_its_status(wrapper: Wrapper, one: Session, work: str) -> None:
    work = work.replace("DIRECTORY", shlex.quote(one.root))
    result = wrapper(one.root, "sh", "-c", f"{work}; echo out; exit 7")
    assert (result.returncode, result.stdout) == (7, "out\n")
    for directory in map(Path, (one.sessions_dir, one.root, one.segments)):
        if directory.is_dir() and not directory.is_symlink():
            directory.chmod(0o700)
    message = wrapper.told(result) if result.stderr else "this call is recorded"
    lost = ("this call is not recorded: ", "not all of this call is recorded: ")
    failed = "the session is not merged into metrics.json: "  # which says nothing of the call
    assert message.startswith((*lost, failed, "this call is recorded"))
    if message.startswith("this call is recorded"):
        if result.stderr:
            shutil.rmtree(one.metrics) if Path(one.metrics).is_dir() else Path(one.metrics).unlink()
        assert recorded(one) == 1


# --- What cannot be told ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("after", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_trouble_that_cannot_be_told_takes_no_status(wrapper: Wrapper, one: Session, after: str) -> None:
    file_in_its_place(one)
    result = wrapper(one.root, after=after)
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "")


def test_trouble_that_nobody_reads_takes_no_status(wrapper: Wrapper, one: Session) -> None:
    file_in_its_place(one)
    reading, writing = os.pipe()
    os.close(reading)
    command = [*wrapper.start, one.root, "--", *COMMAND]
    result = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=writing, check=False)
    os.close(writing)
    assert (result.returncode, result.stdout) == (7, b"out\n")


def test_missing_stderr_leaves_the_files_of_the_session_alone(wrapper: Wrapper, one: Session) -> None:
    one.make()
    damaged(one)
    result = wrapper(one.root, after="2>&-")
    assert (result.returncode, result.stdout) == (7, "out\n")
    Path(one.metrics).unlink()
    found = compact(one.sessions_dir, one.id)
    assert (found.records, found.rejected) == (2, [])
