"""A process dies in some step, and the next one in its recovery: what was acknowledged counts once."""

import itertools
import shutil
import signal
from pathlib import Path

import pytest

from crashes import Acknowledge, Run, cases, record_calls
from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.metrics import rejected
from m31a_mp.session.paths import Session
from metrics_of import count

PARTS = 4
"""Into so many tests the deaths are dealt, so that they can run at the same time."""


@pytest.mark.parametrize("name", ["segments/nonsense.seg", "journal.999999999999.ndjson"])
def test_death_before_a_damaged_file_is_put_aside_rejects_it_once(name: str, tmp_path: Path) -> None:
    def scenario(sessions: Path, _: Acknowledge) -> None:
        compact(sessions, "s")

    session = Session.named("s", tmp_path)
    session.make()
    (Path(session.root) / name).touch()
    for _ in range(3):
        assert Run(scenario, tmp_path, ("before set file aside", 1)).status == -signal.SIGKILL
    assert Run(scenario, tmp_path).status == 0
    metrics = load(tmp_path, "s")
    assert metrics
    assert metrics.rejected == 1
    assert len(list(rejected.read(session.rejected))) == 1
    assert len(verify(tmp_path, "s")) == 1
    compact(tmp_path, "s")
    (Path(session.root) / name).touch()
    assert compact(tmp_path, "s").metrics.rejected == 2


def flush_twice(sessions: Path, acknowledge: Acknowledge) -> None:
    collector = Collector("s", sessions)
    for _ in range(2):
        record_calls(collector, acknowledge, 5)
        record_calls(attach("s", sessions), acknowledge, 5)
        collector.flush()


def recover(sessions: Path, _: Acknowledge) -> None:
    if Session.named("s", sessions).exists():
        compact(sessions, "s")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_death_at_every_step_of_a_flush_and_again_at_every_step_of_the_recovery_counts_once(
    part: int, sessions: Path
) -> None:
    deaths = 0
    sessions.mkdir()
    for number, death in enumerate(list(cases(flush_twice, sessions / "whole"))[part::PARTS]):
        left = sessions / str(number)
        left.mkdir()
        run = Run(flush_twice, left, death)
        assert run.status == -signal.SIGKILL
        tries = (shutil.copytree(left, sessions / f"{number}.{i}") for i in itertools.count())
        for again in list(cases(recover, next(tries))):
            once_more = next(tries)
            assert Run(recover, once_more, again).status == -signal.SIGKILL
            recover(once_more, lambda: None)
            assert run.acknowledged <= count(load(once_more, "s")) <= run.acknowledged + 1, (death, again)
            assert verify(once_more, "s") == [], (death, again)
            deaths += 1
    assert deaths > 100 // PARTS
