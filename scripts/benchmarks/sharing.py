"""Measurements of sites: sharing in a real server, and gathering from it."""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from benchmarks.measuring import Clock, Sample
from benchmarks.peers import SESSION, MismatchError
from m31a_mp import Collector, StoreError, Usage
from m31a_mp.metrics.file import read_site
from m31a_mp.metrics.site import new_id
from m31a_mp.sharing.gather import Gathering
from m31a_mp.sharing.state import State
from m31a_mp.sharing.store import open_store
from store_server import find_server

TOOLS, MODELS, PHASES = 30, 5, 4
CALLS = 600  # at each site, over ten minutes
_DIFFERENT = 20  # sites with different numbers; the others repeat them


@contextmanager
def _server() -> Iterator[str]:
    """Start a server. Its socket has a short path, as the kernel wants it. Return its URL."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        socket = f"{directory}/server.sock"
        command = [find_server() or "valkey-server", "--port", "0", "--unixsocket", socket, "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=directory) as process:
            try:
                _await_server(process, f"unix://{socket}")
                yield f"unix://{socket}"
            finally:
                process.kill()


def _await_server(process: subprocess.Popen[bytes], url: str) -> None:
    store = open_store(url)
    while True:
        with suppress(StoreError):
            store.sessions()
            store.close()
            return
        if process.poll() is not None:
            raise MismatchError("the server ended")
        time.sleep(0.01)


def _contents(root: Path, sites: int) -> list[bytes]:
    """`metrics.json` of some of so many sites, which differ."""
    found = []
    for number in range(min(_DIFFERENT, sites)):
        chance = random.Random(number)
        with Collector(SESSION, root / str(number)) as collector:
            for i in range(CALLS):
                duration = int(chance.lognormvariate(5, 1))
                collector.record_tool_call(f"tool-{i % TOOLS}", chance.random() < 0.9, duration)
                if i % 5 == 0:
                    tokens, cost, model = (
                        Usage(900, 100, 1000),
                        chance.random() / 100,
                        f"model-{i // 5 % MODELS}",
                    )
                    phase = f"phase-{i % PHASES}"
                    collector.record_llm_interaction(phase, tokens, cost, model=model, duration_ms=duration)
        found.append((root / str(number) / SESSION / "metrics.json").read_bytes())
    return found


def _states(contents: list[bytes], ids: list[str], number: int) -> Iterator[State]:
    """A state of each site. The bytes of a site's `metrics.json` name the site."""
    for i, name in enumerate(ids):
        content = contents[(i + number) % len(contents)]
        site = read_site(orjson.loads(content))
        if site is None:
            raise MismatchError("metrics.json names no site")
        yield State.of(
            site._replace(id=name, number=number), content.replace(site.id.encode(), name.encode())
        )


def share(root: Path, sites: int) -> Sample:
    """Each of so many sites shares once: reads its number, compresses, and puts."""
    contents = _contents(root, sites)
    with _server() as url:
        store = open_store(url)
        ids = [new_id() for _ in range(sites)]
        sizes = [len(state.data()) for state in _states(contents, ids[:_DIFFERENT], 1)]
        clock = Clock()
        for state in _states(contents, ids, 1):
            if store.put(SESSION, state):
                raise MismatchError("a state was refused")
        sample = clock.stop(sites)
        if len(store.headers(SESSION)) != sites:
            raise MismatchError(f"the server has not {sites} states")
    return sample | {"bytes": sum(sizes) / len(sizes)}


def gather(root: Path, sites: int, changed: int) -> Sample:
    """A look at so many sites, of which some changed since the last look."""
    contents = _contents(root, sites)
    with _server() as url:
        store = open_store(url)
        ids = [new_id() for _ in range(sites)]
        for state in _states(contents, ids, 1):
            store.put(SESSION, state)
        gathering = Gathering(SESSION, url)
        if changed < sites:
            gathering.look()
            for state in _states(contents, ids[:changed], 2):
                store.put(SESSION, state)
        clock = Clock()
        metrics = gathering.look()
        sample = clock.stop(1)
        if metrics.totals.tool_calls != sites * CALLS or len(metrics.sites) != sites:
            raise MismatchError(f"{metrics.totals.tool_calls:,} calls of {len(metrics.sites):,} sites")
    return sample


def loads(root: Path, sites: int) -> Sample:
    """`orjson.loads` of the states of all sites, and nothing else."""
    contents = _contents(root, sites)
    states: list[Any] = [contents[i % len(contents)] for i in range(sites)]
    clock = Clock()
    for content in states:
        orjson.loads(content)
    return clock.stop(1)
