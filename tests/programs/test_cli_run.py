"""`m31a-mp run`, and what the others do on a terminal: real processes, real terminals, real signals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from m31a_mp import Collector, attach, load, verify
from m31a_mp.inspection.status import State, owner_of, status
from m31a_mp.session.paths import Session
from metrics_of import loaded, outcomes
from workers import locked

PROGRAM = [sys.executable, "-m", "m31a_mp"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "M31A_MP_SESSION"}

# Says that it is there, and ends with its input.
WAITS = ["sh", "-c", "echo ready; read line; echo got $line; exit 7"]


@pytest.fixture
def one(sessions: Path) -> Session:
    """A session that does not exist yet."""
    return Session.named("one", sessions)


def run(
    session: Session | None, *arguments: str | Path, text: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`m31a-mp run` to its end."""
    command = [*PROGRAM, "run", *(["--session", session.root] if session else [])]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def without(
    module: str, *arguments: str | Path, modules: Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`m31a-mp` where a module is not installed. `modules` is an empty directory."""
    package = module.partition(".")[0]
    (modules / f"{package}.py").write_text(f"raise ModuleNotFoundError('no', name={module!r})")
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(modules), *sys.path])},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def started(session: Session, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`m31a-mp run` with a command that is under way: it has said `ready`."""
    process = subprocess.Popen(
        [*PROGRAM, "run", "--session", session.root, "--", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            end_all(process)


def end_all(leader: subprocess.Popen[Any]) -> None:
    """End what is left of a process and of those it started: a command outlives its killed `run`."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


def keeper_of(process: subprocess.Popen[Any]) -> psutil.Process:
    """Who waits for the command together with that process."""
    (keeper,) = psutil.Process(process.pid).children()
    return keeper


def await_end(process: psutil.Process) -> None:
    """Wait until a process that is not a child has ended, whether somebody was told or not."""
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)


def has_signal(pid: int, field: str, number: int) -> bool:
    """Whether a signal is in one of the sets of a process: `SigBlk`, `ShdPnd`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (signals,) = [int(line.split()[1], 16) for line in lines if line.startswith(field)]
    return bool(signals >> (number - 1) & 1)


def await_signal(pid: int, field: str, number: int, *, there: bool = True) -> None:
    while has_signal(pid, field, number) is not there:
        time.sleep(0.001)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command: str, **variables: str) -> None:
        self.master, slave = pty.openpty()
        self.output = b""
        self.slave = slave
        self.modes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"} | variables,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # there are none
        )

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, text: str) -> str:
        """What comes up to and with that text."""
        wanted = text.encode()
        while wanted not in self.output:
            self.output += os.read(self.master, 4096)
        seen, found, self.output = self.output.partition(wanted)
        return (seen + found).decode(errors="replace")

    def end(self) -> tuple[int, str]:
        """Wait for the program's end: its status, and what came since."""
        while self.process.poll() is None:  # what nobody reads, it waits to write
            if select.select([self.master], [], [], 0.01)[0]:
                self.output += os.read(self.master, 4096)
        os.write(self.slave, b"<end>")
        return self.process.returncode, self.read_until("<end>").removesuffix("<end>")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_all(self.process)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def run_on_terminal(session: Session, *command: str) -> Terminal:
    return Terminal(*PROGRAM, "run", "--session", session.root, "--", *command)


def shell() -> Terminal:
    """A shell with job control, at its prompt."""
    path = shutil.which("bash")
    if path is None:
        pytest.skip("there is no bash")
    terminal = Terminal(path, "--norc", "--noprofile", "-i", PS1="prompt> ")
    terminal.read_until("prompt> ")
    return terminal


# --- Streams and exit status --------------------------------------------------------------------------


def test_run_passes_on_streams_and_exit_status_and_creates_the_session(one: Session) -> None:
    result = run(one, "--", "sh", "-c", "cat; echo err >&2; exit 7", text="in\n")
    assert (result.returncode, result.stdout, result.stderr) == (7, "in\n", "err\n")
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (0, 1)}
    assert status(one).state is State.FINISHED
    assert not verify(one.sessions_dir, one.id)
    assert not list(Path(one.segments).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected", "tool", "message"),
    [
        (["true"], 0, "true", ""),
        (["sh", "-c", "kill -9 $$"], 137, "sh", ""),
        (["sh", "-c", "kill -15 $$"], 143, "sh", ""),
        (["sh", "-c", "kill -13 $$"], 141, "sh", ""),  # which Python ignores
        (
            ["no-such-command"],
            127,
            "no-such-command",
            "m31a-mp: no-such-command: No such file or directory\n",
        ),
        (["/etc/"], 126, "/etc/", "m31a-mp: /etc/: Is a directory\n"),
        (["/etc/passwd"], 126, "passwd", "m31a-mp: /etc/passwd: Permission denied\n"),
    ],
)
def test_run_tells_how_its_command_ended_as_a_shell_does(
    one: Session, command: list[str], expected: int, tool: str, message: str
) -> None:
    result = run(one, "--", *command)
    assert (result.returncode, result.stdout, result.stderr) == (expected, "", message)
    assert outcomes(loaded(one.sessions_dir, one.id)) == {tool: (int(expected == 0), int(expected != 0))}


def test_run_of_a_session_without_its_option_says_how_it_is_named(one: Session) -> None:
    result = run(one, "sessions/one", "--", "true")
    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr == (
        "m31a-mp: sessions/one: No such file or directory; "
        "the session is named by an option: --session sessions/one\n"
    )


def test_run_of_a_script_that_names_no_interpreter(one: Session, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0 $1"\n')
    assert run(one, "--", script, "x").returncode == 126
    script.chmod(0o755)
    assert run(one, "--", script, "x").stdout == f"{script} x\n"


def test_run_without_a_session_makes_one_and_says_where(tmp_path: Path) -> None:
    result = run(None, "sh", "-c", "echo out; exit 3", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (3, "out\n")
    (directory,) = (tmp_path / "sessions").iterdir()
    assert result.stderr == f"m31a-mp: recording into sessions/{directory.name}\n"
    assert outcomes(loaded(directory.parent, directory.name)) == {"sh": (0, 1)}


@pytest.mark.slow
def test_run_records_name_and_phase_as_told(one: Session) -> None:
    for command in ("false", "true", "false"):
        run(one, "--tool", "check", "--phase", "verify", "--", command)
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"check": (1, 2)}
    metrics = load(one.sessions_dir, one.id)
    assert metrics
    (phase,) = metrics.phases
    assert (phase.phase, phase.transition_count, phase.success) == ("verify", 3, False)
    assert phase.duration_ms <= metrics.tools[0].total_duration_ms


def test_phase_is_entered_while_the_command_runs(one: Session) -> None:
    arguments = ["--phase", "plan", "--", *PROGRAM, "show", "--json"]
    document = json.loads(run(one, *arguments).stdout)  # finds the session in its environment
    assert document["state"] == "running"
    assert [phase["transition_count"] for phase in document["metrics"]["phases"]] == [1]
    assert document["metrics"]["tools"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--session", "s"],
        ["--session", "s", "--"],
        ["--session", "s", "--", ""],
        ["--session", "s", "--nothing", "--", "touch", "ran"],
        ["--session", "s", "--tool", "", "--", "touch", "ran"],
        ["--session", "s", "--phase", "x" * 4097, "--", "touch", "ran"],
    ],
)
def test_run_called_wrongly_is_125_and_runs_nothing(tmp_path: Path, arguments: list[str]) -> None:
    result = run(None, *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (125, "")
    first, second = result.stderr.splitlines()
    assert first.startswith("m31a-mp: ")
    assert second.startswith("hint: ")
    assert not list(tmp_path.iterdir())


def test_run_runs_its_command_when_the_session_is_damaged(one: Session) -> None:
    one.make()
    Path(one.metrics).write_text("damaged")
    result = run(one, "--", "echo", "out")
    assert (result.returncode, result.stdout) == (0, "out\n")
    reason = f"{one.metrics} cannot be used: it is not JSON"
    message = f"m31a-mp: this call is recorded, but not merged into metrics.json: {reason}"
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    Path(one.metrics).unlink()
    run(one, "--", "true")
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"echo": (1, 0), "true": (1, 0)}


def test_run_in_a_session_whose_owner_crashed_takes_over_what_is_left(one: Session) -> None:
    with started(one, *WAITS) as process:
        keeper = keeper_of(process)
        attach(one.id, one.sessions_dir).record_tool_call("left", True, 1)
        for pid in (process.pid, keeper.pid):
            os.kill(pid, signal.SIGKILL)
    assert status(one).state in {State.NOT_CLOSED, State.RUNNING}  # what is staged here is a writer's
    run(one, "--", "true")
    metrics = loaded(one.sessions_dir, one.id)
    assert outcomes(metrics) == {"left": (1, 0), "true": (1, 0), "sh": (0, 1)}
    assert metrics.totals.interrupted == 1


# --- Other owners -------------------------------------------------------------------------------------


def test_run_attaches_to_a_session_that_is_owned(one: Session) -> None:
    with Collector(one.id, one.sessions_dir) as collector:
        result = run(one, "--", "true")
        assert (result.returncode, result.stderr) == (0, "")
        assert [tool.name for tool in collector.snapshot().tools] == ["true"]
        assert outcomes(loaded(one.sessions_dir, one.id)) == {}


def test_last_run_of_a_session_merges_when_the_owner_is_gone(one: Session) -> None:
    with Collector(one.id, one.sessions_dir) as collector, started(one, *WAITS) as process:
        collector.stop()
        assert process.communicate("x\n") == ("got x\n", "")
    assert process.returncode == 7
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (0, 1)}
    assert status(one).unmerged == 0


def test_run_owns_the_session_meanwhile(one: Session) -> None:
    with started(one, *WAITS) as process:
        owner = owner_of(one)
        assert owner
        assert owner.pid == process.pid
        assert status(one).state is State.RUNNING
        process.communicate("x\n")
    assert owner_of(one) is None


# --- Signals ------------------------------------------------------------------------------------------

_TELLS_ITS_SIGNAL = """
trap 'echo got HUP; exit 1' HUP
trap 'echo got INT; exit 2' INT
trap 'echo got TERM; exit 3' TERM
trap 'echo got USR1; exit 4' USR1
echo ready
while :; do sleep 0.01; done
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("HUP", 1), ("INT", 2), ("TERM", 3), ("USR1", 4)])
def test_run_hands_on_a_signal_and_records_what_comes_of_it(one: Session, name: str, expected: int) -> None:
    with started(one, "sh", "-c", _TELLS_ITS_SIGNAL) as process:
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.communicate() == (f"got {name}\n", "")
    assert process.returncode == expected
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (0, 1)}


_OPENS_ITS_SESSION_WHEN_TOLD = """
import sys
from m31a_mp.cli import main, wrapped

open_session = wrapped._open

def open_when_told(*arguments):
    sys.stdin.readline()
    return open_session(*arguments)

wrapped._open = open_when_told
sys.exit(main())
"""


def test_run_ended_before_its_command_starts_does_not_start_it(one: Session, tmp_path: Path) -> None:
    one.make()
    program = [sys.executable, "-c", _OPENS_ITS_SESSION_WHEN_TOLD]
    command = [*program, "run", "--session", one.root, "--", "touch", str(tmp_path / "ran")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, text=True) as process:
        await_signal(process.pid, "SigBlk", signal.SIGTERM)
        process.terminate()
        process.communicate("open\n")
    assert process.returncode == 143
    assert not (tmp_path / "ran").exists()
    assert outcomes(loaded(one.sessions_dir, one.id)) == {}


@pytest.mark.parametrize("owned", [True, False])
def test_killed_run_still_records_its_call(one: Session, owned: bool) -> None:
    collector = Collector(one.id, one.sessions_dir) if owned else None
    with started(one, *WAITS) as process:
        keeper = keeper_of(process)
        process.kill()
        process.wait()
        assert process.stdin
        assert process.stdout
        process.stdin.write("x\n")
        process.stdin.close()
        assert process.stdout.read() == "got x\n"
        await_end(keeper)
    found = status(one)
    assert [(tool.name, tool.fail_count) for tool in found.metrics.tools] == [("sh", 1)]
    if collector:
        collector.stop()
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (0, 1)}
    assert status(one).state is State.FINISHED


@pytest.mark.slow
def test_command_under_way_is_seen_from_elsewhere_also_when_its_run_is_killed(one: Session) -> None:
    with started(one, *WAITS) as process:
        keeper = keeper_of(process)
        for _ in range(2):  # the second time without the one whom the caller knows
            found = status(one)
            assert (found.state, [call.name for call in found.metrics.running]) == (State.RUNNING, ["sh"])
            assert found.metrics.running[0].pid == keeper.pid
            assert "Running" in shown(one)
            process.kill()
            process.wait()
        assert process.stdin
        process.stdin.close()
        await_end(keeper)
        metrics = loaded(one.sessions_dir, one.id)
        assert (metrics.running, outcomes(metrics), metrics.totals.interrupted) == ([], {"sh": (0, 1)}, 0)


def test_call_is_interrupted_if_all_who_wait_for_its_command_are_killed(one: Session) -> None:
    with started(one, *WAITS) as process:
        keeper = keeper_of(process)
        process.kill()
        process.wait()
        keeper.kill()
        await_end(keeper)
        found = status(one)
        assert found.state is State.NOT_CLOSED
        assert (found.metrics.running, found.metrics.totals.interrupted) == ([], 1)
    assert "1 call interrupted" in shown(one)


def shown(session: Session) -> str:
    """What `m31a-mp show` prints of a session."""
    command = [*PROGRAM, "show", session.root]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return done.stdout


def test_run_whose_keeper_is_killed_says_so(one: Session) -> None:
    with started(one, *WAITS) as process:
        keeper_of(process).kill()
        assert process.wait() == 137
        _, err = process.communicate("x\n")
    told = "the process that waits for sh was killed: the call counts as interrupted, if it was not over"
    assert err == f"m31a-mp: {told}\n"
    metrics = loaded(one.sessions_dir, one.id)
    assert (outcomes(metrics), metrics.totals.interrupted) == ({"sh": (0, 1)}, 1)


# --- On a terminal ------------------------------------------------------------------------------------


def test_command_is_on_the_terminal_itself(one: Session) -> None:
    command = ("sh", "-c", "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo and tty is $(tty)")
    with run_on_terminal(one, *command) as terminal:
        expected, output = terminal.end()
        assert (expected, output) == (0, f"and tty is {os.ttyname(terminal.slave)}\r\n")


_COUNTS_INTERRUPTS = """
import signal
signals = {signal.SIGINT, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print("ready", flush=True)
count = 0
while signal.sigwait(signals) == signal.SIGINT:
    count += 1
    print("interrupted", flush=True)
print("count", count)
"""


def test_ctrl_c_reaches_the_command_once(one: Session) -> None:
    with run_on_terminal(one, sys.executable, "-c", _COUNTS_INTERRUPTS) as terminal:
        terminal.read_until("ready")
        process = terminal.process
        # The one who could hand it on is kept from it until the others are through with it.
        process.send_signal(signal.SIGSTOP)
        terminal.type("\x03")
        terminal.read_until("interrupted")
        await_signal(keeper_of(process).pid, "ShdPnd", signal.SIGINT, there=False)
        process.send_signal(signal.SIGUSR1)  # which comes after the interrupt
        process.send_signal(signal.SIGCONT)
        assert terminal.end() == (0, "\r\ncount 1\r\n")


def test_ctrl_c_ends_a_command_and_the_call_is_recorded(one: Session) -> None:
    with run_on_terminal(one, "sh", "-c", "echo ready; exec sleep 100") as terminal:
        terminal.read_until("ready")
        terminal.type("\x03")
        assert terminal.end()[0] == -signal.SIGINT  # for which a shell tells 130
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (0, 1)}


def test_empty_session_makes_none_and_says_so(tmp_path: Path) -> None:
    command = [*PROGRAM, "run", "--session", "", "--", "echo", "hi"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("hi\n", "m31a-mp: this call is not recorded: no session is named\n")
    assert list(tmp_path.iterdir()) == []


def test_run_into_a_directory_of_sessions_records_nothing_there(one: Session) -> None:
    subprocess.run([*PROGRAM, "run", "--session", one.root, "--", "true"], check=True, env=ENVIRONMENT)
    command = [*PROGRAM, "run", "--session", one.sessions_dir, "--", "echo", "hi"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    message = f"this call is not recorded: {one.sessions_dir} is no session; it holds a session"
    assert (done.stdout, done.stderr) == ("hi\n", f"m31a-mp: {message}\n")
    assert os.listdir(one.sessions_dir) == [one.id]


def test_ctrl_c_ends_a_script_in_which_commands_are_run(one: Session) -> None:
    run = shlex.join([*PROGRAM, "run", "--session", one.root, "--"])
    script = f"for i in 1 2 3; do {run} sh -c 'echo ready $i; exec sleep 100'; done; echo after"
    with Terminal("bash", "-c", script) as terminal:
        terminal.read_until("ready")
        terminal.type("\x03")
        assert "ready" not in terminal.end()[1]
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (0, 1)}


def test_ctrl_z_stops_a_run_and_fg_goes_on(one: Session) -> None:
    with shell() as terminal:
        terminal.type(f"{' '.join(PROGRAM)} run --session {one.root} -- sh -c '{WAITS[2]}'\n")
        terminal.read_until("ready\r\n")
        terminal.type("\x1a")
        terminal.read_until("Stopped")
        terminal.read_until("prompt> ")
        terminal.type("fg\n")
        terminal.read_until(WAITS[2])  # bash says what goes on
        terminal.type("hello\n")
        terminal.read_until("got hello")
        terminal.type("echo status=$?\n")
        terminal.read_until("status=7")
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (0, 1)}


def test_command_that_stops_itself_gives_the_shell_its_terminal_back(one: Session) -> None:
    with shell() as terminal:
        terminal.type(
            f"{' '.join(PROGRAM)} run --session {one.root} -- sh -c 'kill -TSTP $$; echo b\"\"ack'\n"
        )
        terminal.read_until("Stopped")
        terminal.read_until("prompt> ")
        terminal.type("fg\n")
        terminal.read_until("back")
        terminal.type("echo status=$?\n")
        terminal.read_until("status=0")
    assert outcomes(loaded(one.sessions_dir, one.id)) == {"sh": (1, 0)}


def test_stopped_run_that_is_continued_alone_has_its_command_go_on(one: Session) -> None:
    with shell() as terminal:
        command = "'kill -TSTP $$; echo b\"\"ack'"
        terminal.type(f"{' '.join(PROGRAM)} run --session {one.root} -- sh -c {command}\n")
        terminal.read_until("Stopped")
        terminal.read_until("prompt> ")
        owner = owner_of(one)
        assert owner
        assert owner.pid
        os.kill(owner.pid, signal.SIGCONT)
        terminal.read_until("back")


# --- watch --------------------------------------------------------------------------------------------

_OTHER_SCREEN, _FIRST_SCREEN, _CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ended_by", "expected"), [("Ctrl-C", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_watch_is_live_and_leaves_the_terminal_as_it_was(
    one: Session, ended_by: str | signal.Signals, expected: int
) -> None:
    with Collector(one.id, one.sessions_dir) as collector:
        collector.record_tool_call("first", True, 1)
        command = [*PROGRAM, "watch", "--interval", "0.05", one.root]
        with Terminal(*command) as terminal:
            terminal.read_until(_OTHER_SCREEN)
            terminal.read_until("first")
            collector.record_tool_call("second", True, 1)
            terminal.read_until("second")
            if isinstance(ended_by, signal.Signals):
                terminal.process.send_signal(ended_by)
            else:
                terminal.type("\x03")
            found, rest = terminal.end()
            assert found == expected
            assert _OTHER_SCREEN not in rest
            assert rest.rindex(_FIRST_SCREEN) >= 0
            assert _CURSOR in rest
            assert "Traceback" not in rest
            assert termios.tcgetattr(terminal.slave) == terminal.modes


@pytest.mark.slow
def test_watch_goes_on_when_the_session_cannot_be_read_for_a_while(one: Session) -> None:
    with Collector(one.id, one.sessions_dir) as collector:
        collector.record_tool_call("first", True, 1)
        collector.flush()
        with Terminal(*PROGRAM, "watch", "--interval", "0.05", one.root) as terminal:
            terminal.read_until("first")
            whole = Path(one.metrics).read_bytes()
            Path(one.metrics).write_text("damaged")
            terminal.read_until("not to be read now")
            terminal.read_until("first")
            Path(one.metrics).write_bytes(whole)
            collector.record_tool_call("second", True, 1)
            terminal.read_until("second")
            terminal.type("\x03")
            assert terminal.end()[0] == 0


def test_watch_stopped_by_ctrl_z_gives_the_screen_back(one: Session) -> None:
    Collector(one.id, one.sessions_dir).stop()
    with shell() as terminal:
        terminal.type(f"{' '.join(PROGRAM)} watch --interval 0.05 {one.root}\n")
        terminal.read_until(_OTHER_SCREEN)
        terminal.type("\x1a")
        assert _FIRST_SCREEN in terminal.read_until("Stopped")
        terminal.read_until("prompt> ")
        terminal.type("fg\n")
        terminal.read_until(_OTHER_SCREEN)
        terminal.type("\x03")
        terminal.read_until(_FIRST_SCREEN)
        terminal.type("echo status=$?\n")
        terminal.read_until("status=0")


@pytest.mark.slow
def test_watch_in_a_pipe_prints_one_snapshot_after_the_other(one: Session) -> None:
    Collector(one.id, one.sessions_dir).stop()
    command = [*PROGRAM, "watch", "--count", "3", "--interval", "0.05", one.root]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.count(f"{one.root}: finished\n") == 3
    assert "\x1b" not in result.stdout
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert [json.loads(line)["state"] for line in result.stdout.splitlines()] == ["finished"] * 3


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_watch_in_a_pipe_ends_without_a_word(one: Session, number: signal.Signals, expected: int) -> None:
    Collector(one.id, one.sessions_dir).stop()
    command = [*PROGRAM, "watch", "--json", "--interval", "0.05", one.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        assert process.communicate()[1] == ""
    assert process.returncode == expected


# --- Progress -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_long_work_shows_a_progress_bar_on_a_terminal(one: Session) -> None:
    attach(one.id, one.sessions_dir).record_tool_call("left", True, 1)
    with locked(one):
        terminal = Terminal(*PROGRAM, "compact", one.root)
        terminal.read_until("merging")
    with terminal:
        found, rest = terminal.end()
    assert found == 0
    assert rest.endswith(f"{one.root}: 1 record merged\r\n")


@pytest.mark.slow
@pytest.mark.parametrize(("ended_by", "expected"), [("Ctrl-C", 130), (signal.SIGTERM, 143)])
def test_long_work_that_is_ended_leaves_the_terminal_as_it_was(
    one: Session, ended_by: str | signal.Signals, expected: int
) -> None:
    attach(one.id, one.sessions_dir).record_tool_call("left", True, 1)
    with locked(one), Terminal(*PROGRAM, "compact", one.root) as terminal:
        terminal.read_until("merging")
        if isinstance(ended_by, signal.Signals):
            terminal.process.send_signal(ended_by)
        else:
            terminal.type("\x03")
        found, rest = terminal.end()
        assert found == expected
        assert _CURSOR in rest
        assert "Traceback" not in rest
