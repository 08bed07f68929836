"""How a session is: who owns it, who records into it, what it adds up to. Looks, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import psutil

from m31a_mp.inspection.snapshot import fold_everything
from m31a_mp.journal.batch import count_lines
from m31a_mp.model import SessionMetrics
from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.session.lease import read_owner
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process
from m31a_mp.system.flock import holders, lock_if_free


class State(StrEnum):
    """The state of a session.

    Running: its owner lives, or a process that records into it does. Not closed: nobody does, and the last
    owner did not give it up. Finished: nobody does, and the last owner gave it up.
    """

    RUNNING = "running"
    NOT_CLOSED = "not closed"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Owner:
    """The living owner of a session, as far as it can be told from here.

    Attributes:
        pid: Its process id; None if it cannot be seen, being in a container of its own.
        started_at: When its process started (RFC 3339), or None.
    """

    pid: int | None
    started_at: str | None


@dataclass(frozen=True, slots=True)
class LiveWriter:
    """A writer whose process lives.

    Attributes:
        writer: Its id.
        pid: Its process; None if it cannot be seen from here, being in a container of its own.
        segments: How many files of shared memory it has.
        size: How many bytes they take.
        staged: How many records are in them that the journal has not got.
    """

    writer: str
    pid: int | None
    segments: int
    size: int
    staged: int


@dataclass(frozen=True, slots=True)
class Status:
    """How a session is.

    Attributes:
        directory: Where it is.
        state: What it is doing.
        owner: Who owns it, if somebody does.
        writers: The living writers.
        unmerged: How many records and interrupted calls are not in `metrics.json` yet.
        metrics: What it adds up to now, those included.
    """

    directory: str
    state: State
    owner: Owner | None
    writers: list[LiveWriter]
    unmerged: int
    metrics: SessionMetrics


def status(session: Session) -> Status:
    """Look at a session, without stopping anyone.

    Raises:
        FileNotFoundError: There is no session.
        DamagedMetricsError: `metrics.json` is not valid.
        JournalLockedError: Flushes overtook the look all the time, and the lock could not be had either.
        OSError: A file could not be read.
    """
    session.must_be_there()
    writers = live_writers(session)
    owner = owner_of(session)
    is_running = owner is not None or bool(writers)
    fold = fold_everything(session)
    metrics = fold.totals.to_metrics(session.id)
    state = State.RUNNING if is_running else _state_at_rest(session)
    return Status(session.root, state, owner, writers, fold.records + fold.interrupted, metrics)


def _state_at_rest(session: Session) -> State:
    return State.NOT_CLOSED if read_owner(session.owner_lock) else State.FINISHED


def is_session(session: Session) -> bool:
    """Whether a session can be found there; one that may not be looked into cannot."""
    try:
        return session.is_there()
    except PermissionError:
        return False


def sessions_in(sessions_dir: str | os.PathLike[str]) -> list[Session]:
    """The sessions in a directory, by name.

    Raises:
        OSError: It cannot be listed.
    """
    found = []
    for name in sorted(os.listdir(sessions_dir)):
        try:
            session = Session.named(name, sessions_dir)
        except ValueError:
            continue  # no session can have such a name
        if is_session(session):
            found.append(session)
    return found


def last_used(sessions: Iterable[Session]) -> Session | None:
    """The session that was used last, if there is one: what lives is in use now."""
    return max(sessions, key=_use, default=None)


def owner_of(session: Session) -> Owner | None:
    """The living owner. Nobody who wants to become it has to wait for this look."""
    pids = holders(session.owner_lock)
    # In this order: an owner that stops empties the line before it gives the lock back.
    line = read_owner(session.owner_lock)
    if pids:
        started_at = line.get("started_at") if line.get("pid") == pids[0] else None
        return Owner(pids[0], started_at if isinstance(started_at, str) else None)
    # One that died left its line, too. But one in another pid namespace only looks as if it had died.
    return Owner(None, None) if line and _is_locked(session.owner_lock) else None


def live_writers(session: Session) -> list[LiveWriter]:
    """The writers whose process lives, or may live."""
    writers: dict[str, LiveWriter] = {}
    for path in list_segments(session.segments):
        try:
            with SegmentFile.open(path) as file:
                if file.is_dead():
                    continue
                staged = count_lines(file.pending(is_finished=False).records)
                identity = file.identity  # who its writer is, as it stands in the file
                pid = identity.pid if process.seen_alive(identity) else None
        except (DamagedSegmentError, OSError):
            continue  # gone meanwhile; or damaged, which the metrics count
        known = writers.get(file.writer, LiveWriter(file.writer, pid, 0, 0, 0))
        writers[file.writer] = LiveWriter(
            file.writer, pid, known.segments + 1, known.size + file.size, known.staged + staged
        )
    return list(writers.values())


@dataclass(frozen=True, slots=True)
class Reading:
    """How far this process is in reading the journals of a session, in bytes."""

    done: int
    total: int


def reading(session: Session) -> Reading:
    """How far another thread of this process is in reading the journals, as its open files tell."""
    paths = [path for _, path in session.sealed()] + [session.journal]
    positions = {file.path: int(file.position) for file in psutil.Process().open_files()}
    done = total = 0
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError:
            continue
        if position := positions.get(path, 0):
            done = total + min(position, size)  # they are read in this order
        total += size
    return Reading(done, total)


def _use(session: Session) -> tuple[bool, int]:
    """Whether anything lives in the session, and when a file in it changed last, in ns since the epoch."""
    try:
        # A store into mapped memory does not change the time of its file everywhere: ask for the living.
        is_alive = owner_of(session) is not None or bool(live_writers(session))
        changed = [os.lstat(session.root).st_mtime_ns]
        for directory in (session.root, session.segments):
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                changed += [entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries]
    except OSError:
        return False, 0  # it is not ours to look at, or was removed meanwhile
    return is_alive, max(changed)


def _is_locked(path: str) -> bool:
    try:
        fd = files.open_private(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not lock_if_free(fd)
    finally:
        os.close(fd)
