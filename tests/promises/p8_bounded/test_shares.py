"""What sharing leaves behind does not grow with the number of shares, of deaths, or of sessions."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from m31a_mp import Collector, attach, gather
from m31a_mp.session.paths import Session
from m31a_mp.sharing import keeper
from metrics_of import SESSION, count
from servers import waited_for
from workers import Forked


def temporaries(directory: Path) -> list[Path]:
    return [path for path in directory.rglob(".*.tmp") if ".state." in path.name or "sharing" in path.name]


def test_files_of_sites_that_died_in_a_share_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, sessions = tmp_path / "store", tmp_path / "sessions"

    def share_and_die_before(part: str) -> None:
        replace = os.replace

        def replace_or_die(old: str, new: str) -> None:
            if part in os.path.basename(new):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(old, new)

        monkeypatch.setattr(os, "replace", replace_or_die)
        Collector(SESSION, sessions, share=store).stop()

    for part in (".state", "sharing.", ".state"):
        with Forked(share_and_die_before, part) as child:
            child.wait()
    left = temporaries(tmp_path)
    assert len(left) == 3
    fresh = left.pop()  # perhaps of a process that shares just now
    for path in left:
        os.utime(path, (0, 0))
    Collector(SESSION, sessions, share=store).stop()
    assert temporaries(tmp_path) == [fresh]


@pytest.mark.slow
def test_worker_of_many_sessions_gives_them_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_TRY_SECONDS", 0.02)
    monkeypatch.setattr(keeper, "_IDLE_SECONDS", 0.0)
    before, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for i in range(10):
        with attach(f"s{i}", tmp_path / "sessions", share=tmp_path / "store") as recorder:
            recorder.record_tool_call("bash", True, i)
    waited_for(lambda: list(keeper._keepers) == [Session.named("s9", tmp_path / "sessions")])
    for i in range(10):
        waited_for((tmp_path / "store" / f"s{i}").exists)
        assert count(gather(f"s{i}", tmp_path / "store")) == 1
    recorder.record_tool_call("bash", True, 1)  # this one is still there
    waited_for(lambda: count(gather("s9", tmp_path / "store")) == 2)
    del recorder
    waited_for(lambda: threading.active_count() <= before)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    Collector("s9", tmp_path / "sessions").stop()  # nobody owns it
