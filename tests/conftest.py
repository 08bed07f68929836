"""What several test files share."""

import gc
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from coverage_locks import HandOver, hand_over_in  # before the library
from m31a_mp import Collector
from m31a_mp.journal import append
from m31a_mp.segments import staging, writer
from m31a_mp.session.paths import Session
from m31a_mp.system import process
from metrics_of import SESSION
from servers import BINARIES, Server, server_kind
from workers import Workers, changed, workers_of

settings.register_profile("m31a_mp", deadline=None, print_blob=True)
settings.load_profile("m31a_mp")


def pytest_collection_finish() -> None:
    """What was collected stays: no collection of garbage need visit it, nor copy it into a child."""
    gc.collect()
    gc.freeze()


# Whether an fsync is called is told from the calls; what it costs need not be paid a thousand times.
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session", autouse=True)
def signals_as_usual() -> None:
    """What is run has no signal ignored, which is how a shell starts these tests in the background."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def all_sessions() -> Iterator[Path]:
    """A directory, in memory where that can be had, for sessions of any name."""
    with tempfile.TemporaryDirectory(prefix="m31a_mp.", dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def sessions(all_sessions: Path) -> Path:
    """A directory of sessions that does not exist yet."""
    return all_sessions / uuid.uuid4().hex


@pytest.fixture
def session(sessions: Path) -> Session:
    """The session "s", whose directories are made."""
    made = Session.named(SESSION, sessions)
    made.make()
    return made


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """The owner of the session "s" on a disk."""
    with Collector(SESSION, tmp_path) as owner:
        yield owner


@pytest.fixture
def started(collector: Collector, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers of that session."""
    with workers_of(collector, SESSION, tmp_path) as starter:
        yield starter


@pytest.fixture(autouse=True)
def _nothing_staged() -> Iterator[None]:
    """No session of another test gives its segments back in this one."""
    yield
    staging._active.clear()


@pytest.fixture(scope="session")
def hand_over(tmp_path_factory: pytest.TempPathFactory) -> HandOver | None:
    """Where forked children tell what they have run, if coverage is measured."""
    return hand_over_in(tmp_path_factory.mktemp("lines"))


@pytest.fixture(autouse=True)
def _lines_of_children(hand_over: HandOver | None) -> Iterator[None]:
    yield
    if hand_over:
        hand_over.take()


@pytest.fixture(scope="session", params=BINARIES or ["none"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind, which the tests of a process share."""
    with server_kind(request.param) as made:
        yield made


@pytest.fixture(params=["directory", *(BINARIES or ["none"])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store of each kind."""
    if request.param == "directory":
        yield str(tmp_path / "store")
    else:
        with server_kind(request.param) as made:
            yield made.url


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After a call, what records is no longer staged together with what recorded before it."""
    return lambda: monkeypatch.setattr(staging, "_stagings", {})


@pytest.fixture
def segments_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first records of a process go to a segment, too, and not straight to the journal."""
    monkeypatch.setattr(staging, "STRAIGHT_RECORDS", 0)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is full after a few records."""
    monkeypatch.setattr(writer, "FIRST_SEGMENT_BYTES", 1024)
    monkeypatch.setattr(writer, "MAX_SEGMENT_BYTES", 1024)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are made in the name of a process that is gone; its pid was given to another."""
    gone = changed(process.current(), started=1)
    monkeypatch.setattr(process, "current", lambda: gone)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, of the size that is given as for `mount`."""
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "none", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.fixture
def durable_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The system calls that make things durable, and the files that they were made on, in order."""
    made: list[tuple[str, str]] = []

    def watch(name: str, target: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            made.append((name, target(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    def of_fd(fd: int, *_: object) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    watch("pwrite", of_fd)
    watch("fsync", of_fd)
    watch("replace", lambda source, _: os.path.basename(source))
    watch("rename", lambda source, _: os.path.basename(source))
    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits five seconds for the journal's lock waits for a tenth of one."""
    monkeypatch.setattr(append, "LOCK_SECONDS", 0.1)
