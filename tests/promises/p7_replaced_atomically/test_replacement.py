"""A file is replaced as a whole: the old one or the new one, and the new one durably."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from m31a_mp import Collector, SessionMetrics, load
from m31a_mp.system import files
from metrics_of import SESSION, count
from workers import Counters, Forked


def test_replaced_file_is_written_synced_renamed_and_its_directory_synced(
    tmp_path: Path, durable_calls: list[tuple[str, str]]
) -> None:
    files.replace(str(tmp_path / "file"), b"new")
    assert durable_calls == [
        ("pwrite", ".file.tmp"),
        ("fsync", ".file.tmp"),
        ("replace", ".file.tmp"),
        ("fsync", tmp_path.name),
    ]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_flush_has_synced_file_and_directory_before_the_journal_goes(
    sessions: Path, durable_calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector("s", sessions)
    collector.record_tool_call("bash", True, 1)
    durable_calls.clear()
    unlink = os.unlink

    def watched(path: str) -> None:
        if os.path.basename(path).startswith("journal."):
            durable_calls.append(("unlink", "journal"))
        unlink(path)

    monkeypatch.setattr(os, "unlink", watched)
    collector.flush()
    order = [call for call in durable_calls if call[0] in ("fsync", "replace", "unlink")]
    assert order == [
        ("fsync", "s"),  # the journal's new name, before a metrics.json that counts it
        ("fsync", ".metrics.json.tmp"),
        ("replace", ".metrics.json.tmp"),
        ("fsync", "s"),
        ("unlink", "journal"),
    ]
    collector.stop()


@pytest.mark.parametrize("step", ["write_all", "fsync", "replace"])
def test_replacement_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    files.replace(str(tmp_path / "file"), b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files if step == "write_all" else os, step, fail)
        with pytest.raises(OSError, match="Input/output"):
            files.replace(str(tmp_path / "file"), b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_reader_meets_a_whole_file_with_all_that_was_flushed_before_it_read(tmp_path: Path) -> None:
    numbers = Counters(tmp_path / "numbers", 2)  # flushes that returned; whether the reader has seen enough

    def own() -> None:
        with Collector(SESSION, tmp_path) as collector:
            while not numbers[1]:
                collector.record_tool_call("tool", True, 1)
                collector.flush()
                numbers[0] += 1

    path = tmp_path / SESSION / "metrics.json"
    with Forked(own) as owner:
        numbers.wait_for(0, 1)
        seen: list[int] = []
        while len(set(seen)) < 50:
            flushed = numbers[0]
            metrics = SessionMetrics.from_json(orjson.loads(path.read_bytes()))
            assert count(metrics) >= flushed
            seen.append(count(metrics))
        numbers[1] = 1
        assert owner.wait() == 0
    assert seen == sorted(seen)
    assert count(load(tmp_path, SESSION)) == numbers[0]
