"""A journal goes last: when metrics.json has its records, and was replaced durably."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from m31a_mp import Collector, SessionMetrics, attach, compact, load, save
from m31a_mp.session.paths import Session
from metrics_of import count

_TOOL = "tool"
pytestmark = pytest.mark.usefixtures("small_segments")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was done to metrics.json, to directories and to sealed journals, in order."""
    made: list[tuple[str, str]] = []

    def watch(name: str, target: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            of = target(*arguments)
            if of == "s" or "metrics" in of or of.startswith("journal.0"):
                made.append((name, of))
            return result

        monkeypatch.setattr(os, name, call)

    def of_fd(fd: int, *_: object) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def of_path(path: str | Path, *_: object) -> str:
        return os.path.basename(path)

    watch("pwrite", of_fd)
    watch("fsync", of_fd)
    watch("replace", of_path)
    watch("unlink", of_path)
    return made


_PUBLISHED = [
    ("pwrite", ".metrics.json.tmp"),
    ("fsync", ".metrics.json.tmp"),
    ("replace", ".metrics.json.tmp"),
    ("fsync", "s"),
]
_DELETED = ("unlink", "journal.000000000001.ndjson")


def test_journal_is_deleted_last_by_flush_stop_and_compact_and_save_deletes_none(
    session: Session, steps: list[tuple[str, str]]
) -> None:
    sessions = session.sessions_dir

    def done(function: Callable[[], object]) -> list[tuple[str, str]]:
        steps.clear()
        function()
        return [call for call in steps if call != ("unlink", ".metrics.json.tmp")]

    collector = Collector("s", sessions)
    publishing: list[Callable[[], object]] = [
        collector.flush,
        collector.stop,
        partial(compact, sessions, "s"),
    ]
    for number, call in enumerate(publishing, 1):
        attach("s", sessions).record_tool_call(_TOOL, True, 1)
        deleted = (_DELETED[0], Path(session.sealed_as(number)).name)
        assert done(call) == [("fsync", "s"), *_PUBLISHED, deleted]
    assert done(partial(save, sessions, "s", SessionMetrics("s"))) == _PUBLISHED


def test_journal_whose_metrics_json_could_not_be_made_durable_stays(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector("s", session.sessions_dir)
    collector.record_tool_call(_TOOL, True, 1)
    directory = Path(session.root).stat().st_ino
    fsync = os.fsync

    def failing(fd: int) -> None:
        if os.fstat(fd).st_ino == directory:
            raise OSError(5, "Input/output error")
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output"):
            collector.flush()
    assert [number for number, _ in session.sealed()] == [1]
    collector.flush()
    assert session.sealed() == []
    assert count(load(session.sessions_dir, "s")) == 1
    collector.stop()
