"""A session that is missing is not an empty one: what looks at it says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from m31a_mp import Collector, attach, compact, load, verify
from m31a_mp.inspection.status import status
from m31a_mp.session.paths import Session
from workers import obey_permissions


def no_directory(root: Path) -> None:
    """Leave nothing."""


def empty_directory(root: Path) -> None:
    root.mkdir(parents=True)


def other_directory(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "notes.txt").write_text("of somebody")


@pytest.mark.parametrize("there", [no_directory, empty_directory, other_directory])
class TestNoSession:
    @pytest.mark.parametrize(
        "call", [verify, compact, lambda sessions, name: status(Session.named(name, sessions))]
    )
    def test_what_looks_at_one_raises_and_makes_nothing(
        self, sessions: Path, there: Callable[[Path], None], call: Callable[[Path, str], object]
    ) -> None:
        there(sessions / "s")
        before = sorted(sessions.rglob("*"))
        with pytest.raises(FileNotFoundError, match="there is no session of that name") as error:
            call(sessions, "s")
        assert error.value.filename == str(sessions / "s")
        assert sorted(sessions.rglob("*")) == before
        assert load(sessions, "s") is None

    def test_snapshot_is_empty_and_says_so_once(
        self, sessions: Path, there: Callable[[Path], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        there(sessions / "s")
        recorder = attach("s", sessions)
        for _ in range(3):
            metrics = recorder.snapshot()
            assert (metrics.session_id, metrics.tools, metrics.llms, metrics.phases) == ("s", [], [], [])
        assert caplog.messages == [f"there is no session in {sessions}/s: its snapshot is empty"]


def test_file_in_its_place_is_no_session(sessions: Path) -> None:
    sessions.mkdir()
    (sessions / "s").write_text("of somebody")
    for call in (verify, compact):
        with pytest.raises(FileNotFoundError, match="there is no session of that name"):
            call(sessions, "s")
    with pytest.raises(NotADirectoryError):
        attach("s", sessions).snapshot()


def test_snapshot_of_a_session_without_records_says_nothing(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    assert attach("s", session.sessions_dir).snapshot().tools == []
    with Collector("s", session.sessions_dir) as collector:
        assert collector.snapshot().tools == []
        assert attach("s", session.sessions_dir).snapshot().tools == []
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize(
    "sign", ["metrics.json", "journal.ndjson", "journal.000000000007.ndjson", "segments/x.seg"]
)
def test_anything_of_a_session_is_one(sessions: Path, sign: str) -> None:
    (sessions / "s" / sign).parent.mkdir(parents=True)
    (sessions / "s" / sign).write_bytes(b"{")
    verify(sessions, "s")
    assert compact(sessions, "s", rebuild=True).metrics.session_id == "s"


@pytest.mark.slow
@pytest.mark.parametrize("closed", [".", "s"])
@pytest.mark.parametrize(
    "command", ["show", "watch --count 1", "verify", "compact", "report -o -", "share --once --to none"]
)
def test_session_that_may_not_be_read_is_not_called_missing(
    command: str, closed: str, sessions: Path, tmp_path: Path
) -> None:
    Collector("s", sessions).stop()
    directory = sessions / closed
    directory.chmod(0)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "m31a_mp", *command.split(), sessions / "s"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            preexec_fn=obey_permissions,
        )
    finally:
        directory.chmod(0o700)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(f"m31a-mp: {sessions}/s: Permission denied\nhint: run this as the user")
