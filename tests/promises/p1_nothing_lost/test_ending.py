"""A program that ends without `stop()`: what it left is merged if that is quick, and told as what it is."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.inspection.status import State, status
from m31a_mp.metrics import compactor
from m31a_mp.session.paths import Session
from workers import under_way

START = """
import atexit, os, sys, threading, time
from m31a_mp import Collector, attach

sessions = sys.argv[1]


def record(recorder, times=1):
    for _ in range(times):
        recorder.record_tool_call("bash", True, 1)


"""


def program(sessions: Path, text: str) -> list[str]:
    return [sys.executable, "-c", START + text, str(sessions)]


def run(sessions: Path, text: str, *, is_measured: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program; one that can open no file is not measured, for that would tell its own trouble."""
    environment = {k: v for k, v in os.environ.items() if is_measured or not k.startswith("COVERAGE")}
    return subprocess.run(
        program(sessions, text), check=False, capture_output=True, text=True, env=environment
    )


def merged(sessions: Path, session_id: str = "s") -> int:
    """How many calls metrics.json has."""
    metrics = load(sessions, session_id)
    assert metrics is not None
    return sum(tool.call_count for tool in metrics.tools)


def state(sessions: Path, session_id: str = "s") -> State:
    return status(Session.named(session_id, sessions)).state


# --- Programs that just end ---------------------------------------------------------------------------

GLOBAL = "metrics = Collector('s', sessions)\nrecord(metrics, 3)\n"
LOCAL = "def main():\n    record(Collector('s', sessions), 3)\nmain()\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        GLOBAL,
        LOCAL,
        GLOBAL + "raise SystemExit\n",
        "metrics = Collector('s', sessions, flush_interval=1e-3)\nrecord(metrics, 3)\n",
        "metrics = Collector('s', sessions, flush_interval=3600)\nrecord(metrics, 3)\n",
        "metrics = Collector('s', sessions, durability='disk')\nrecord(metrics, 3)\n",
        GLOBAL + "threading.Thread(target=lambda: time.sleep(3600), daemon=True).start()",
        "metrics = Collector('s', sessions)\nthreading.Thread(target=lambda: record(metrics, 3)).start()",
        "metrics = Collector('s', sessions)\natexit.register(record, metrics, 3)\n",
        "metrics = Collector('s', sessions)\nmetrics.me = metrics\nrecord(metrics, 3)\ndel metrics\n",
        GLOBAL + "import gc; metrics.me = metrics; del metrics; gc.collect()",
        LOCAL + "again = Collector('s', sessions)\n",
        LOCAL + "Collector('s', sessions).stop()\nmain()\nmain()\n" + LOCAL.replace("3", "-6"),
        "def main():\n    record(Collector('s', sessions), 1)\nmain()\nrecord(attach('s', sessions), 2)",
    ],
)
def test_program_that_ends_without_stop_leaves_its_session_merged_and_finished(
    sessions: Path, text: str
) -> None:
    result = run(sessions, text)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert merged(sessions) in (3, 9)
    assert state(sessions) is State.FINISHED
    assert not list((sessions / "s" / "segments").iterdir())
    assert not verify(sessions, "s")


def test_program_that_ends_by_an_exception_has_its_own_traceback_and_status_only(sessions: Path) -> None:
    result = run(sessions, GLOBAL + "raise ValueError('mine')")
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.endswith("ValueError: mine\n")
    assert (merged(sessions), state(sessions)) == (3, State.FINISHED)


def test_daemon_thread_that_flushes_all_the_time_does_no_harm(sessions: Path) -> None:
    flushes = "threading.Thread(target=lambda: [metrics.flush() for _ in iter(int, 1)], daemon=True).start()"
    result = run(sessions, GLOBAL + flushes)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert state(sessions) in {State.FINISHED, State.NOT_CLOSED}  # it may own the session once more, and end
    assert merged(sessions) + compact(sessions, "s").records == 3


# The import for the first merge takes ten seconds, by the clock that the end looks at.
SLOW_IMPORT = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "m31a_mp.metrics.compactor":
            sys.meta_path.remove(self)
            before = time.monotonic
            time.monotonic = lambda: before() + 10

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("slow", ["", SLOW_IMPORT], ids=["quick import", "slow import"])
def test_every_session_of_a_program_is_merged(sessions: Path, slow: str) -> None:
    many = "all = [Collector(str(i), sessions) for i in range(5)]\nfor one in all: record(one, 2)"
    result = run(sessions, many + slow)
    assert (result.returncode, result.stderr) == (0, "")
    assert [merged(sessions, str(i)) for i in range(5)] == [2] * 5
    assert {state(sessions, str(i)) for i in range(5)} == {State.FINISHED}


def test_disabled_collector_ends_without_touching_the_disk(sessions: Path) -> None:
    assert run(sessions, "metrics = Collector('s', sessions, False); record(metrics)").stderr == ""
    assert not sessions.exists()


def test_record_that_comes_later_waits_for_the_next_owner(sessions: Path) -> None:
    text = GLOBAL + "class Late:\n    def __del__(self): record(metrics)\nlate = Late()\n"
    assert run(sessions, text).stderr == ""
    assert merged(sessions) == 3
    assert compact(sessions, "s").records == 1
    assert (merged(sessions), state(sessions)) == (4, State.FINISHED)


# --- Workers that are awaited at the end --------------------------------------------------------------

POOLS = """
def work(recorder, i):
    time.sleep(0.05)
    record(recorder)


def late(recorder, started, ended):
    started.set()
    time.sleep(0.1)  # the parent is about to end
    record(recorder)


def main():
    global metrics, process, executor, threads
    {pools}
"""

PROCESS = """
    context = multiprocessing.get_context({method!r})
    started = context.Event()
    process = context.Process(target=late, args=(metrics, started, None))
    process.start()
    started.wait()
"""

EXECUTOR = """
    executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r}))
    for i in range(4):
        executor.submit(work, metrics, i)
"""

THREADS = """
    executor = ThreadPoolExecutor(2)
    for i in range(4):
        executor.submit(work, metrics, i)
"""


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize(("pools", "expected"), [(PROCESS, 1), (EXECUTOR, 4), (THREADS, 4)])
def test_workers_that_are_awaited_at_the_end_are_merged(
    tmp_path: Path, pools: str, expected: int, method: str, early: bool
) -> None:
    lines = [
        "import multiprocessing, os, sys, time\nimport multiprocessing.util\n",
        "from m31a_mp import Collector\n",
        "def record(recorder):\n    recorder.record_tool_call('bash', True, 1)\n",
        POOLS.format(pools="metrics = Collector('s', sys.argv[1])" + pools.format(method=method)),
        "if __name__ == '__main__':\n    main()\n",
    ]
    executors = "from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor\n"
    if not early:  # what is registered with atexit later is called earlier
        lines[0], lines[1] = lines[1], lines[0]
    (tmp_path / "program.py").write_text("".join([*lines[:2], executors, *lines[2:]]))
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (merged(tmp_path), state(tmp_path)) == (expected, State.FINISHED)


def test_forked_child_that_ends_imports_nothing(sessions: Path) -> None:
    """A thread of its parent may have been in the middle of that import: the child would wait forever."""
    result = run(
        sessions,
        GLOBAL
        + "before = os.getpid()\n"
        + "def find_spec(name, path=None, target=None):\n"
        + "    if os.getpid() != before: os.write(1, name.encode())\n"
        + "sys.meta_path.insert(0, type('Finder', (), {'find_spec': staticmethod(find_spec)}))\n"
        + "if not os.fork():\n    sys.exit()\n"
        + "os.wait()\n",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert merged(sessions) == 3


def test_forked_child_that_ends_leaves_the_session_to_its_parent(sessions: Path) -> None:
    text = GLOBAL + (
        "if not os.fork():\n    record(metrics)\n    sys.exit()\n"
        "os.wait()\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    with under_way(*program(sessions, text)) as process:
        assert (merged(sessions), state(sessions)) == (0, State.RUNNING)
        assert status(Session.named("s", sessions)).unmerged == 4
        process.communicate()
    assert (merged(sessions), state(sessions)) == (4, State.FINISHED)


# --- Sessions that nobody closes ----------------------------------------------------------------------


def test_session_of_a_program_that_was_killed_is_not_closed(sessions: Path) -> None:
    with under_way(*program(sessions, GLOBAL + "print('ready', flush=True)\nsys.stdin.read()\n")) as process:
        process.kill()
        process.wait()
    assert (merged(sessions), state(sessions)) == (0, State.NOT_CLOSED)
    assert compact(sessions, "s").records == 3
    assert state(sessions) is State.FINISHED


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", ["sys.stdin.read()", "[None for _ in sys.stdin]"])
def test_session_whose_collector_is_dropped_is_not_closed_and_anybody_may_own_it(
    sessions: Path, goes_on: str
) -> None:
    text = LOCAL + f"print('ready', flush=True)\n{goes_on}\n"
    with under_way(*program(sessions, text)) as process:
        found = status(Session.named("s", sessions))
        assert found.owner is None
        assert found.unmerged == 3
        with Collector("s", sessions) as collector:
            process.communicate()  # at its end it leaves the session to the owner that there is now
            assert process.returncode == 0
            assert merged(sessions) == 3
            record = collector.record_tool_call
            record("bash", True, 1)
            assert state(sessions) is State.RUNNING
    assert (merged(sessions), state(sessions)) == (4, State.FINISHED)


def test_session_that_another_owner_finished_is_not_written_again(sessions: Path) -> None:
    with under_way(*program(sessions, LOCAL + "print('ready', flush=True)\nsys.stdin.read()\n")) as process:
        Collector("s", sessions).stop()
        before = (sessions / "s" / "metrics.json").stat()
        process.communicate()
    assert (sessions / "s" / "metrics.json").stat() == before


# --- What stands in the way ---------------------------------------------------------------------------

TELLS_WAITS = """
from m31a_mp.journal import append
hold = append.Journal.hold


def noted(self, call, timeout=append.LOCK_SECONDS):
    print(timeout, flush=True)
    return hold(self, call, timeout)


append.Journal.hold = noted
print('ready', flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", [GLOBAL, LOCAL])
def test_held_lock_of_the_journal_holds_up_the_end_for_less_than_a_second(sessions: Path, form: str) -> None:
    with under_way(*program(sessions, form + TELLS_WAITS)) as process:
        lock = os.open(sessions / "s" / "journal.lock", os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)  # and never given back: the program ends all the same
        waits, _ = process.communicate()
        os.close(lock)
    assert process.returncode == 0
    assert 0 < sum(map(float, waits.split())) <= 1
    assert (merged(sessions), state(sessions)) == (0, State.NOT_CLOSED)
    assert compact(sessions, "s").records == 3


@pytest.mark.slow
def test_daemon_thread_that_hangs_in_a_flush_does_not_hold_up_the_end(sessions: Path) -> None:
    text = (
        GLOBAL
        + """
from m31a_mp.metrics import compactor
inside = threading.Event()
def hang(*args, **kwargs):
    inside.set()
    time.sleep(3600)
compactor.compact_session = hang
threading.Thread(target=metrics.flush, daemon=True).start()
inside.wait()
"""
    )
    assert run(sessions, text).returncode == 0
    assert (merged(sessions), state(sessions)) == (0, State.NOT_CLOSED)
    assert compact(sessions, "s").records == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        "ending._UNMERGED_BYTES = 0",
        "ending._METRICS_BYTES = 0",
        "ending._SECONDS = 0",
        "compactor._ENTRY_SECONDS = 1",
    ],
)
@pytest.mark.parametrize("form", [GLOBAL, LOCAL])
def test_more_than_can_be_merged_quickly_is_left_to_the_next_owner(
    sessions: Path, limit: str, form: str
) -> None:
    result = run(
        sessions, f"from m31a_mp import ending\nfrom m31a_mp.metrics import compactor\n{limit}\n{form}"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (merged(sessions), state(sessions)) == (0, State.NOT_CLOSED)
    assert compact(sessions, "s").records == 3
    assert compact(sessions, "s").records == 0


@pytest.mark.slow
def test_backlog_of_many_megabytes_is_left_to_the_next_owner(sessions: Path) -> None:
    collector = "metrics = Collector('s', sessions)\n"
    result = run(sessions, collector + "record(metrics, 300_000)")
    assert (result.returncode, result.stderr) == (0, "")
    assert (merged(sessions), state(sessions)) == (0, State.NOT_CLOSED)
    assert compact(sessions, "s").records == 300_000


def test_fold_that_is_given_up_counts_nothing_and_the_next_one_counts_all(session: Session) -> None:
    recorder = attach(session.id, session.sessions_dir)
    for _ in range(3):
        recorder.record_tool_call("bash", True, 1)
        recorder.flush()
    with pytest.raises(TimeoutError):
        compactor.compact_session(session, lambda: True, time.time_ns(), timeout=0.0)
    assert load(session.sessions_dir, session.id) is None
    assert compact(session.sessions_dir, session.id).records == 3


RAISES = """
from m31a_mp import ending
def fail(*_):
    raise {}
ending.merge = fail
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "then"),
    [
        ("open(f'{sessions}/s/metrics.json', 'w').write('{')", "os.unlink(f'{sessions}/s/metrics.json')"),
        ("import shutil; shutil.rmtree(f'{sessions}/s')", None),
        ("os.rename(f'{sessions}/s', f'{sessions}/t')", None),
        ("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))", ""),
        ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))", ""),
        ("from m31a_mp.metrics import compactor; compactor.compact_session = None", ""),
        (RAISES.format("KeyboardInterrupt"), ""),
        (RAISES.format("SystemExit(3)"), ""),
    ],
)
@pytest.mark.parametrize("form", [GLOBAL, LOCAL])
def test_trouble_at_the_end_is_silent_and_loses_nothing(
    sessions: Path, form: str, trouble: str, then: str | None
) -> None:
    result = run(sessions, form + trouble, is_measured=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    if then is None:
        assert not (sessions / "s").exists()  # nor is it made anew
        return
    exec(then, {"os": os, "sessions": sessions})
    assert state(sessions) is State.NOT_CLOSED
    assert compact(sessions, "s").records == 3


def test_program_that_listens_hears_what_was_not_closed_and_why(sessions: Path) -> None:
    text = "import logging; logging.basicConfig()\nfrom m31a_mp import ending\nending._UNMERGED_BYTES = 0\n"
    assert run(sessions, text + GLOBAL).stderr == (
        "WARNING:m31a_mp:session s was not closed: too many records are not merged yet\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_handler_that_ends_the_program_has_its_session_merged(sessions: Path, number: signal.Signals) -> None:
    text = GLOBAL + (
        f"import signal\nsignal.signal({int(number)}, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    with under_way(*program(sessions, text)) as process:
        process.send_signal(number)
        assert process.wait() == 5
    assert (merged(sessions), state(sessions)) == (3, State.FINISHED)
