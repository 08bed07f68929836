"""What a program sees of the library's log: losses only, until it configures logging."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Whatever there is to log: a summary, a refreshing thread that fails, a last flush that fails, records that
# are dropped.
PROGRAM = """
import sys, time
from pathlib import Path
{configure}
from m31a_mp import Collector, attach
from m31a_mp.metrics import compactor

sessions = Path(sys.argv[1])
with Collector("fine", sessions) as collector:
    collector.record_tool_call("bash", True, 1)

tries = []
def fail(*args, **kwargs):
    tries.append(args)
    raise OSError("on fire")

collector = Collector("broken", sessions, flush_interval=0.05)
compactor.compact_session = fail
while len(tries) < 2:  # when it tries again, what there was to say was said
    time.sleep(0.001)
collector.stop()

(sessions / "file").touch()
attach("file", sessions).record_tool_call("bash", True, 1)
"""


def dropped_in(directory: Path) -> str:
    return (
        f"records are being dropped in {directory}: {directory} is not a directory; a session needs its own"
    )


def stderr_of_program(sessions: Path, configure: str) -> str:
    program = PROGRAM.format(configure=configure)
    result = subprocess.run(
        [sys.executable, "-c", program, str(sessions)], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert not result.stdout
    return result.stderr


def test_program_that_configures_no_logging_is_told_of_losses_only(sessions: Path) -> None:
    assert stderr_of_program(sessions, "") == f"m31a_mp: {dropped_in(sessions / 'file')}\n"


def test_program_that_only_imports_logging_is_told_of_losses_only(sessions: Path) -> None:
    configure = "import logging; logging.getLogger('mine')"
    assert stderr_of_program(sessions, configure) == f"m31a_mp: {dropped_in(sessions / 'file')}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "configure",
    [
        "logging.getLogger('m31a_mp').addHandler(logging.NullHandler())",
        "logging.getLogger().addHandler(logging.NullHandler())",
        "logging.getLogger('m31a_mp').setLevel('ERROR')",
        "logging.getLogger('m31a_mp').disabled = True",
        "logging.disable()",
    ],
)
def test_program_that_has_a_handler_or_wants_no_warnings_sees_nothing(sessions: Path, configure: str) -> None:
    assert stderr_of_program(sessions, f"import logging; {configure}") == ""


def test_program_that_configures_logging_sees_what_there_is_under_the_name_of_the_library(
    sessions: Path,
) -> None:
    configure = (
        "import logging; logging.basicConfig(level='INFO', format='%(name)s %(levelname)s %(message)s')"
    )
    lines = stderr_of_program(sessions, configure).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "m31a_mp INFO session fine",
        "m31a_mp WARNING metrics.json is not fresh",
        "m31a_mp WARNING the last flush of session broken failed",
        f"m31a_mp WARNING records are being dropped in {sessions / 'file'}",
    ]


def test_program_that_asks_for_errors_only_sees_nothing(sessions: Path) -> None:
    configure = "import logging; logging.basicConfig(level='ERROR')"
    assert stderr_of_program(sessions, configure) == ""


# --- On stderr ----------------------------------------------------------------------------------------

DROPS = """
import os, sys
from pathlib import Path
from m31a_mp import attach

sessions = Path(sys.argv[1])
sessions.mkdir()
for name in ("one", "two"):
    (sessions / name).touch()
one, two = attach("one", sessions), attach("two", sessions)


def drop(times=3):
    for _ in range(times):
        one.record_tool_call("bash", True, 1)

"""


def program_that_drops(sessions: Path, program: str) -> list[str]:
    return [sys.executable, "-c", DROPS + program, str(sessions)]


def stderr_of(sessions: Path, program: str) -> str:
    command = program_that_drops(sessions, program)
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
    return result.stderr


def test_losses_are_told_once_for_each_session(sessions: Path) -> None:
    lines = stderr_of(sessions, "drop(); two.record_tool_call('bash', True, 1); drop()")
    assert lines == "".join(f"m31a_mp: {dropped_in(sessions / name)}\n" for name in ("one", "two"))


def test_records_that_did_not_reach_the_disk_are_told_once(sessions: Path) -> None:
    fails = """
from m31a_mp import Collector
from m31a_mp.system import files
def fail(path):
    raise OSError(5, "on fire")
with Collector("three", sessions, durability="disk") as collector:
    works, files.sync = files.sync, fail
    collector.record_tool_call("bash", True, 1)
    files.sync = works
    collector.record_tool_call("bash", True, 1)
    files.sync = fail
    collector.record_tool_call("bash", True, 1)
"""
    told = stderr_of(sessions, fails)
    assert told == f"m31a_mp: records of {sessions}/three are not on the disk: [Errno 5] on fire\n"


def test_name_of_a_session_cannot_steer_the_terminal(sessions: Path) -> None:
    name = "three\x1b[2J\n"
    drops = f"(sessions / {name!r}).touch(); attach({name!r}, sessions).record_tool_call('bash', True, 1)"
    line = stderr_of(sessions, drops)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert "\x1b" not in line
    assert "three\\x1b[2J\\n: " in line


def test_long_line_is_cut_so_that_a_pipe_takes_it_at_once(sessions: Path) -> None:
    drops = "attach('s', sessions / ('x' * 5000)).record_tool_call('bash', True, 1)"
    assert len(stderr_of(sessions, drops)) == 4096


@pytest.mark.parametrize(
    "program",
    [
        "from signal import *; signal(SIGUSR1, lambda *_: drop()); raise_signal(SIGUSR1)",
        "class A:\n    def __del__(self): drop()\na = A(); del a",
        "class A:\n    def __del__(self): drop()\na = A()",  # at the interpreter's end
        "import threading; t = threading.Thread(target=drop); t.start(); t.join()",
        "pid = os.fork(); pid or drop(); pid and os.waitpid(pid, 0)",
    ],
)
def test_loss_is_told_wherever_it_comes(sessions: Path, program: str) -> None:
    assert stderr_of(sessions, program) == f"m31a_mp: {dropped_in(sessions / 'one')}\n"


_RECORDS_IN_A_WRITE = """
import select, signal
def drop_and_come_again(*_):
    drop()
    signal.setitimer(signal.ITIMER_REAL, 1e-4)
signal.signal(signal.SIGALRM, drop_and_come_again)
signal.setitimer(signal.ITIMER_REAL, 1e-4)
for _ in range(300):
    sys.stderr.write("x" * 4095 + chr(10))
    sys.stderr.flush()
# Not ignored: of a signal that is on its way, Python would complain.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
select.select([], [2], [])  # the pipe was full, perhaps, whenever a record came
drop()
"""


def test_loss_in_the_middle_of_another_write_to_stderr_is_told(sessions: Path) -> None:
    told = stderr_of(sessions, _RECORDS_IN_A_WRITE)
    # One that found the pipe full is told later, in other words.
    others, count = re.subn(f"m31a_mp: records are being dropped in {sessions}/one: .+\n", "", told)
    assert count == 1
    assert set(others) == {"x", "\n"}


@pytest.mark.parametrize(
    "program",
    [
        "sys.stderr = None; drop()",
        "sys.stderr.close(); drop()",
        "os.close(2); drop()",
    ],
)
def test_loss_of_a_program_without_stderr_is_not_told(sessions: Path, program: str) -> None:
    assert stderr_of(sessions, program) == ""


def test_file_that_has_the_number_of_a_closed_stderr_is_left_alone(sessions: Path) -> None:
    program = """
os.close(2)
with open(sessions / "data", "w") as data:
    assert data.fileno() == 2
    drop()
"""
    stderr_of(sessions, program)
    assert (sessions / "data").read_bytes() == b""


def test_pipe_that_nobody_reads_holds_up_no_record(sessions: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    command = program_that_drops(sessions, "drop(); print('done')")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writing) as process:
        assert process.stdout
        assert process.stdout.read() == b"done\n"
    assert process.returncode == 0
    os.close(reading)
    os.close(writing)


def test_loss_that_found_the_pipe_full_is_told_when_there_is_room(sessions: Path) -> None:
    program = """
reading, writing = os.pipe()
os.set_blocking(writing, False)
filled = 0
try:
    while True:
        filled += os.write(writing, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(writing, True)
real = os.dup(2)
os.dup2(writing, 2)
drop()
while filled:
    filled -= len(os.read(reading, filled))
drop()
os.write(real, os.read(reading, 4096))
"""
    reason = dropped_in(sessions / "one").partition(": ")[0]
    assert stderr_of(sessions, program).startswith(f"m31a_mp: {reason}")


def test_pipe_without_a_reader_does_not_end_the_program(sessions: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL); drop(); os._exit(7)"
    process = subprocess.Popen(program_that_drops(sessions, program), stderr=writing)
    os.close(writing)
    assert process.wait() == 7
