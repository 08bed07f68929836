"""Files of earlier states of the library, and of the Go program's shape, are read with the same numbers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from m31a_mp import SessionMetrics, attach, compact, load, verify

SAMPLES = Path(__file__).parent.parent / "samples"

# Each owner merged some records and was killed: others are in the journal, with a line of another program and
# half of one, and in segments that it had filled while somebody held the lock.
LEFT_BY_A_KILLED_OWNER = {"bash": 3, "grep": 4, "make": 1, "staged": 20}
EXPECTED = {
    "earliest": LEFT_BY_A_KILLED_OWNER,
    "unmarked-segments": LEFT_BY_A_KILLED_OWNER,  # no word says whether they are finished
    "marked-segments": LEFT_BY_A_KILLED_OWNER,
    "go": {"bash": 3},  # written by hand in the shape of the Go program, with keys that are not ours
}


@pytest.fixture(params=sorted(EXPECTED))
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name: str = request.param
    shutil.copytree(SAMPLES / name, tmp_path, dirs_exist_ok=True)
    for directory, _, files in os.walk(tmp_path):
        for file in files:
            os.chmod(os.path.join(directory, file), 0o600)
    return name


def calls(metrics: SessionMetrics) -> dict[str, int]:
    return {tool.name: tool.call_count for tool in metrics.tools}


def assert_is_what_was_recorded(metrics: SessionMetrics, name: str) -> None:
    assert calls(metrics) == EXPECTED[name]
    [bash] = [tool for tool in metrics.tools if tool.name == "bash"]
    assert (bash.success_count, bash.fail_count, bash.total_duration_ms) == (2, 1, 15)
    [llm] = metrics.llms
    assert (llm.prompt_tokens, llm.total_tokens, llm.interaction_count) == (901, 1003, 2)
    assert llm.cost == pytest.approx(0.3)
    [phase] = metrics.phases
    assert (phase.duration_ms, phase.success) == (70, True)
    assert (phase.transition_count, phase.heal_trigger_count, phase.bisect_trigger_count) == (1, 1, 1)
    assert (metrics.dropped, metrics.rejected) == ({}, 0)


def test_every_sample_has_its_numbers_here() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == set(EXPECTED)


def test_sample_is_read_by_looks_and_merged_once(sample: str, tmp_path: Path) -> None:
    before = load(tmp_path, "session")
    assert before is not None
    assert calls(before) == {"bash": 3}
    assert_is_what_was_recorded(attach("session", tmp_path).snapshot(), sample)
    assert verify(tmp_path, "session") == []
    assert_is_what_was_recorded(compact(tmp_path, "session").metrics, sample)
    assert compact(tmp_path, "session").records == 0
    after = load(tmp_path, "session")
    assert after is not None
    assert_is_what_was_recorded(after, sample)
