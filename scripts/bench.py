#!/usr/bin/env python3
"""Measure m31a_mp side by side with what a user would pick instead, on the same work, in one run.

    pip install -e '.[bench]' && scripts/bench.py        # half an hour and more
    scripts/bench.py record compaction --rounds 3        # a minute

All that is compared takes turns, each time in a fresh process: what disturbs the machine disturbs everybody.
The garbage collector is on, as in the programs that record. The peers are those of the `bench` extra; one
that is not installed is left out, and the table says so. A target that is missed is a result; the exit
status is 1 if something was counted wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

from benchmarks.peers import MismatchError
from benchmarks.report import Report, Sample, targets_of
from benchmarks.rows import ROWS, Contender

# Nothing takes nearly as long; what does hangs, and is ended.
PATIENCE_SECONDS = 900


class FailedError(Exception):
    """A measurement counted wrong, or did not come to its end."""


class Bench:
    """A run: how much work, how often, where; and what went wrong."""

    def __init__(self, root: Path, rounds: int, *, quick: bool, full: bool) -> None:
        self.full = full or quick
        self.problems: list[str] = []
        self._root = root
        self._rounds = rounds
        self._quick = quick

    def amount(self, normal: int, quick: int) -> int:
        """How much, in a run of this kind."""
        return quick if self._quick else normal

    def take_turns(self, report: Report, contenders: list[Contender]) -> None:
        """A warm-up and the rounds, in each of which everybody has a turn, every time in another order."""
        present = [contender for contender in contenders if is_installed(contender.module)]
        report.missing = [contender.name for contender in contenders if contender not in present]
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in present}
        for i in range(1 if self._quick else 0, self._rounds + 1):
            first = i % len(present)
            for contender in present[first:] + present[:first]:
                _progress(f"{report.name}, {f'round {i}' if i else 'warm-up'}: {contender.name}")
                sample = self.once(report, contender)
                if i and sample:
                    samples[contender.name].append(sample)
        report.samples = {name: of for name, of in samples.items() if of}

    def once(self, report: Report, contender: Contender, root: Path | None = None) -> Sample | None:
        """One measurement, in a fresh process and a fresh directory or a given one; None if it failed."""
        try:
            if root:
                return measure(contender, root)
            with self.directory() as fresh:
                return measure(contender, fresh)
        except FailedError as error:
            self.problems.append(f"{report.name}, {contender.name}: {error}")
            return None

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A directory that goes away."""
        path = Path(tempfile.mkdtemp(dir=self._root))
        try:
            yield path
        finally:
            shutil.rmtree(path)


def measure(contender: Contender, root: Path) -> Sample:
    """Have a fresh process do it, and end whatever that leaves running."""
    function = f"{contender.measure.__module__}:{contender.measure.__name__}"
    what = [function, str(root), json.dumps(contender.arguments)]
    with subprocess.Popen(
        [sys.executable, __file__, "--measure", *what], stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            output, _ = child.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise FailedError(f"took more than {PATIENCE_SECONDS} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode or not output:
        raise FailedError(f"ended with status {child.returncode}")
    sample: Sample = json.loads(output)
    if "problem" in sample:
        raise FailedError(sample["problem"])
    return sample


def measure_here(what: str, root: str, arguments: str) -> None:
    """In the fresh process."""
    try:
        sample: Sample = resolve_name(what)(Path(root), **json.loads(arguments))
    except MismatchError as error:
        sample = {"problem": str(error)}
    print(json.dumps(sample))


def is_installed(module: str) -> bool:
    """Whether it can be imported; it is not."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def versions() -> str:
    """What is compared, on what."""
    parts = [f"Python {platform.python_version()}, {os.cpu_count()} CPUs"]
    for name in ("m31a_mp", "orjson", "filelock", "prometheus_client", "opentelemetry-sdk"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} not installed")
    return ", ".join(parts)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which (default: all): {', '.join(ROWS)}")
    parser.add_argument(
        "--rounds", type=int, help="how many, after a warm-up (default: 7; 1 with --quick, and no warm-up)"
    )
    parser.add_argument("--json", action="store_true", help="print everything that was measured as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="do little: it shows that all of this runs, no more"
    )
    parser.add_argument("--full", action="store_true", help="compact ten times the records as well")
    parser.add_argument("--dir", type=Path, help="where to write (default: where temporary files go)")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "ROOT", "ARGUMENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [row for row in arguments.rows if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    return arguments


def main() -> int:
    """Measure the rows asked for; 0 if all was counted right."""
    arguments = _parse()
    if arguments.measure:
        measure_here(*arguments.measure)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it started ends with it
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    say = (lambda *_: None) if arguments.json else print
    warm_up = "no" if arguments.quick else "a"
    say(f"{versions()}\nmedians of {rounds} rounds after {warm_up} warm-up; the garbage collector is on")
    reports: list[Report] = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.dir) as root:
        bench = Bench(Path(root), rounds, quick=arguments.quick, full=arguments.full)
        for name in arguments.rows or ROWS:
            reports.append(ROWS[name](bench))
            _progress("")
            say(f"\n{reports[-1]}")
    say(f"\n{targets_of(reports)}")
    say("\n  A time is compared by wall and by CPU, round by round; of the two medians the worse one counts.")
    if arguments.json:
        everything = {
            "versions": versions(),
            "rounds": rounds,
            "rows": [report.to_json() for report in reports],
        }
        print(json.dumps({**everything, "problems": bench.problems}, indent=1))
    for problem in bench.problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
