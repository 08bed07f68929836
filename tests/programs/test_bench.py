"""That scripts/bench.py runs, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_scripts import SCRIPTS, UNMEASURED

ROWS = ["record", "measured", "tail", "scaling", "compaction", "snapshot", "dead", "backlog", "import"]
ROWS += ["worker", "start", "sites"]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "bench.py"), *arguments],
        env={**UNMEASURED, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_bench_measures_a_row(tmp_path: Path, row: str) -> None:
    done = bench("--quick", "--json", "--dir", str(tmp_path), row)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    (measured,) = result["rows"]
    assert measured["name"] == row
    assert any(name.startswith("m31a_mp") for name in measured["medians"])
    assert measured["targets"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bench_names_the_peers_that_are_not_installed(tmp_path: Path) -> None:
    done = bench("--quick", "--dir", str(tmp_path), "import")
    assert done.returncode == 0
    for name in ("prometheus_client", "opentelemetry"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  {name}")]
        assert ("not installed" in line) == (find_spec(name) is None)


@pytest.mark.slow
def test_bench_with_a_wrong_count_says_so_and_fails(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import m31a_mp\nm31a_mp.load = lambda *_: None\n")
    done = bench("--quick", "measured", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "WRONG: measured, record_tool_call(): m31a_mp counted {}, recorded were " in done.stderr


def test_bench_with_an_unknown_row_lists_the_rows() -> None:
    done = bench("fast")
    assert done.returncode == 2
    assert all(row in done.stderr for row in ROWS)
