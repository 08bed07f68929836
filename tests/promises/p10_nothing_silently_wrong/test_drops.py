"""Records that found no room are told, by whatever looks first."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from m31a_mp import (
    Collector,
)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


@pytest.mark.parametrize("small_disk", ["size=1m"], indirect=True)
def test_worker_that_dropped_records_tells_it_when_it_ends(small_disk: Path) -> None:
    program = f"""
import os, sys
from m31a_mp import attach
recorder = attach("s", {str(small_disk)!r})
recorder.record_tool_call("tool", True, 1)
os.unlink({str(small_disk / "filler")!r})
"""
    with Collector("s", small_disk) as collector:
        fill(small_disk)
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        assert collector.snapshot().dropped == {"no_space": 1}


@pytest.mark.parametrize("small_disk", ["size=1m"], indirect=True)
def test_snapshot_tells_what_its_own_process_dropped_before_any_file_says_it(small_disk: Path) -> None:
    with Collector("s", small_disk) as collector:
        fill(small_disk)
        for _ in range(7):
            collector.record_tool_call("tool", True, 1)
        assert collector.snapshot().dropped == {"no_space": 7}
        (small_disk / "filler").unlink()
        collector.flush()
        assert collector.snapshot().dropped == {"no_space": 7}
