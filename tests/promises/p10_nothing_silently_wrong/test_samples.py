"""Files of earlier states of the library, and of the Go program's shape, are read with the same numbers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
import pytest

from m31a_mp import Collector, PlanOutcome, SessionMetrics, Usage, attach, compact, load, verify
from metrics_of import calls

SAMPLES = Path(__file__).parents[2] / "samples"

# Each owner merged some records and was killed: others are in the journal, with a line of another program and
# half of one, and in segments that it had filled while somebody held the lock.
LEFT_BY_A_KILLED_OWNER = {"bash": 3, "grep": 4, "make": 1, "staged": 20}
EXPECTED = {
    "earliest": LEFT_BY_A_KILLED_OWNER,
    "unmarked-segments": LEFT_BY_A_KILLED_OWNER,  # no word says whether they are finished
    "marked-segments": LEFT_BY_A_KILLED_OWNER,
    "go-later": {"bash": 3},  # the same, as later versions of that program have it
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


def test_what_later_versions_of_the_go_program_have_is_read_kept_and_added_to(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "go-later", tmp_path, dirs_exist_ok=True)
    os.chmod(tmp_path / "session" / "metrics.json", 0o600)
    with Collector("session", tmp_path) as collector:
        collector.record_edit_strategy("search_replace")
        collector.record_heal_outcome("plan", True)
        collector.record_plan_outcome(PlanOutcome("T-3", "edit", "", True, 1))
        collector.record_llm_interaction("plan", Usage(1, 1, 2), None, prompt_hash="f" * 16)
    document = orjson.loads((tmp_path / "session" / "metrics.json").read_bytes())
    before = orjson.loads((SAMPLES / "go-later" / "session" / "metrics.json").read_bytes())
    assert document["edit_strategies"] == [{"strategy": "search_replace", "count": 4}]
    assert document["phases"][0]["heal_success_count"] == 2
    assert document["phases"][0] | {"heal_success_count": 1} == before["phases"][0]
    assert document["startup"] == before["startup"]
    for key in ("completions", "cancellations"):
        assert document[key] == before[key]
        assert document[key.removesuffix("s") + "_count"] == 1
    assert document["plan_outcome_count"] == 3
    first, second, third = document["plan_outcomes"]
    assert (first["timestamp"], second["error_type"]) == ("2026-01-02T02:04:05.123456Z", "timeout")
    assert {key: first[key] for key in first if key != "timestamp"} == {
        key: value for key, value in before["plan_outcomes"][0].items() if key != "timestamp"
    }
    assert "files" not in third
    [llm] = document["llms"]
    assert (llm["prompt_hash"], llm["truncated_input"], llm["unknown_cost_count"]) == (
        "0123456789abcdef", True, 1,
    )  # fmt: skip
