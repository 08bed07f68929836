"""Processes that stand still, with the journal's lock or without: nobody waits long, nothing is lost."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from m31a_mp import Collector, JournalLockedError, Recorder, attach, compact, load, verify
from m31a_mp.journal.append import Journal
from metrics_of import SESSION, all_calls
from workers import Forked


@contextmanager
def lock_held_by_a_stopped_process(sessions_dir: Path) -> Iterator[Forked]:
    locked, tell = os.pipe()

    def hold() -> None:
        fd = os.open(sessions_dir / SESSION / "journal.lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(tell, b"x")
        signal.pause()

    try:
        with Forked(hold) as holder:
            os.read(locked, 1)
            holder.stop()
            yield holder
    finally:
        os.close(locked)
        os.close(tell)


@pytest.mark.slow
def test_hundred_thousand_records_while_the_holder_of_the_lock_is_stopped_are_all_counted_later(
    collector: Collector, tmp_path: Path
) -> None:
    collector.record_tool_call("tool", True, 0)
    with lock_held_by_a_stopped_process(tmp_path) as holder:
        for i in range(1, 100_000):
            collector.record_tool_call("tool", True, i)
        assert all_calls(collector.snapshot()) == {"tool": 100_000}
        holder.kill()

    collector.flush()
    metrics = load(tmp_path, SESSION)
    assert all_calls(metrics) == {"tool": 100_000}
    assert metrics is not None
    assert metrics.tools[0].total_duration_ms == 100_000 * 99_999 // 2
    assert verify(tmp_path, SESSION) == []


def test_writers_backlog_made_while_the_lock_was_held_goes_away_when_it_is_free(
    collector: Collector, tmp_path: Path
) -> None:
    segments = tmp_path / SESSION / "segments"
    with lock_held_by_a_stopped_process(tmp_path):
        for i in range(50_000):
            collector.record_tool_call("tool", True, i)
        assert len(list(segments.iterdir())) > 2
    for i in range(20_000):  # more than one segment holds
        collector.record_tool_call("tool", True, i)

    assert len(list(segments.iterdir())) == 1
    collector.flush()
    assert all_calls(load(tmp_path, SESSION)) == {"tool": 70_000}


def flush_as_owner(collector: Collector) -> None:
    collector.flush()


def flush_as_worker(collector: Collector) -> None:
    Recorder.flush(collector)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("flush", [flush_as_owner, flush_as_worker])
@pytest.mark.usefixtures("segments_at_once")
def test_flush_while_the_holder_of_the_lock_is_stopped_says_who_holds_it(
    flush: Callable[[Collector], None], collector: Collector, tmp_path: Path
) -> None:
    collector.record_tool_call("tool", True, 1)
    with lock_held_by_a_stopped_process(tmp_path) as holder:
        for _ in range(2):
            with pytest.raises(JournalLockedError) as raised:
                flush(collector)
            assert raised.value.holders == [holder.pid]
            assert f"pid {holder.pid} (" in str(raised.value)
            assert "stopped" in str(raised.value)
            collector.record_tool_call("tool", True, 1)
        assert all_calls(collector.snapshot()) == {"tool": 3}
        assert all_calls(attach(SESSION, tmp_path).snapshot()) == {"tool": 3}

    flush(collector)
    collector.flush()
    assert all_calls(load(tmp_path, SESSION)) == {"tool": 3}


@pytest.mark.usefixtures("impatient")
def test_compact_while_the_holder_of_the_lock_is_stopped_says_who_holds_it(tmp_path: Path) -> None:
    with Collector(SESSION, tmp_path) as collector:
        collector.record_tool_call("tool", True, 1)
    with Forked(attach(SESSION, tmp_path).record_tool_call, "tool", True, 1) as worker:
        assert worker.wait() == 0
    with lock_held_by_a_stopped_process(tmp_path) as holder:
        with pytest.raises(JournalLockedError) as raised:
            compact(tmp_path, SESSION)
        assert raised.value.holders == [holder.pid]

    assert all_calls(compact(tmp_path, SESSION).metrics) == {"tool": 2}


@pytest.mark.usefixtures("impatient")
def test_stop_while_the_holder_of_the_lock_is_stopped_ends_the_session_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector(SESSION, tmp_path)
    collector.record_tool_call("tool", True, 1)
    with lock_held_by_a_stopped_process(tmp_path) as holder:
        collector.stop()
        assert f"pid {holder.pid} " in caplog.text

    assert all_calls(compact(tmp_path, SESSION).metrics) == {"tool": 1}
    attach(SESSION, tmp_path).stop()


@pytest.mark.usefixtures("impatient")
def test_flush_after_the_stopped_holder_of_the_lock_was_continued_and_ended_succeeds(
    collector: Collector, tmp_path: Path
) -> None:
    collector.record_tool_call("tool", True, 1)
    with lock_held_by_a_stopped_process(tmp_path) as holder:
        with pytest.raises(JournalLockedError):
            collector.flush()
        os.kill(holder.pid, signal.SIGTERM)  # pending while it stands still
        holder.resume()
        assert holder.wait() == -signal.SIGTERM
        collector.flush()
        assert all_calls(load(tmp_path, SESSION)) == {"tool": 1}


@pytest.mark.slow
def test_command_while_the_holder_of_the_lock_is_stopped_waits_half_a_second_and_its_record_counts(
    tmp_path: Path,
) -> None:
    with Collector(SESSION, tmp_path):
        pass
    session = tmp_path / SESSION
    command = [sys.executable, "-m", "m31a_mp", "record", "--session", str(session), "tool", "make"]
    with lock_held_by_a_stopped_process(tmp_path) as holder:
        done = subprocess.run(
            [*command, "--ok", "--duration-ms", "3"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "")
        [line] = done.stderr.splitlines()
        assert line.startswith(f"m31a-mp: records of {session} are not handed over to its journal: ")
        assert f"journal.lock is held by pid {holder.pid} " in line
        assert "; waited 0.5 s. The records stay where they are; " in line
        assert all_calls(attach(SESSION, tmp_path).snapshot()) == {"make": 1}
    assert all_calls(compact(tmp_path, SESSION).metrics) == {"make": 1}


def test_stop_while_the_holder_of_the_lock_is_stopped_waits_for_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, waits = Journal.hold, list[float | None]()

    def noted(journal: Journal, call: Callable[[], object], timeout: float | None = None) -> object:
        waits.append(timeout)
        return hold(journal, call, 0.1)

    collector = Collector(SESSION, tmp_path)
    collector.record_tool_call("tool", True, 1)
    monkeypatch.setattr(Journal, "hold", noted)
    with lock_held_by_a_stopped_process(tmp_path):
        collector.stop()
    assert waits == [None]
    assert all_calls(compact(tmp_path, SESSION).metrics) == {"tool": 1}
