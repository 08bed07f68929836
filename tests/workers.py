"""What the tests run in other processes, and how they start, await and end those."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from m31a_mp import Collector, Recorder, SessionOwnedError, Usage, attach
from m31a_mp.segments.staging import Staging
from m31a_mp.session.lease import Lease
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import FileLock
from m31a_mp.system.process import ProcessIdentity

Call = tuple[str, tuple[Any, ...]]
"""The name of a record method without `record_`, and its arguments."""

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


@contextmanager
def locked(session: Session) -> Iterator[None]:
    """Hold `journal.lock` as somebody else would who waits for it."""
    lock = FileLock(session.journal_lock)
    assert lock.acquire(60)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def leased(session: Session) -> Iterator[Lease]:
    """Own the session, as a collector does."""
    lease = Lease.take(session)
    try:
        yield lease
    finally:
        lease.release()


def unmap(stage: Staging) -> None:
    """Do what the kernel does with the memory of a process that dies."""
    for one in stage._writers:
        segment, one._segment = one._segment, None
        if segment:
            segment.close()


class Counters:
    """Numbers that processes share through a file; each is one aligned store."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count
        with path.open("a+b") as file:
            file.truncate(count * 8)
            self._memory = mmap.mmap(file.fileno(), count * 8)
        self._words = memoryview(self._memory).cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value

    def __reduce__(self) -> tuple[object, ...]:
        return Counters, (self._path, self._count)

    def read(self) -> list[int]:
        return list(self._words)

    def wait_for(self, index: int, least: int) -> None:
        """Let others run until the number is there; the test's time limit ends it."""
        while self._words[index] < least:
            os.sched_yield()


def perform(recorder: Recorder, calls: list[Call]) -> None:
    for name, arguments in calls:
        getattr(recorder, f"record_{name}")(*arguments)


def count_up(recorder: Recorder, tool: str, records: int, acknowledged: Counters, index: int) -> None:
    """Record calls of `tool` that take 1, 2, 3 ... ms, and store how many returned after each."""
    for i in range(1, records + 1):
        recorder.record_tool_call(tool, i % 3 != 0, i)
        acknowledged[index] = i


def count_past(recorder: Recorder, tool: str, records: int, numbers: Counters, index: int) -> None:
    """As `count_up`, but the last tenth only after the last of the numbers was set."""
    for i in range(1, records + 1):
        if i == records - records // 10:
            numbers.wait_for(-1, 1)
        recorder.record_tool_call(tool, i % 3 != 0, i)
        numbers[index] = i


def begin(recorder: Recorder, tool: str = "hangs") -> None:
    """Begin a call that this process does not end."""
    recorder.tool_call(tool).__enter__()


def flush(recorder: Recorder) -> None:
    recorder.flush()


def stop(recorder: Recorder) -> None:
    recorder.stop()


def exit_at_once(_: Recorder) -> None:
    os._exit(0)


def own(_: Recorder, session_id: str, sessions_dir: Path) -> None:
    Collector(session_id, sessions_dir).stop()


def refused_ownership(_: Recorder, session_id: str, sessions_dir: Path) -> tuple[int | None, str | None, str]:
    """What a second owner is told: the owner's pid, its start, all in words."""
    try:
        Collector(session_id, sessions_dir).stop()
    except SessionOwnedError as error:
        return error.pid, error.started_at, str(error)
    raise AssertionError("the session could be owned twice")


def serve(address: str, recorder: Recorder) -> None:
    """Do what the test says, one thing after the other, and answer when it is done."""
    with suppress(EOFError, ConnectionResetError, BrokenPipeError), Client(address) as connection:
        while True:
            told = connection.recv()
            if told is None:
                return
            function, arguments = told
            try:
                answer = function(recorder, *arguments)
            except Exception as error:  # the test wants to see it
                answer = error
            connection.send(answer)


class Worker:
    """A process that does what it is told."""

    def __init__(self, process: BaseProcess | subprocess.Popen[bytes], connection: Connection) -> None:
        self._process = process
        self._connection = connection

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def begin(self, function: Callable[..., object], *arguments: object) -> None:
        self._connection.send((function, arguments))

    def finish(self) -> Any:
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def do(self, function: Callable[..., object], *arguments: object) -> Any:
        self.begin(function, *arguments)
        return self.finish()

    def end(self) -> None:
        """Let it return from its main function, and wait until it is gone."""
        with suppress(OSError):
            self._connection.send(None)
        self.wait()

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def wait(self) -> None:
        if isinstance(self._process, BaseProcess):
            self._process.join()
        else:
            self._process.wait()
        self._connection.close()


METHODS = ["fork", "forkserver", "spawn", "subprocess"]
WAYS = ["fork", "forkserver", "spawn", "fork, attach", "spawn, attach", "subprocess", "subprocess, pickle"]
"""How a worker is started, and how it gets its recorder where that is not the usual way."""


class Workers:
    """Starts workers, and ends those that are left."""

    def __init__(self, collector: Recorder, session_id: str, sessions_dir: Path) -> None:
        self._collector = collector
        self._session = (session_id, sessions_dir)
        self._address = f"\0m31a-{os.getpid()}-{os.urandom(4).hex()}"
        self._listener = Listener(self._address)
        self._workers: list[Worker] = []

    def start(self, way: str) -> Worker:
        method, _, recorder = way.partition(", ")
        start = self._start_program if method == "subprocess" else self._start_process
        process = start(method, recorder)
        worker = Worker(process, self._listener.accept())
        self._workers.append(worker)
        return worker

    def _start_process(self, method: str, recorder: str) -> BaseProcess:
        # The collector itself goes over: inherited, or pickled.
        given = attach(*self._session) if recorder == "attach" else self._collector
        context: Any = get_context(method)
        process: BaseProcess = context.Process(target=serve, args=(self._address, given), daemon=True)
        process.start()
        return process

    def _start_program(self, _: str, recorder: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, self._address.replace("\0", "@")]
        if recorder == "pickle":
            command.append(pickle.dumps(self._collector).hex())
        return subprocess.Popen(command, env={**os.environ, **self._collector.env()})

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._listener.close()


@contextmanager
def workers_of(collector: Recorder, session_id: str, sessions_dir: Path) -> Iterator[Workers]:
    workers = Workers(collector, session_id, sessions_dir)
    try:
        yield workers
    finally:
        workers.close()


@contextmanager
def under_way(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A program that is under way: it has said `ready`."""
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


class BoomError(BaseException):
    """What a signal handler raises, as that of Ctrl-C does."""


class Forked:
    """A forked child that runs one function and ends without cleaning up."""

    def __init__(self, work: Callable[..., object], *arguments: object) -> None:
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            # Python swallows what a signal handler raises in such a function, and Hypothesis leaves one.
            gc.callbacks.clear()
            work(*arguments)
            status = 0
        except BaseException:  # it must not get back into the test
            traceback.print_exc()
        finally:
            os._exit(status)

    def wait(self) -> int:
        """Its exit status; minus the number of the signal that killed it."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def stop(self) -> None:
        """Stop it as Ctrl-Z would, and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def obey_permissions() -> None:
    """From the next program on, permissions hold for root, too."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")


def status_of_child(_: Recorder, work: Callable[..., object], *arguments: object) -> int:
    """For a worker: how a child of it ends that does so much."""
    with Forked(work, *arguments) as child:
        return child.wait()


@contextmanager
def small_process() -> Iterator[Worker]:
    """A worker of no session. A fork of it copies less than one of this process, with all tests in memory."""
    address = f"\0m31a-{os.getpid()}-{os.urandom(4).hex()}"
    with Listener(address) as listener:
        command = [sys.executable, __file__, address.replace("\0", "@")]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        worker = Worker(process, listener.accept())
        try:
            yield worker
        finally:
            worker.kill()


def changed(who: ProcessIdentity, **fields: int | str) -> ProcessIdentity:
    """Another process, which has only so much in common with that one."""
    return ProcessIdentity(**{name: getattr(who, name) for name in who.__slots__} | fields)


def tool_call(name: str, i: int) -> Call:
    return "tool_call", (name, i % 3 != 0, i)


def llm_interaction(phase: str, tokens: int, cost: float) -> Call:
    return "llm_interaction", (phase, Usage(tokens, 2 * tokens, 3 * tokens), cost)


def main(address: str, pickled: str = "") -> None:
    recorder = pickle.loads(bytes.fromhex(pickled)) if pickled else Recorder.from_env()
    serve(address.replace("@", "\0"), recorder)


if __name__ == "__main__":
    main(*sys.argv[1:])
