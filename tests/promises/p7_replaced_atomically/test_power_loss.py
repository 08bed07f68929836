"""The power fails: what was acknowledged as durable is there at the next boot, once.

A `Disk` knows what a power cut may leave of a directory, at every step of the library. It is told by
fsync alone: what was not fsynced may be there, or not.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from m31a_mp import Collector, Recorder, SessionMetrics, ToolMetric, attach, compact, load, save
from m31a_mp.journal.append import Journal
from m31a_mp.segments.drain import drain
from m31a_mp.segments.reader import list_segments
from m31a_mp.segments.staging import Staging
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from metrics_of import count
from workers import locked

_TOOL = "tool"
pytestmark = pytest.mark.usefixtures("small_segments")

Names = dict[str, int]
"""What stands in a directory: names, and the inodes that they lead to."""

Tree = dict[int, Names]
"""All directories, by their inodes."""

State = frozenset[tuple[str, bytes | None]]
"""All files by their paths, each with its bytes; None for a directory."""


def _synced(synced: bytes, _: bytes, __: bytes) -> bytes:
    return synced


def _zeros(synced: bytes, _: bytes, written: bytes) -> bytes:
    return synced.ljust(len(written), b"\0")


def _before(_: bytes, before: bytes, __: bytes) -> bytes:
    return before


def _written(_: bytes, __: bytes, written: bytes) -> bytes:
    return written


# Of a file there may be what its last fsync found; its new length, too; what stood there before its last
# change; or all that was ever written, for the system writes back what it likes.
_BYTES = (_synced, _zeros, _before, _written)


def _with_changes_forgotten(versions: list[Names]) -> list[Names]:
    """What may be left of a directory, given its versions since its last fsync.

    Each version; the last one without one of the changes; and the first one with one of them only.
    """
    possible = list(versions)
    changes = [_change(before, after) for before, after in itertools.pairwise(versions)]
    for i, change in enumerate(changes):
        possible += [
            _changed(versions[0], [*changes[:i], *changes[i + 1 :]]),
            _changed(versions[0], [change]),
        ]
    return [names for i, names in enumerate(possible) if names not in possible[:i]]


def _change(before: Names, after: Names) -> dict[str, int | None]:
    """The names that lead elsewhere, or nowhere (None)."""
    return {name: after.get(name) for name in before | after if before.get(name) != after.get(name)}


def _changed(names: Names, changes: list[dict[str, int | None]]) -> Names:
    left: dict[str, int | None] = dict(names)
    for change in changes:
        left |= change
    return {name: inode for name, inode in left.items() if inode is not None}


class Disk:
    """What a power cut may leave of the files under a directory; all that is there at first is durable.

    Args:
        root: The directory.
        ordered: Whether changes of names reach the disk in the order in which they were made, and with
            the next fsync of anything, as on ext4 and xfs. Else each directory is for itself, and a change
            of names is durable when its directory was fsynced: before that each change by itself may be
            there or not, whatever became of those before it. Nobody promises more.
    """

    def __init__(self, root: Path, *, ordered: bool) -> None:
        self.acknowledged = self.recorded = 0
        # What may be left, with how many records it must have and how many it may have.
        self.cuts: dict[State, tuple[int, int]] = {}
        self._ordered = ordered
        self._root = root
        self._tree: Tree = {}
        # Of files that are deleted, too: their names may come back.
        self._bytes: dict[int, bytes] = {}
        self._before: dict[int, bytes] = {}
        self._look()
        self._synced = dict(self._bytes)
        self._trees = [self._tree]  # since the last fsync of anything
        self._versions = {inode: [names] for inode, names in self._tree.items()}  # since its last fsync

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Cut the power at every step of the library, and of what the test acknowledges."""
        fsync = os.fsync

        def watched_fsync(fd: int) -> None:
            fsync(fd)
            self._fsynced(os.fstat(fd).st_ino)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", watched_fsync)
            patch.setattr(files, "reached", lambda _: self.cut())
            yield
            self.cut()

    def record(self, recorder: Recorder, count: int = 1, *, is_durable: bool = False) -> None:
        for _ in range(count):
            self.recorded += 1  # it may be on the disk before its call returned
            recorder.record_tool_call(_TOOL, success=True, duration_ms=1)
            if is_durable:
                self.acknowledged = self.recorded
                self.cut()

    def acknowledge(self, function: Callable[[], object]) -> None:
        """Make a call after which everything recorded before is durable."""
        recorded = self.recorded
        function()
        self.acknowledged = recorded
        self.cut()

    def cut(self) -> None:
        """The power may fail now."""
        self._look()
        for state in self._states():
            least, most = self.cuts.get(state, (0, self.recorded))
            self.cuts[state] = max(least, self.acknowledged), min(most, self.recorded)

    def _look(self) -> None:
        self._tree = {}
        waiting = [self._root]
        while waiting:
            directory = waiting.pop()
            # What is in a lock file tells people who holds it.
            entries = [entry for entry in os.scandir(directory) if not entry.name.endswith(".lock")]
            self._tree[directory.stat().st_ino] = {entry.name: entry.inode() for entry in entries}
            for entry in entries:
                if entry.is_dir():
                    waiting.append(Path(entry))
                else:
                    data, inode = Path(entry).read_bytes(), entry.inode()
                    if data != self._bytes.get(inode):
                        self._before[inode] = self._bytes.get(inode, data)
                    self._bytes[inode] = data

    def _fsynced(self, inode: int) -> None:
        self._look()
        if inode in self._tree:
            self._versions[inode] = [self._tree[inode]]
        elif inode in self._bytes:
            self._synced[inode] = self._before[inode] = self._bytes[inode]
        self._trees = [self._tree]

    def _states(self) -> Iterator[State]:
        if self._tree not in self._trees:
            self._trees.append(self._tree)
        for inode, names in self._tree.items():
            versions = self._versions.setdefault(inode, [{}])
            if names not in versions:
                versions.append(names)
        root = self._root.stat().st_ino
        for kept in _BYTES:
            if self._ordered:
                for tree in self._trees:
                    yield from self._left({i: [names] for i, names in tree.items()}, root, "", kept)
            else:
                possible = {inode: _with_changes_forgotten(names) for inode, names in self._versions.items()}
                yield from self._left(possible, root, "", kept)

    def _left(
        self, versions: dict[int, list[Names]], directory: int, path: str, kept: Callable[..., bytes]
    ) -> Iterator[State]:
        for names in versions[directory]:
            parts: list[Iterable[State]] = []
            for name, inode in names.items():
                inner = f"{path}/{name}"
                if inode in versions:
                    parts.append(self._left(versions, inode, inner, kept))
                else:
                    data = kept(self._synced.get(inode, b""), self._before[inode], self._bytes[inode])
                    parts.append([frozenset({(inner, data)})])
            for combination in itertools.product(*parts):
                yield frozenset({(path, None)}).union(*combination)


@pytest.fixture
def boot(all_sessions: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[State], Path]:
    """Makes the directory that the next boot finds; from then on no process of before is alive."""

    def make(state: State) -> Path:
        monkeypatch.setattr(process, "_boot_id", lambda: "the next boot")
        monkeypatch.setattr(process, "_current", None)
        root = all_sessions / uuid.uuid4().hex
        for path, data in sorted(state, key=lambda item: item[0]):
            if data is None:
                Path(f"{root}{path}").mkdir(mode=0o700)
            else:
                Path(f"{root}{path}").write_bytes(data)
        return root

    return make


def assert_every_cut_keeps_what_was_acknowledged(disk: Disk, boot: Callable[[State], Path]) -> None:
    assert len(disk.cuts) > 10
    for state, (least, most) in disk.cuts.items():
        sessions = boot(state) / "sessions"
        load(sessions, "s")  # whole, or not there
        exists = (sessions / "s").exists()
        counted = count(compact(sessions, "s").metrics) if exists else 0
        assert least <= counted <= most, sorted(path for path, _ in state)
        if exists:
            assert count(compact(sessions, "s").metrics) == counted


Scenario = Callable[[Disk, Path], None]


def _flush_after_flush(disk: Disk, sessions: Path) -> None:
    """Segments fill up, are handed over and deleted; flushes; a stop."""
    collector = Collector("s", sessions)
    for _ in range(2):
        disk.record(collector, 14)
        disk.acknowledge(collector.flush)
    disk.record(collector)
    disk.acknowledge(collector.stop)


def _workers_come_and_go(disk: Disk, sessions: Path) -> None:
    """Writers hand over and give back their memory between two flushes; the owner is gone at last."""
    collector = Collector("s", sessions)
    for _ in range(2):
        worker = attach("s", sessions)
        disk.record(worker, 2)
        worker.stop()
        disk.record(worker)
        disk.acknowledge(collector.flush)
    collector.stop()
    disk.record(attach("s", sessions), 2)
    disk.acknowledge(lambda: compact(sessions, "s"))


def _to_the_disk(disk: Disk, sessions: Path) -> None:
    """Every record is fsynced, with flushes in between."""
    collector = Collector("s", sessions, durability="disk")
    for _ in range(2):
        disk.record(collector, 2, is_durable=True)
        disk.acknowledge(collector.flush)
    disk.record(collector, is_durable=True)
    collector.stop()
    disk.record(attach("s", sessions, durability="disk"), 2, is_durable=True)
    disk.acknowledge(Collector("s", sessions).stop)


SCENARIOS = [_flush_after_flush, _workers_come_and_go, _to_the_disk]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("exists", [False, True])
def test_power_cut_on_a_disk_that_keeps_the_order_of_names_loses_and_doubles_nothing(
    scenario: Scenario, exists: bool, sessions: Path, boot: Callable[[State], Path]
) -> None:
    sessions.mkdir(mode=0o700)
    if exists:
        Session.named("s", sessions / "sessions").make()
    disk = Disk(sessions, ordered=True)
    with disk.watched():
        scenario(disk, sessions / "sessions")
    assert_every_cut_keeps_what_was_acknowledged(disk, boot)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_power_cut_on_a_disk_that_keeps_only_what_was_fsynced_loses_and_doubles_nothing(
    scenario: Scenario, sessions: Path, boot: Callable[[State], Path]
) -> None:
    # The directories are there and durable: what becomes of new ones is tested on its own.
    Session.named("s", sessions / "sessions").make()
    disk = Disk(sessions, ordered=False)
    with disk.watched():
        scenario(disk, sessions / "sessions")
    assert_every_cut_keeps_what_was_acknowledged(disk, boot)


# --- directories that are new ---


def _own_and_flush(sessions: Path) -> None:
    collector = Collector("s", sessions)
    collector.record_tool_call(_TOOL, True, 1)
    collector.flush()


def _own_and_stop(sessions: Path) -> None:
    collector = Collector("s", sessions)
    collector.record_tool_call(_TOOL, True, 1)
    collector.stop()


def _save(sessions: Path) -> None:
    save(sessions, "s", SessionMetrics("s", tools=[ToolMetric(_TOOL, call_count=1)]))


def _record_to_the_disk(sessions: Path) -> None:
    attach("s", sessions, durability="disk").record_tool_call(_TOOL, True, 1)


def _own_what_a_worker_made(sessions: Path) -> None:
    attach("s", sessions).record_tool_call(_TOOL, True, 1)
    Collector("s", sessions).flush()


@pytest.mark.parametrize(
    "call", [_own_and_flush, _own_and_stop, _save, _record_to_the_disk, _own_what_a_worker_made]
)
def test_new_directory_is_fsynced_into_those_above_it_before_a_durable_call_returns(
    call: Callable[[Path], None], sessions: Path, boot: Callable[[State], Path]
) -> None:
    sessions.mkdir(mode=0o700)
    disk = Disk(sessions, ordered=False)
    with disk.watched():
        call(sessions / "sessions")
        disk.cuts.clear()
        disk.cut()
    for state in disk.cuts:
        left = boot(state) / "sessions"
        assert (left / "s").exists(), "the session's directory is gone"
        assert compact(left, "s").metrics.tools


# --- the order of steps ---


def test_what_was_set_aside_is_durable_before_its_journal_is_deleted(
    session: Session, boot: Callable[[State], Path]
) -> None:
    collector = Collector("s", session.sessions_dir)
    Path(session.journal).write_bytes(b"garbage\n")
    disk = Disk(Path(session.sessions_dir), ordered=False)
    with disk.watched():
        collector.flush()
    collector.stop()
    assert len(disk.cuts) > 10
    for state in disk.cuts:
        sessions = boot(state)
        compact(sessions, "s")
        rejected = Path(Session.named("s", sessions).rejected)
        assert not rejected.exists() or b"garbage" in rejected.read_bytes()
        garbage_was_read = any(data == b"garbage\n" for _, data in state)
        metrics = load(sessions, "s")
        assert metrics is not None
        assert not (garbage_was_read or metrics.rejected) or rejected.exists()


def test_record_that_the_owner_drains_and_seals_before_its_fsync_is_durable_when_its_call_returns(
    session: Session, boot: Callable[[State], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = attach("s", session.sessions_dir, durability="disk")
    sync = Staging._sync

    def overtaken(stage: Staging) -> None:
        log = Journal(session)
        with locked(session):
            drain(log, list_segments(session.segments))
            assert log.seal(len(session.sealed()) + 1)
        sync(stage)

    disk = Disk(Path(session.sessions_dir), ordered=False)
    with disk.watched(), monkeypatch.context() as patch:
        patch.setattr(Staging, "_sync", overtaken)
        disk.record(recorder, 3, is_durable=True)
    assert len(session.sealed()) == 3
    for state, (least, most) in disk.cuts.items():
        assert least <= count(compact(boot(state), "s").metrics) <= most
