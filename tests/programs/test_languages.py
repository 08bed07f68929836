"""The workers in other languages that the documents show, run as they are beside live Python processes."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import orjson
import psutil
import pytest

from m31a_mp import Collector, JournalLockedError, Recorder, attach, verify
from m31a_mp.session.paths import Session
from workers import Counters, Forked, count_up

DOCUMENT = Path(__file__).parent.parent.parent / "src" / "m31a_mp" / "README.md"
HEADING = "\n## Other languages\n"

NAMES = [
    "pytest",
    'say "hi"',
    "C:\\new\\table",
    "\\",
    "two\nlines\n\n",
    "".join(map(chr, range(1, 32))) + "\x7f",
    "größe",
    "\N{SNOWMAN} \N{BUG}\N{ZERO WIDTH JOINER}\N{GRINNING FACE} \u2028 漢字",
    "$(touch planted) `touch planted` ${HOME} !! & %s %d *",
    "-n",
    ' \'{"event":"tool_call"}\' ',
]


def missing(*programs: str) -> pytest.MarkDecorator:
    absent = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


BASH = pytest.param("bash", marks=missing("bash", "flock"))
NODE = pytest.param("js", marks=missing("node", "flock"))
LANGUAGES = [BASH, NODE]

# What is run behind the block: as many rounds as the first argument says, in each a call of every tool that
# the other arguments name, and its number is printed when all of them are recorded. The pauses let others at
# the lock who do not sleep for it.
ROUNDS = {
    "bash": r"""
count=$1; shift
for ((i = 1; i <= count; i++)); do
  for name; do
    record "{\"event\":\"tool_call\",\"name\":$(quote "$name"),\"success\":true,\"duration_ms\":$i}" || exit
  done
  echo "$i"
  sleep 0.01
done
""",
    "js": r"""
const [count, ...names] = process.argv.slice(2);
for (let i = 1; i <= count; i++) {
  record(...names.map((name) => ({ event: "tool_call", name, success: true, duration_ms: i })));
  fs.writeSync(1, `${i}\n`);
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
}
""",
}
HALF = b'{"event":"tool_call","name":"ha'
WHOLE = b'{"event":"tool_call","name":"whole","success":true,"duration_ms":7}'
BATCH = b'{"batch":"5e1f0c2ad1b2a3c4","first":1,"count":2,"bytes":190,"cr\0\0\0\0\0\0'

INTERPRETERS = {"bash": ["bash", "-eu"], "js": ["node"]}

# What goes between to stop a worker when it holds the lock and has not written, the first time.
STOPPED_ONCE = {
    "bash": '#!/bin/sh\nmkdir "$0.once" 2>/dev/null && kill -STOP $$\nexec "$TAIL" "$@"\n',
    "js": """
const fs = require("fs"), append = fs.appendFileSync;
fs.appendFileSync = (...given) => {
  fs.appendFileSync = append;
  process.kill(process.pid, "SIGSTOP");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);  // it may come late
  append(...given);
};
""",
}


def block(language: str) -> str:
    """The worker of that language in the document."""
    section = DOCUMENT.read_text("utf-8").partition(HEADING)[2]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"the document shows no worker in {language} under {HEADING.strip()!r}"
    return found[1]


class Place:
    """A session whose owner is the test, and the workers in it."""

    def __init__(self, collector: Collector, sessions: Path, directory: Path, started: ExitStack) -> None:
        self.collector = collector
        self.journal = Session.named("s", sessions).journal
        self.directory = directory
        self._sessions = sessions
        self._started = started

    def start(
        self,
        language: str,
        rounds: int = 0,
        names: list[str] = NAMES,
        options: tuple[str, ...] = (),
        variables: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a worker, in a process group of its own."""
        program = self.directory / f"worker.{language}"
        program.write_text(block(language) + ROUNDS[language], "utf-8")
        worker = subprocess.Popen(
            [*INTERPRETERS[language], *options, str(program), str(rounds), *names],
            cwd=self.directory,
            env=self.environment() | (variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.callback(kill, worker)
        return worker

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.collector.env()}

    def attach(self) -> Recorder:
        return attach("s", self._sessions)

    def calls(self) -> dict[str, tuple[int, int]]:
        """Of each tool how many calls were counted, and how long they took in all."""
        tools = self.collector.snapshot().tools
        return {tool.name: (tool.call_count, tool.total_duration_ms) for tool in tools}

    def findings(self) -> list[str]:
        return list(map(str, verify(self._sessions, "s")))


@pytest.fixture
def place(sessions: Path, tmp_path: Path) -> Iterator[Place]:
    with Collector("s", sessions) as collector, ExitStack() as started:
        yield Place(collector, sessions, tmp_path, started)


def kill(worker: subprocess.Popen[str]) -> None:
    """Kill it with all that it started."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert worker.stdout
    worker.stdout.close()


def finish(worker: subprocess.Popen[str], rounds: int = 0) -> None:
    """Wait for its end; it said that it did those rounds, and nothing else."""
    printed, _ = worker.communicate()
    assert printed.split() == [str(i + 1) for i in range(rounds)]
    assert worker.returncode == 0


def as_counted(*rounds: int) -> tuple[int, int]:
    """What so many rounds of some workers are counted as, for one tool."""
    return sum(rounds), sum(n * (n + 1) // 2 for n in rounds)


def samples(workers: int) -> tuple[int, int]:
    """What the call that ends the block in the document is counted as."""
    return workers, workers * 420


def record_in_bursts(recorder: Recorder, tool: str, numbers: Counters, index: int) -> None:
    """Record at full speed, with short rests, until the last number is set (or 400,000 times)."""
    i = 0
    while not numbers[-1] and i < 400_000:
        for _ in range(2_000):
            i += 1
            recorder.record_tool_call(tool, True, i)
        numbers[index] = i
        time.sleep(0.002)


# --- beside live Python processes ---


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node") or not shutil.which("flock"), reason="needs node and flock")
def test_workers_of_all_languages_at_once_under_an_owner_that_flushes_all_the_time_are_counted_exactly(
    place: Place,
) -> None:
    rounds = {"bash": 8, "js": 40}
    numbers = Counters(place.directory / "numbers", 3)
    with ExitStack() as pythons:
        running = [
            pythons.enter_context(Forked(record_in_bursts, place.attach(), f"python {i}", numbers, i))
            for i in range(2)
        ]
        foreign = [
            (place.start(language, rounds[language]), rounds[language]) for language in ("bash", "js") * 2
        ]
        flushes = 0
        while any(worker.poll() is None for worker, _ in foreign):
            with suppress(JournalLockedError):  # who polls for the lock comes after those who sleep for it
                place.collector.flush()
                flushes += 1
        numbers[-1] = 1
        assert [worker.wait() for worker in running] == [0, 0]
    for worker, count in foreign:
        finish(worker, count)
    expected = dict.fromkeys(NAMES, as_counted(*(count for _, count in foreign)))
    expected |= {f"python {i}": as_counted(numbers[i]) for i in range(2)}
    assert place.calls() == expected | {"make": samples(4)}
    assert place.findings() == []
    assert flushes


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_worker_killed_at_random_loses_at_most_the_round_that_it_was_in(language: str, place: Place) -> None:
    killed = []
    for i in range(6):
        worker = place.start(language, 1_000_000, [f"tool {i}"])
        assert worker.stdout
        assert worker.stdout.readline() == "1\n"
        steady = place.attach()
        steady.record_tool_call("python", True, i + 1)
        time.sleep(random.random() / 20)
        if i % 2:
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            worker.kill()  # what it started goes on, and ends by itself
        # Ends when nobody is left to print: then nobody is left to write, either.
        printed = ["1", *worker.stdout.read().split("\n")[:-1]]
        killed.append((f"tool {i}", int(printed[-1])))
        place.collector.flush()
    calls = place.calls()
    for tool, last in killed:
        assert calls[tool] in (as_counted(last), as_counted(last + 1))
    assert calls["python"] == as_counted(6)
    assert calls["make"] == samples(6)
    assert place.findings() == []


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True], ids=["goes on", "is killed"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_worker_stopped_in_the_lock_holds_up_other_languages_only_and_nobody_loses_a_record(
    language: str, is_killed: bool, place: Place
) -> None:
    numbers = Counters(place.directory / "numbers", 1)
    with stopped_in_the_lock(language, place) as (holder, stopped):
        others = [place.start(other, 3) for other in ("bash", "js") if shutil.which(INTERPRETERS[other][0])]
        with Forked(count_up, place.attach(), "python", 50_000, numbers, 0) as python:
            assert python.wait() == 0
        assert place.calls() == {"python": as_counted(50_000)}
        assert all(worker.poll() is None for worker in others)
        if is_killed:
            kill(holder)
        else:
            stopped.resume()
            finish(holder, 2)
    for worker in others:
        finish(worker, 3)
    place.collector.flush()
    of_holder = 0 if is_killed else 2
    expected = dict.fromkeys(NAMES, as_counted(of_holder, *[3 for _ in others]))
    expected["make"] = samples(len(others) + (not is_killed))
    assert place.calls() == expected | {"python": as_counted(50_000)}
    assert place.findings() == []


def stopped_one(pid: int) -> psutil.Process | None:
    """The process that is stopped, of those that this one started and itself."""
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it ended since
            if process.status() == psutil.STATUS_STOPPED:
                return process
    return None


@contextmanager
def stopped_in_the_lock(
    language: str, place: Place
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A worker that does two rounds, and what of it stands still, the lock in hand."""
    between = place.directory / "tail"
    between.write_text(STOPPED_ONCE[language], "utf-8")
    between.chmod(0o700)
    if language == "bash":
        path = f"{place.directory}:{os.environ['PATH']}"
        worker = place.start(language, 2, variables={"PATH": path, "TAIL": shutil.which("tail") or ""})
    else:
        worker = place.start(language, 2, options=("--require", str(between)))
    while not (stopped := stopped_one(worker.pid)):
        assert worker.poll() is None, "it was not stopped"
        time.sleep(0.005)
    yield worker, stopped


@pytest.mark.parametrize("language", LANGUAGES)
def test_worker_that_waits_while_the_journal_is_sealed_writes_into_the_next_one(
    language: str, place: Place
) -> None:
    Path(place.journal).write_bytes(WHOLE + b"\n")
    sealed = Path(place.journal).with_name("journal.000000000042.ndjson")
    with Path(place.journal).with_name("journal.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker = place.start(language, 1)
        inode = str(os.fstat(lock.fileno()).st_ino)
        while not re.search(rf"-> FLOCK .*:{inode} ", Path("/proc/locks").read_text("ascii")):
            assert worker.poll() is None, "it did not wait"
            time.sleep(0.005)
        Path(place.journal).rename(sealed)
    finish(worker, 1)
    assert sealed.read_bytes() == WHOLE + b"\n"
    place.collector.flush()
    assert place.calls() == dict.fromkeys(NAMES, as_counted(1)) | {"make": samples(1), "whole": (1, 7)}
    assert place.findings() == []


# --- what else is in the journal ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tail", "rejected"),
    [(b"", 0), (HALF, 1), (WHOLE, 0), (WHOLE + b"\n", 0), (BATCH, 0), (b"\0\0\0\0", 0)],
    ids=["nothing", "half a line", "no newline", "a line", "a torn batch", "an empty batch"],
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_dead_writer_left_does_not_cost_the_next_line(
    language: str,
    tail: bytes,
    rejected: int,
    place: Place,
) -> None:
    Path(place.journal).write_bytes(tail)
    finish(place.start(language, 1), 1)
    assert Path(place.journal).read_bytes().startswith(tail)
    place.collector.flush()
    expected = dict.fromkeys(NAMES, as_counted(1)) | {"make": samples(1)}
    if tail.startswith(WHOLE):
        expected["whole"] = 1, 7
    assert place.calls() == expected
    assert len(place.findings()) == rejected


@pytest.mark.slow
@pytest.mark.parametrize("next_one", ["python", *LANGUAGES])
@pytest.mark.parametrize("language", LANGUAGES)
def test_line_that_its_worker_did_not_end_costs_only_itself(
    language: str,
    next_one: str,
    place: Place,
) -> None:
    Path(place.journal).write_bytes(WHOLE.ljust(499) + b"\n" + WHOLE.ljust(499) + b"\n")
    # A file may have 1024 bytes: the kernel takes that much of the line, and kills for the rest.
    program = place.directory / "limited"
    program.write_text(block(language), "utf-8")
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *INTERPRETERS[language], str(program)],
        env=place.environment(),
        cwd=place.directory,
        capture_output=True,
        check=False,
    )
    assert limited.returncode != 0
    assert len(Path(place.journal).read_bytes()) == 1024
    if next_one == "python":
        recorder = place.attach()
        recorder.record_tool_call("next", True, 1)
        recorder.flush()
    else:
        finish(place.start(next_one, 1, ["next"]), 1)
    place.collector.flush()
    calls = place.calls()
    assert calls.pop("make", samples(1)) == samples(1)
    assert calls == {"whole": (2, 14), "next": (1, 1)}
    # Python cuts what it knows to be half a line; others may not.
    assert len(place.findings()) == (next_one != "python")


@pytest.mark.parametrize("language", LANGUAGES)
def test_journal_that_a_worker_makes_is_private(language: str, place: Place) -> None:
    before = os.umask(0)
    try:
        worker = place.start(language)
    finally:
        os.umask(before)
    finish(worker)
    assert stat.S_IMODE(Path(place.journal).stat().st_mode) == 0o600


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_of_all_characters_and_of_the_greatest_length_are_lines_of_valid_json(
    language: str, place: Place
) -> None:
    names = ["ü" * 2048, "\x01" * 4096, *NAMES]
    finish(place.start(language, 1, names), 1)
    lines = Path(place.journal).read_bytes().splitlines(keepends=True)
    assert [orjson.loads(line)["name"] for line in lines] == ["make", *names]
    assert all(line.endswith(b"}\n") for line in lines)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("variables", [{"M31A_MP_SESSION": ""}, {}], ids=["disabled", "not there"])
def test_worker_outside_of_a_session_records_nothing(
    language: str, variables: dict[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "worker"
    program.write_text(block(language), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "M31A_MP_SESSION"}
    ran = subprocess.run(
        [*INTERPRETERS[language], str(program)],
        env=environment | variables,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert not ran.stdout + ran.stderr
    assert os.listdir(tmp_path) == ["worker"]


@missing("go")
def test_go_worker_compiles_and_records(place: Place) -> None:
    program = place.directory / "worker.go"
    imports = ["bytes", "encoding/json", "io", "os", "syscall"]
    lines = "\n".join(f'\t"{name}"' for name in imports)
    program.write_text(f"package main\n\nimport (\n{lines}\n)\n\n{block('go')}", "utf-8")
    environment = {**place.environment(), "GOCACHE": str(place.directory / "cache")}
    for command in (["go", "vet"], ["go", "run"]):
        subprocess.run([*command, str(program)], env=environment, cwd=place.directory, check=True)
    assert stat.S_IMODE(Path(place.journal).stat().st_mode) == 0o600
    with Path(place.journal).open("ab") as file:
        file.write(HALF)
    subprocess.run(["go", "run", str(program)], env=environment, cwd=place.directory, check=True)
    place.collector.flush()
    assert place.calls() == {"make": samples(2)}
    assert len(place.findings()) == 1
