"""Many processes, one session: exact numbers, whoever starts, ends or dies when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from filelock import FileLock

import workers
from m31a_mp import (
    Collector,
    Recorder,
    SessionMetrics,
    SessionOwnedError,
    ToolMetric,
    WorkflowPhase,
    attach,
    compact,
    verify,
)
from metrics_of import (
    SESSION,
    Look,
    calls,
    calls_of,
    checkpoint_writers,
    flushed,
    loaded,
    looked,
    looked_from_outside,
    published,
    recovered_by_a_new_owner,
    recovered_by_compact,
    segments,
    shown,
    snapshot,
    tools_of,
)
from strategies import bare
from workers import (
    METHODS,
    WAYS,
    Call,
    Counters,
    Forked,
    Workers,
    count_past,
    count_up,
    exit_at_once,
    llm_interaction,
    perform,
    tool_call,
    workers_of,
)

# --- the same numbers, however the processes are started ---


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


def test_workload_shared_by_processes_of_all_kinds_gives_the_entries_of_one_process(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    team = [started.start(way) for way in ("fork", "spawn", "subprocess")]
    for step in range(3):
        for worker, share in zip(team, shares(), strict=True):
            worker.do(perform, share[step])
            collector.flush()

    assert published(tmp_path) == recorded_by_one_process(tmp_path / "alone")


# --- reads what the workers wrote ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "look"),
    [*((method, flushed) for method in METHODS), ("fork", looked), ("fork", looked_from_outside)],
)
def test_each_look_while_eight_processes_record_contains_what_they_had_acknowledged(
    method: str, look: Look, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    records = 10_000
    numbers = Counters(tmp_path / "numbers", 9)  # what each acknowledged; whether to go on
    team = [started.start(method) for _ in range(8)]
    for i, worker in enumerate(team):
        # The last tenth comes when there were ten looks: they cannot all miss the recording.
        worker.begin(count_past, f"tool {i}", records, numbers, i)

    looks = 0
    while True:
        acknowledged = numbers.read()[:8]
        metrics = look(collector, tmp_path)
        counted = [calls_of(metrics, f"tool {i}") for i in range(8)]
        assert all(c >= a for c, a in zip(counted, acknowledged, strict=True)), (counted, acknowledged)
        looks += 1
        numbers[8] = looks >= 10
        if sum(acknowledged) == 8 * records:
            break
    for worker in team:
        worker.finish()

    numbers_of_one = (records, records - records // 3, records // 3, records * (records + 1) // 2)
    for metrics in (collector.snapshot(), flushed(collector, tmp_path)):
        assert {
            tool.name: (tool.call_count, tool.success_count, tool.fail_count, tool.total_duration_ms)
            for tool in metrics.tools
        } == {f"tool {i}": numbers_of_one for i in range(8)}
        assert (metrics.dropped, metrics.rejected) == ({}, 0)
    assert verify(tmp_path, SESSION) == []


def test_flush_by_the_owner_while_the_worker_flushes_too_counts_each_record_once(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    team = [started.start("fork") for _ in range(2)]
    for _ in range(50):
        for i, worker in enumerate(team):
            worker.begin(perform, [tool_call(f"tool {i}", n) for n in range(100)])
        collector.flush()
        for worker in team:
            worker.finish()
            worker.begin(workers.flush)
        collector.flush()
        for worker in team:
            worker.finish()

    assert [tool.call_count for tool in flushed(collector, tmp_path).tools] == [5000, 5000]


def test_flush_whose_listing_met_a_newer_segment_and_missed_the_older_one_loses_nothing(
    started: Workers, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of two files that are made while a large directory is being read, a file system may show the second.
    worker = started.start("fork")
    with FileLock(tmp_path / SESSION / "journal.lock"):
        worker.do(perform, [tool_call("tool", i) for i in range(300)])
    older, newer = (path.name for path in segments(tmp_path))
    real, listings = os.listdir, 0

    def listdir(path: str | Path) -> list[str]:
        nonlocal listings
        names = real(path)
        if newer not in names:
            return names
        listings += 1
        return [name for name in names if name != older or listings > 1]

    monkeypatch.setattr(os, "listdir", listdir)
    collector.flush()
    monkeypatch.undo()
    collector.flush()

    assert listings
    assert calls_of(loaded(tmp_path), "tool") == 300


# --- a shell beside them ---

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


# --- death ---


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_all_acknowledged_records_of_workers_killed_while_recording_are_counted(
    method: str, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    deaths = 5
    moments = random.Random(method)
    numbers = Counters(tmp_path / "numbers", deaths)
    for i in range(deaths):
        worker = started.start(method)
        worker.begin(count_up, f"tool {i}", 10**9, numbers, i)
        numbers.wait_for(i, moments.randint(1, 20_000))
        worker.kill()

    tools = tools_of(flushed(collector, tmp_path))
    for i, acknowledged in enumerate(numbers.read()):
        # The one under way may count, too.
        assert tools[f"tool {i}"].call_count - acknowledged in {0, 1}
        n = tools[f"tool {i}"].call_count
        assert tools[f"tool {i}"].total_duration_ms == n * (n + 1) // 2
    assert segments(tmp_path) == []
    assert verify(tmp_path, SESSION) == []


@pytest.mark.parametrize("method", METHODS)
def test_records_of_a_worker_that_ends_by_os_exit_are_counted(
    method: str, started: Workers, collector: Collector, tmp_path: Path
) -> None:
    worker = started.start(method)
    worker.do(perform, [tool_call("tool", i) for i in range(3)])
    worker.begin(exit_at_once)
    worker.wait()

    assert calls_of(flushed(collector, tmp_path), "tool") == 3
    assert segments(tmp_path) == []


def own_and_record(sessions_dir: Path, numbers: Counters) -> None:
    """Be an owner that flushes now and then."""
    collector = Collector(SESSION, sessions_dir)
    numbers[1] = 1
    for i in range(1, 10**9):
        collector.record_tool_call("owner's", True, i)
        numbers[0] = i
        if i % 1000 == 0:
            collector.flush()


@pytest.mark.parametrize("recovered", [recovered_by_a_new_owner, recovered_by_compact])
def test_owner_killed_while_it_records_and_flushes_then_recovery_counts_all_and_goes_on(
    recovered: Callable[[Path], SessionMetrics], tmp_path: Path
) -> None:
    moments = random.Random(31)
    total, started_at = 0, None
    for _ in range(8):
        numbers = Counters(tmp_path / f"numbers{total}", 2)
        with Forked(own_and_record, tmp_path, numbers) as owner:
            numbers.wait_for(0, moments.randint(1, 8_000))
            owner.kill()
        assert numbers[1] == 1

        metrics = recovered(tmp_path)
        counted = calls_of(metrics, "owner's")
        assert counted - total - numbers[0] in {0, 1}
        assert started_at in {None, metrics.started_at}
        total, started_at = counted, metrics.started_at
        assert segments(tmp_path) == []
        assert verify(tmp_path, SESSION) == []


def record_from_a_child(sessions_dir: Path, times: list[datetime]) -> None:
    """A worker records twice and ends; between what times is noted."""

    def work() -> None:
        recorder = attach(SESSION, sessions_dir)
        recorder.record_tool_call("bash", True, 1)
        recorder.record_phase_duration("plan", 1, True)

    times.append(datetime.now(UTC))
    with Forked(work) as child:
        assert child.wait() == 0
    times.append(datetime.now(UTC))


@pytest.mark.parametrize("seen", [snapshot, shown, recovered_by_a_new_owner, recovered_by_compact])
def test_session_that_only_workers_wrote_to_lasts_from_their_first_to_their_last_record(
    seen: Callable[[Path], SessionMetrics], tmp_path: Path
) -> None:
    times: list[datetime] = []
    for _ in range(2):
        record_from_a_child(tmp_path, times)
        metrics = seen(tmp_path)
        assert times[0] <= metrics.started_at <= times[1]
        assert times[-2] <= metrics.updated_at <= times[-1]


def test_session_that_is_resumed_goes_on_from_its_beginning_to_its_last_record(tmp_path: Path) -> None:
    times: list[datetime] = []
    record_from_a_child(tmp_path, times)
    for _ in range(2):
        Collector(SESSION, tmp_path).stop()
        metrics = loaded(tmp_path)
        assert times[0] <= metrics.started_at <= times[1]
        assert times[-2] <= metrics.updated_at <= times[-1]
        record_from_a_child(tmp_path, times)
        assert compact(tmp_path, SESSION).metrics.started_at == metrics.started_at


def test_session_of_an_owner_starts_with_it_and_ends_with_the_last_record(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with Collector(SESSION, tmp_path) as collector:
        opened = datetime.now(UTC)
        empty = collector.snapshot()
        times: list[datetime] = []
        record_from_a_child(tmp_path, times)
        collector.flush()
        metrics = collector.snapshot()
    assert before <= metrics.started_at == empty.started_at == empty.updated_at <= opened
    assert times[0] <= metrics.updated_at <= times[1]
    assert loaded(tmp_path).updated_at == metrics.updated_at


def test_workers_that_outlive_their_killed_owner_are_counted_by_the_next_one(tmp_path: Path) -> None:
    numbers = Counters(tmp_path / "numbers", 5)
    with (
        workers_of(attach(SESSION, tmp_path), SESSION, tmp_path) as started,
        Forked(own_and_record, tmp_path, numbers) as owner,
    ):
        numbers.wait_for(1, 1)
        team = [started.start("fork, attach") for _ in range(2)]
        for i, worker in enumerate(team):
            worker.begin(count_past, f"tool {i}", 10_000, numbers, i + 2)
        numbers.wait_for(2, 1000)
        owner.kill()

        with Collector(SESSION, tmp_path) as collector:
            numbers[4] = 1
            for worker in team:
                worker.finish()
            metrics = collector.snapshot()
            assert [calls_of(metrics, f"tool {i}") for i in range(2)] == [10_000, 10_000]
            assert calls_of(metrics, "owner's") - numbers[0] in {0, 1}
    assert verify(tmp_path, SESSION) == []


# --- what is left ---


def test_flush_deletes_the_segments_of_the_dead_and_keeps_those_of_the_living(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    living, ended, killed = (started.start("fork") for _ in range(3))
    living.do(perform, [tool_call("tool", 1)])
    of_the_living = segments(tmp_path)
    for worker in (ended, killed):
        worker.do(perform, [tool_call("tool", 1)])
    collector.flush()
    assert len(segments(tmp_path)) == 3
    assert len(checkpoint_writers(tmp_path)) == 3

    ended.end()
    killed.kill()
    living.do(perform, [tool_call("tool", 1)])
    collector.flush()

    assert segments(tmp_path) == of_the_living
    assert {f"{writer}.{1:020d}.seg" for writer in checkpoint_writers(tmp_path)} == {
        path.name for path in of_the_living
    }
    living.do(perform, [tool_call("tool", 1)])
    assert calls_of(flushed(collector, tmp_path), "tool") == 5


@pytest.mark.slow
def test_hundred_short_lived_writers_leave_nothing_behind(collector: Collector, tmp_path: Path) -> None:
    for i in range(100):
        with Forked(collector.record_tool_call, "tool", True, i) as writer:
            assert writer.wait() == 0
        if i % 100 == 50:
            collector.flush()
    size = len(orjson.dumps(published(tmp_path)))
    collector.flush()

    assert calls_of(loaded(tmp_path), "tool") == 100
    assert segments(tmp_path) == []
    assert checkpoint_writers(tmp_path) == set()
    assert os.listdir(tmp_path / SESSION / "segments") == []
    assert set(os.listdir(tmp_path / SESSION)) == {"metrics.json", "journal.lock", "owner.lock", "segments"}
    assert len(orjson.dumps(published(tmp_path))) <= size + 80  # a few more digits, and buckets


@pytest.mark.slow
def test_hundred_writers_killed_unseen_are_all_counted_and_deleted_by_one_flush(
    collector: Collector, tmp_path: Path
) -> None:
    def record_and_die(i: int) -> None:
        collector.record_tool_call("tool", True, i)
        os.kill(os.getpid(), signal.SIGKILL)

    for i in range(100):
        with Forked(record_and_die, i) as writer:
            assert writer.wait() == -signal.SIGKILL
    assert len(segments(tmp_path)) == 100
    collector.flush()

    tool = tools_of(loaded(tmp_path))["tool"]
    assert (tool.call_count, tool.total_duration_ms) == (100, 100 * 99 // 2)
    assert segments(tmp_path) == []
    assert checkpoint_writers(tmp_path) == set()


# --- one owner ---


def assert_names_owner(error: SessionOwnedError, pid: int) -> None:
    assert error.pid == pid
    assert error.started_at is not None
    assert f"pid {pid} " in str(error)
    assert error.started_at in str(error)


def test_second_owner_in_the_same_process_is_told_which_process_owns_the_session(
    collector: Collector, tmp_path: Path
) -> None:
    with pytest.raises(SessionOwnedError) as raised:
        Collector(SESSION, tmp_path)
    assert_names_owner(raised.value, os.getpid())
    with pytest.raises(SessionOwnedError) as raised:
        compact(tmp_path, SESSION)
    assert_names_owner(raised.value, os.getpid())
    collector.record_tool_call("tool", True, 1)
    assert calls_of(flushed(collector, tmp_path), "tool") == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_second_owner_in_another_process_is_told_which_process_owns_the_session(
    method: str, started: Workers, tmp_path: Path
) -> None:
    worker = started.start(method)
    told = worker.do(workers.refused_ownership, SESSION, tmp_path)

    pid, started_at, message = told
    assert pid == os.getpid()
    assert f"pid {pid} " in message
    assert started_at in message


def test_session_given_back_by_stop_can_be_owned_by_another_process_at_once(
    started: Workers, collector: Collector, tmp_path: Path
) -> None:
    worker = started.start("fork")
    collector.record_tool_call("tool", True, 1)
    collector.stop()
    worker.do(workers.own, SESSION, tmp_path)

    with Collector(SESSION, tmp_path) as after:
        assert calls_of(after.snapshot(), "tool") == 1


# --- forked children of the owner ---


def own_with_a_child_that_lives_on(sessions_dir: Path, numbers: Counters, hold: int) -> None:
    collector = Collector(SESSION, sessions_dir)
    collector.record_tool_call("owner's", True, 1)
    pid = os.fork()
    if pid:
        numbers[0] = pid
        signal.pause()
    collector.record_tool_call("child's", True, 1)
    numbers[1] = 1
    os.read(hold, 1)
    collector.record_tool_call("child's", True, 2)
    numbers[1] = 2
    os.read(hold, 1)
    os._exit(0)


def test_owner_killed_while_its_forked_child_lives_is_succeeded_at_once(tmp_path: Path) -> None:
    numbers = Counters(tmp_path / "numbers", 2)
    hold, release = os.pipe()
    with Forked(own_with_a_child_that_lives_on, tmp_path, numbers, hold) as owner:
        try:
            numbers.wait_for(1, 1)
            numbers.wait_for(0, 1)
            owner.kill()

            with Collector(SESSION, tmp_path) as successor:
                os.kill(numbers[0], 0)  # the child lives
                assert [calls_of(successor.snapshot(), n) for n in ("owner's", "child's")] == [1, 1]
                os.write(release, b"x")
                numbers.wait_for(1, 2)
                successor.flush()
                assert [calls_of(loaded(tmp_path), n) for n in ("owner's", "child's")] == [1, 2]
                assert len(segments(tmp_path)) == 1  # the child's, whose writer lives
        finally:
            if numbers[0]:
                os.kill(numbers[0], signal.SIGKILL)
            os.close(hold)
            os.close(release)


def test_collector_in_a_forked_child_records_as_a_worker_and_does_not_end_the_session(
    collector: Collector, tmp_path: Path
) -> None:
    collector.record_tool_call("tool", True, 1)

    def use_it_all() -> None:
        assert collector.enabled
        collector.record_tool_call("tool", True, 10)
        collector.flush()
        assert calls_of(collector.snapshot(), "tool") == 2
        collector.record_tool_call("tool", True, 100)
        collector.stop()
        collector.record_tool_call("tool", True, 1000)
        collector.stop()

    with Forked(use_it_all) as child:
        assert child.wait() == 0
    with pytest.raises(SessionOwnedError) as raised:
        Collector(SESSION, tmp_path)
    assert raised.value.pid == os.getpid()
    collector.record_phase_transition(WorkflowPhase.SHIP)
    metrics = flushed(collector, tmp_path)
    assert bare(metrics.tools) == [ToolMetric("tool", 4, 4, 0, 1111, 1111 / 4)]
    assert metrics.phases[0].transition_count == 1
    assert segments(tmp_path) != []  # the owner's own, in use
    assert len(checkpoint_writers(tmp_path)) == 1


def test_flush_and_stop_of_a_forked_child_leave_the_publishing_to_the_owner(
    collector: Collector, tmp_path: Path
) -> None:
    def hand_over() -> None:
        collector.record_tool_call("tool", True, 1)
        collector.flush()
        collector.stop()

    with Forked(hand_over) as child:
        assert child.wait() == 0

    assert loaded(tmp_path).tools == []
    assert calls_of(flushed(collector, tmp_path), "tool") == 1


def test_recorder_made_before_the_fork_records_in_parent_child_and_grandchild(tmp_path: Path) -> None:
    recorder: Recorder = attach(SESSION, tmp_path)
    recorder.record_tool_call("tool", True, 1)

    def have_a_child() -> None:
        recorder.record_tool_call("tool", True, 10)
        with Forked(recorder.record_tool_call, "tool", True, 100) as grandchild:
            assert grandchild.wait() == 0
        recorder.record_tool_call("tool", True, 1000)

    with Forked(have_a_child) as child:
        assert child.wait() == 0
    recorder.record_tool_call("tool", True, 10_000)

    compact(tmp_path, SESSION)
    tool = tools_of(loaded(tmp_path))["tool"]
    assert (tool.call_count, tool.total_duration_ms) == (5, 11_111)
    recorder.stop()
