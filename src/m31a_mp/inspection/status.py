"""The status of a session: its owner, its writers, its metrics. Nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

from m31a_mp.inspection.snapshot import Looks
from m31a_mp.inspection.unshared import Unshared, unshared
from m31a_mp.model import SessionMetrics
from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.session.lease import read_owner
from m31a_mp.session.paths import Session
from m31a_mp.system import process
from m31a_mp.system.flock import holders, is_locked


class State(StrEnum):
    """The state of a session.

    Running: the owner, a process that merges in its place, or one that has a segment lives. Not closed: none
    of them lives, and the last owner did not release its lease. Finished: none of them lives, and the last
    owner released its lease.

    A process has a segment while it is in a measured call, and after more than a few records.
    """

    RUNNING = "running"
    NOT_CLOSED = "not closed"
    FINISHED = "finished"


class Owner(NamedTuple):
    """The living owner of a session, as far as it is visible from here.

    Attributes:
        pid: The process id; None if the process is invisible because it runs in another container.
        started_at: The start of the process (RFC 3339); None if unknown.
    """

    pid: int | None
    started_at: str | None


class LiveWriter(NamedTuple):
    """A writer whose process lives.

    Attributes:
        writer: The id of the writer.
        pid: The process id; None if the process is invisible because it runs in another container.
        segments: The number of segments.
        size: Bytes of all segments.
        staged: The number of records in the segments that are not in the journal.
    """

    writer: str
    pid: int | None
    segments: int
    size: int
    staged: int


class Status(NamedTuple):
    """The status of a session.

    Attributes:
        directory: The path of the directory.
        state: The state.
        owner: The owner; None without a living one.
        writers: The living writers.
        unmerged: The number of records that are not in `metrics.json` yet.
        interrupted: The number of interrupted calls that are not in `metrics.json` yet.
        metrics: The metrics of all records, unmerged ones included.
        unshared: Why stores do not have the latest state; empty if they have it, or need not.
    """

    directory: str
    state: State
    owner: Owner | None
    writers: list[LiveWriter]
    unmerged: int
    interrupted: int
    metrics: SessionMetrics
    unshared: Sequence[Unshared] = ()


def status(session: Session, looks: Looks | None = None) -> Status:
    """Return the status of a session, without blocking any process.

    Args:
        session: The session.
        looks: The caller's looks at the session, if it looks again and again.

    Raises:
        FileNotFoundError: The session does not exist.
        DamagedMetricsError: `metrics.json` is not valid.
        JournalLockedError: Flushes interfered with every attempt, and the lock was not free either.
        OSError: A file could not be read.
    """
    session.must_be_there()
    writers = live_writers(session, looks)
    owner = owner_of(session)
    is_running = owner is not None or bool(writers)
    unmerged, interrupted, metrics, site = (looks or Looks(session)).look(
        lambda fold: (fold.records, fold.interrupted, fold.totals.to_metrics(session.id), fold.totals.site)
    )
    state = State.RUNNING if is_running else _state_at_rest(session)
    told = unshared(session, site)
    return Status(session.root, state, owner, writers, unmerged, interrupted, metrics, told)


def _state_at_rest(session: Session) -> State:
    return State.NOT_CLOSED if read_owner(session.owner_lock) else State.FINISHED


def is_session(session: Session) -> bool:
    """Whether there is a session. False without permission to read the directory."""
    try:
        return session.is_there()
    except PermissionError:
        return False


def sessions_in(sessions_dir: str | os.PathLike[str]) -> list[Session]:
    """List the sessions in a directory, by name.

    A directory that this user may not enter may be a session. It is listed, too: a look at it says why it
    cannot be read.

    Raises:
        OSError: The directory cannot be listed.
    """
    found = []
    for name in sorted(os.listdir(sessions_dir)):
        try:
            session = Session.named(name, sessions_dir)
        except ValueError:
            continue  # the name is not a valid session id
        try:
            if session.is_there():
                found.append(session)
        except OSError:
            found.append(session)
    return found


def last_used(sessions: Iterable[Session]) -> Session | None:
    """Return the session that was used last; None without sessions. Live sessions come first."""
    return max(sessions, key=_use, default=None)


def owner_of(session: Session, locks: dict[str, list[int]] | None = None) -> Owner | None:
    """Return the living owner, or the process that merges in its place; None without one.

    If its pid is visible, the lock is not touched.

    Args:
        session: The session.
        locks: The locks of the system, for a caller that looks at many sessions; None: read them now.
    """
    return _holder(session.owner_lock, locks) or _holder(session.sharing_lock, locks)


def _holder(path: str, locks: dict[str, list[int]] | None) -> Owner | None:
    pids = holders(path, locks)
    # Read the line after the holders: an owner that stops empties the file before it releases the lock.
    line = read_owner(path)
    if pids:
        started_at = line.get("started_at") if line.get("pid") == pids[0] else None
        return Owner(pids[0], started_at if isinstance(started_at, str) else None)
    # A dead owner leaves its line, too. The lock tells it from a living owner in another pid namespace.
    return Owner(None, None) if line and is_locked(path) else None


def live_writers(session: Session, looks: Looks | None = None) -> list[LiveWriter]:
    """List the writers whose process lives, or may live. What the looks have seen is not read again."""
    seen = looks.staged() if looks else {}
    writers: dict[str, LiveWriter] = {}
    for path in list_segments(session.segments):
        try:
            with SegmentFile.open(path) as file:
                if file.is_dead():
                    continue
                staged = file.count_pending(seen.get(path))
                identity = file.identity
                pid = identity.pid if process.seen_alive(identity) else None
        except (DamagedSegmentError, OSError):
            continue  # gone meanwhile, or damaged; the metrics count damage
        known = writers.get(file.writer, LiveWriter(file.writer, pid, 0, 0, 0))
        writers[file.writer] = LiveWriter(
            file.writer, pid, known.segments + 1, known.size + file.size, known.staged + staged
        )
    return list(writers.values())


class Reading(NamedTuple):
    """The progress of this process in reading the journals of a session, in bytes."""

    done: int
    total: int


def reading(session: Session) -> Reading:
    """Return the progress of another thread in reading the journals, according to the open files."""
    import psutil  # only a progress bar needs it: it takes twice as long as starting Python  # noqa: PLC0415

    paths = [path for _, path in session.sealed()] + [session.journal]
    positions = {file.path: int(file.position) for file in psutil.Process().open_files()}
    done = total = 0
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError:
            continue
        if position := positions.get(path, 0):
            done = total + min(position, size)  # journals are read in this order
        total += size
    return Reading(done, total)


def _use(session: Session) -> tuple[bool, int]:
    """Return whether the session is live, and when a file in it changed last, in ns since the epoch."""
    try:
        # On some file systems, a store into mapped memory does not change the time of the file. Check for
        # live processes, too.
        is_alive = owner_of(session) is not None or bool(live_writers(session))
        changed = [os.lstat(session.root).st_mtime_ns]
        for directory in (session.root, session.segments):
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                changed += [entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries]
    except OSError:
        return False, 0  # not readable, or removed meanwhile
    return is_alive, max(changed)
