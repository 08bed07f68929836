"""The same workload gives the same numbers, whichever processes share it, and however they are started."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from m31a_mp import Collector, verify
from metrics_of import SESSION, published
from workers import WAYS, Call, Workers, llm_interaction, perform, tool_call


def shares() -> list[tuple[list[Call], list[Call], list[Call]]]:
    """For each of three workers what it records first, what all record at once, and what it records last.

    Keys are first recorded, and durations of phases recorded, in turn: those depend on who was first, or
    last. The rest does not.
    """
    random_number = random.Random(4711)
    phases = ["plan", "execute", "verify", "größe \N{SNOWMAN}"]
    result = []
    for i in range(3):
        first: list[Call] = [
            *(("phase_transition", (phase,)) for phase in phases[i : i + 2]),
            tool_call(f"only {i}", i),
            tool_call("everybody's", i),
            llm_interaction(phases[-i - 1], 10 + i, 0.1),
            ("phase_duration", (phases[i], 100 + i, False)),
        ]
        middle: list[Call] = []
        for n in range(500):
            phase = random_number.choice(phases[:3])
            middle += [
                tool_call(f"only {i}", n),
                tool_call("everybody's", n),
                llm_interaction(phases[-random_number.randint(1, 3)], n, random_number.random() / 7),
                ("phase_transition", (phase,)),
                ("heal_trigger", (phase,)),
                ("bisect_trigger", (phase,)),
            ]
        last: list[Call] = [("phase_duration", ("plan", 1000 + i, True)), ("phase_transition", ("ship",))]
        result.append((first, middle, last))
    return result


def recorded_by_one_process(sessions_dir: Path) -> dict[str, object]:
    with Collector(SESSION, sessions_dir) as collector:
        for step in range(3):
            for share in shares():
                perform(collector, share[step])
    return published(sessions_dir)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_workload_shared_by_three_processes_gives_the_entries_of_one_process(
    way: str, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    team = [started.start(way) for _ in range(3)]
    for worker, (first, _, _) in zip(team, shares(), strict=True):
        worker.do(perform, first)
    for worker, (_, middle, _) in zip(team, shares(), strict=True):
        worker.begin(perform, middle)
    collector.flush()
    for worker in team:
        worker.finish()
    for worker, (_, _, last) in zip(team, shares(), strict=True):
        worker.do(perform, last)
    for worker in team:
        worker.end()
    collector.stop()

    assert published(tmp_path) == recorded_by_one_process(tmp_path / "alone")
    assert verify(tmp_path, SESSION) == []


@pytest.mark.slow
def test_workload_shared_by_processes_of_all_kinds_gives_the_entries_of_one_process(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    team = [started.start(way) for way in ("fork", "spawn", "subprocess")]
    for step in range(3):
        for worker, share in zip(team, shares(), strict=True):
            worker.do(perform, share[step])
            collector.flush()

    assert published(tmp_path) == recorded_by_one_process(tmp_path / "alone")
