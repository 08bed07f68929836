"""A process dies at either side of every durable step; whatever it acknowledged is counted, once."""

import ast
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EIO, ENOSPC
from pathlib import Path

import pytest

import m31a_mp
from crashes import TOOL, Acknowledge, Run, Scenario, cases, record_calls
from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.segments import staging, writer
from m31a_mp.session.paths import Session
from metrics_of import count
from workers import locked

_LINE = b'{"event":"tool_call","name":"%b","success":true,"duration_ms":1}' % TOOL.encode()


def _append_foreign(sessions: Path, data: bytes) -> None:
    with Path(Session.named("s", sessions).journal).open("ab") as journal:
        journal.write(data)


def _whole_life(sessions: Path, acknowledge: Acknowledge) -> None:
    """Segments fill up, with the lock free and held; flush after flush; a worker dies; stop."""
    collector = Collector("s", sessions)
    record_calls(collector, acknowledge, 60)
    collector.flush()
    with locked(Session.named("s", sessions)):
        record_calls(collector, acknowledge, 60)
    record_calls(collector, acknowledge, 1)
    _record_and_die(sessions, acknowledge)
    collector.flush()
    record_calls(collector, acknowledge, 1)
    collector.stop()
    record_calls(collector, acknowledge, 1)


def _straight_to_the_journal(sessions: Path, acknowledge: Acknowledge) -> None:
    """Processes that record little, one behind a torn line; the disk is full once, the lock taken once."""
    collector = Collector("s", sessions)
    record_calls(collector, acknowledge, 2)
    _append_foreign(sessions, _LINE[:-20])
    for _ in range(2):
        _record_and_die(sessions, acknowledge)
    with _writing_short_once():
        record_calls(collector, acknowledge, 1)
    with locked(Session.named("s", sessions)):
        _record_and_die(sessions, acknowledge)
    collector.flush()
    collector.stop()


def _record_and_die(sessions: Path, acknowledge: Acknowledge) -> None:
    if not os.fork():
        record_calls(attach("s", sessions), acknowledge, 3)
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()


@contextmanager
def _writing_short_once() -> Iterator[None]:
    pwrite, shorter = os.pwrite, iter([20])

    def write(fd: int, data: bytes, offset: int) -> int:
        return pwrite(fd, data[: next(shorter, len(data))], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        yield


def _to_the_disk(sessions: Path, acknowledge: Acknowledge) -> None:
    """Every record is fsynced; the journal once had to be written anew."""
    collector = Collector("s", sessions, durability="disk")
    record_calls(collector, acknowledge, 3)
    with _failing_once("fsync", EIO):
        record_calls(collector, acknowledge, 3)
    record_calls(collector, acknowledge, 3)
    collector.stop()


def _failing_disk(sessions: Path, acknowledge: Acknowledge) -> None:
    """There is no room for a large segment, none for the journal, and metrics.json cannot be replaced."""
    staging.STRAIGHT_RECORDS = 0
    collector = Collector("s", sessions)
    record_calls(collector, acknowledge, 1)
    with _failing_once("rename", ENOSPC):
        record_calls(collector, acknowledge, 60)
    with _failing_once("ftruncate", ENOSPC):
        collector.flush()  # what is in the journal is merged first, and makes room
    record_calls(collector, acknowledge, 1)
    with _failing_once("replace", EIO), pytest.raises(OSError, match="injected"):
        collector.flush()
    collector.stop()


@contextmanager
def _failing_once(name: str, error: int) -> Iterator[None]:
    call, failures = getattr(os, name), iter([OSError(error, "injected")])

    def fail_once(*arguments: object) -> object:
        for failure in failures:
            raise failure
        return call(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, fail_once)
        yield


def _torn_tails(sessions: Path, acknowledge: Acknowledge) -> None:
    """Other programs died in the middle of a line, or left out its newline; temporary files are left."""
    collector = Collector("s", sessions)
    _append_foreign(sessions, _LINE[:-20])
    record_calls(collector, acknowledge, 2)
    collector.flush()
    _append_foreign(sessions, _LINE)
    acknowledge()
    record_calls(collector, acknowledge, 2)
    collector.flush()
    session = Session.named("s", sessions)
    (Path(session.root) / ".journal.ndjson.tmp").touch()
    stillborn = Path(session.segments) / ".0123456789abcdef.00000000000000000001.seg.tmp"
    stillborn.touch()
    collector.stop()


def _damage(sessions: Path, acknowledge: Acknowledge) -> None:
    """Garbage in the journal, and a segment that is none."""
    collector = Collector("s", sessions)
    record_calls(collector, acknowledge, 2)
    _append_foreign(sessions, b"garbage\n")
    (Path(Session.named("s", sessions).segments) / "nonsense.seg").write_bytes(b"nonsense")
    collector.flush()
    record_calls(collector, acknowledge, 2)
    collector.stop()


def _rebuilt(sessions: Path, acknowledge: Acknowledge) -> None:
    """metrics.json is damaged when nothing was merged yet, and started anew."""
    Session.named("s", sessions).make()
    record_calls(attach("s", sessions), acknowledge, 3)
    Path(Session.named("s", sessions).metrics).write_bytes(b"garbage")
    compact(sessions, "s", rebuild=True)


def _calls_that_take_time(sessions: Path, acknowledge: Acknowledge) -> None:
    """Calls begin, and end or are interrupted: each that began counts, as the one or the other."""
    collector = Collector("s", sessions)
    with collector.tool_call(TOOL):
        acknowledge()
        collector.flush()
    if not os.fork():
        attach("s", sessions).tool_call(TOOL).__enter__()
        acknowledge()
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    with collector.tool_call(TOOL):
        acknowledge()
        collector.flush()
        collector.flush()
    collector.stop()


CLEAN = [
    _whole_life,
    _straight_to_the_journal,
    _to_the_disk,
    _failing_disk,
    _torn_tails,
    _calls_that_take_time,
]
SCENARIOS = [*CLEAN, _damage, _rebuilt]


@pytest.fixture(autouse=True)
def _segments_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_SEGMENT_BYTES", 1024)
    monkeypatch.setattr(writer, "MAX_SEGMENT_BYTES", 4096)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_death_at_either_side_of_every_step_loses_and_doubles_nothing(
    scenario: Scenario, tmp_path: Path
) -> None:
    for number, (point, nth) in enumerate(list(cases(scenario, tmp_path / "whole"))):
        sessions = tmp_path / str(number)
        run = Run(scenario, sessions, (point, nth))
        assert run.status == -signal.SIGKILL, (point, nth)
        if Session.named("s", sessions).exists():
            compact(sessions, "s", rebuild=True)
        if scenario in CLEAN:
            assert verify(sessions, "s") == [], (point, nth)
        metrics = load(sessions, "s")
        recovered = count(metrics)
        assert metrics is None or metrics.running == [], (point, nth)
        assert run.acknowledged <= recovered <= run.acknowledged + 1, (point, nth)
        _ten_more_come_through(sessions, recovered)


def _ten_more_come_through(sessions: Path, before: int) -> None:
    with Collector("s", sessions) as collector:
        record_calls(collector, lambda: None, 5)
        record_calls(attach("s", sessions), lambda: None, 5)
        collector.flush()
        assert count(load(sessions, "s")) == before + 10
    names = {path.name for path in Path(Session.named("s", sessions).root).iterdir()}
    assert not {name for name in names if name.startswith(("journal.0", ".", "journal.ndjson"))}
    assert not list(Path(Session.named("s", sessions).segments).glob("*.seg"))


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
@pytest.mark.usefixtures("segments_at_once")
def test_death_within_the_store_of_a_record_keeps_all_that_was_acknowledged(
    part: float, tmp_path: Path
) -> None:
    def scenario(sessions: Path, acknowledge: Acknowledge) -> None:
        collector = Collector("s", sessions)
        record_calls(collector, acknowledge, 3)
        [member] = staging.staging(Session.named("s", sessions))._writers
        store = member.store

        def store_and_die(line: bytes) -> int:
            store(line[: int(part * len(line))])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        member.store = store_and_die
        collector.record_tool_call(TOOL, success=True, duration_ms=1)

    run = Run(scenario, tmp_path)
    assert run.status == -signal.SIGKILL
    assert run.acknowledged == 3
    found = compact(tmp_path, "s")
    assert found.records == (3 if part < 1 else 4)
    assert verify(tmp_path, "s") == []
    _ten_more_come_through(tmp_path, found.records)


@pytest.mark.slow
def test_every_step_in_the_code_is_reached_by_a_scenario(tmp_path: Path) -> None:
    reached = {
        point for scenario in SCENARIOS for point in Run(scenario, tmp_path / scenario.__name__).points
    }
    for pattern in _steps_in_the_code():
        for point in (f"before {pattern}", f"after {pattern}"):
            assert any(re.fullmatch(point, name) for name in reached), point


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(Path(m31a_mp.__file__).parent.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def _is_step(item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and ast.unparse(call.func) in ("step", "files.step")


def _steps_in_the_code() -> set[str]:
    """The names of all steps, as patterns: what an f-string fills in may be anything."""
    names = set()
    for _, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.With):
                names |= {_pattern(item.context_expr) for item in node.items if _is_step(item)}
    return names


def _pattern(call: ast.expr) -> str:
    assert isinstance(call, ast.Call)
    name = call.args[0]
    parts = name.values if isinstance(name, ast.JoinedStr) else [name]
    return "".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".+" for p in parts)
