"""A shell records beside other processes: every line counts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from m31a_mp import Collector, verify
from metrics_of import SESSION, calls, flushed, tools_of
from workers import Counters, Workers, count_past

SHELL_LOOP = """
set -e
cd "$1"
for i in $(seq "$3"); do
    flock journal.lock sh -c 'echo "$1" >> journal.ndjson' sh \
        "{\\"event\\":\\"tool_call\\",\\"name\\":\\"$2\\",\\"success\\":true,\\"duration_ms\\":$i}"
done
"""


@pytest.mark.slow
def test_four_shells_echo_under_flock_beside_recording_workers_and_every_line_counts(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    lines, records = 100, 10_000
    numbers = Counters(tmp_path / "numbers", 3)
    team = [started.start("fork") for _ in range(2)]
    session = str(tmp_path / SESSION)
    shells = [
        subprocess.Popen(["sh", "-c", SHELL_LOOP, "sh", session, f"shell {i}", str(lines)]) for i in range(4)
    ]
    try:
        for i, worker in enumerate(team):
            worker.begin(count_past, f"worker {i}", records, numbers, i)
        while any(shell.poll() is None for shell in shells):
            collector.flush()
        numbers[2] = 1
        for worker in team:
            worker.finish()
    finally:
        for shell in shells:
            shell.kill()
            shell.wait()

    assert [shell.returncode for shell in shells] == [0] * 4
    metrics = flushed(collector, tmp_path)
    tools = tools_of(metrics)
    expected = {f"shell {i}": lines for i in range(4)} | {f"worker {i}": records for i in range(2)}
    assert calls(metrics) == expected
    assert all(tools[f"shell {i}"].total_duration_ms == lines * (lines + 1) // 2 for i in range(4))
    assert verify(tmp_path, SESSION) == []
