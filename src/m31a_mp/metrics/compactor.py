"""Compaction: drain -> seal -> fold -> publish -> delete.

A compaction may be cut short at any step. The next run reads in `metrics.json` which journals, and which
records of each writer, are counted already. Only the holder of the session's lease compacts. Any process may
take a snapshot, which shows what a compaction would publish now.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import ELOOP, ENXIO
from typing import NamedTuple, TypeVar

from m31a_mp.errors import GatheredSessionError, SessionOwnedError
from m31a_mp.journal import reader
from m31a_mp.kinds.catalog import RUNNING
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics import rejected
from m31a_mp.metrics.file import Published
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.interrupted import Callers
from m31a_mp.metrics.rejected import Rejected, shown
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import SessionMetrics
from m31a_mp.segments.drain import Drained, drain, idle_segments
from m31a_mp.segments.reader import delete_stillborn, find_segments
from m31a_mp.segments.staging import staging
from m31a_mp.session.lease import owning, still_owned
from m31a_mp.session.paths import MAX_WAITING, Session, is_file
from m31a_mp.system import files
from m31a_mp.system.flock import is_free

_MAX_NAME_BYTES = 255
# The approximate time to render and write the entry of one name.
_ENTRY_SECONDS = 20e-6

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Compaction:
    """The result of a compaction.

    Attributes:
        metrics: The metrics that are published now.
        records: The number of records that this compaction counted.
        rejected: The input that it set aside in `journal.rejected.ndjson`.
        unreadable: The errors of segments that could not be read. They are left for the next compaction.
        interrupted: The number of calls that this compaction found to be interrupted.
    """

    metrics: SessionMetrics
    records: int
    rejected: list[Rejected]
    unreadable: list[OSError]
    interrupted: int = 0


def compact(sessions_dir: str | os.PathLike[str], session_id: str, *, rebuild: bool = False) -> Compaction:
    """Compact a session that has no owner, for instance to recover after a crash.

    Args:
        sessions_dir: The directory of the sessions.
        session_id: The session's id.
        rebuild: If `metrics.json` is damaged, set it aside and start a new one from the remaining records.
            Records that were merged before are not among them: they are only in the file that was set
            aside, and `rejected` says so.

    Returns:
        The result. `metrics.json` now contains every record of the session, durably.

    Raises:
        FileNotFoundError: The session does not exist.
        SessionOwnedError: The session has a living owner; the error names the process.
        DamagedMetricsError: `metrics.json` is not valid, and `rebuild` is false. Nothing was changed.
        UnsupportedVersionError: A later version wrote `metrics.json`. This is not damage.
        JournalLockedError: Another process held the journal's lock for 5 seconds; the error names it.
        OSError: The disk is full, or fails.

        After any of these errors, the records stay where they are, and the next compaction takes them.
    """
    session = Session.named(session_id, sessions_dir)
    session.must_be_there()
    session.make()
    merged = owning(session, lambda: compact_session(session, lambda: still_owned(session), rebuild=rebuild))
    fold = merged.fold
    metrics = fold.totals.to_metrics(session.id)
    return Compaction(metrics, fold.records, fold.rejected, merged.unreadable, fold.interrupted)


class Merged(NamedTuple):
    """The result of a compaction, for the owner.

    Attributes:
        fold: The fold of the records that this compaction counted.
        published: The totals that are published now.
        unreadable: See `Compaction`.
    """

    fold: Fold
    published: Published
    unreadable: list[OSError]


def compact_session(  # noqa: PLR0913  # most of them by name
    session: Session,
    is_owned: Callable[[], bool],
    started: int | None = None,
    *,
    known: Published | None = None,
    rebuild: bool = False,
    timeout: float | None = None,
) -> Merged:
    """Bring `metrics.json` up to date with all records. The caller holds the session's lease.

    Args:
        session: The session to compact; its directory exists.
        is_owned: Returns whether the caller still holds the lease; called again directly before publishing.
        started: The time, in ns since the epoch, when the owner opened the session; used if `metrics.json`
            has none. None: there is no owner, and the session starts with its first record.
        known: The result of the caller's last compaction, under the same lease; None: read `metrics.json`.
            Without news, the file is then not written again. A file that another process wrote may not be
            durable, and is written in any case.
        rebuild: Whether to start a new `metrics.json` if the current one is damaged.
        timeout: Seconds to wait for the journal's lock, to fold and to publish; None: 5 seconds for the
            lock, and no limit for the rest.

    Raises:
        DamagedMetricsError, JournalLockedError, OSError: See `compact`.
        SessionOwnedError: `owner.lock` was removed meanwhile.
        TimeoutError: The compaction would exceed `timeout`. Nothing is counted; the next one starts again.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    damage = metrics_file.set_aside_if_damaged(session) if rebuild else None
    published = known if known and known.is_current(session) else None
    before = published.totals if published else None if damage else metrics_file.read_totals(session)
    if before and before.sites:
        message = f"{session.metrics} is gathered from sites; record into another session"
        raise GatheredSessionError(message, session.metrics)
    fold = Fold(before or Totals(started))
    if damage:
        fold.reject(damage)
    if not published:
        files.sync_parents(session.root)  # the process that made the directory may have died before its fsync
    while True:
        counted = fold.records
        taken = _take_everything(session, fold, deadline, timeout, is_known=before is not None)
        _check_time(deadline - _publishing_seconds(fold.totals))
        if taken.has_news or taken.damaged or not published:
            if not is_owned():
                raise _not_owned(session)
            rejected.append(session.rejected, fold.rejected)
            published = metrics_file.publish(session, fold.totals)
        _delete(session, fold.totals.journal, taken.damaged)
        if not taken.failure:
            return Merged(fold, published, taken.unreadable)
        if fold.records == counted:
            raise taken.failure
        # Try again: the deleted journal may have filled the disk.


class _Taken:
    """The result of a drain and a fold.

    Attributes:
        has_news: Whether a journal was folded, or an interrupted call was found.
        damaged: The files that are not what their names say, with the paths to move them to.
        unreadable: The errors of segments that could not be read. They are left for the next compaction.
        failure: The error of an append to the journal; None if all records were appended.
    """

    def __init__(self) -> None:
        self.has_news = False
        self.damaged: dict[str, str] = {}
        self.unreadable: list[OSError] = []
        self.failure: OSError | None = None


def _take_everything(
    session: Session, fold: Fold, deadline: float, timeout: float | None, *, is_known: bool
) -> _Taken:
    """Drain, seal and fold all records. Repeat if a process with a running call died meanwhile.

    Args:
        session: The session.
        fold: The fold that takes the records.
        deadline: The latest end, by `time.monotonic()`.
        timeout: Seconds to wait for the journal's lock.
        is_known: Whether `metrics.json` states which journal numbers were used.
    """
    taken, callers = _Taken(), Callers(session)
    while True:
        callers.look(fold.totals)
        # If metrics.json is gone or damaged, the used numbers are unknown. Start at a number beyond all of
        # them: a copy that is restored later would otherwise take a new journal for a counted one.
        above = fold.totals.journal if is_known else max(fold.totals.journal, time.time_ns() // 10**8)
        drained, taken.failure = _drain_and_seal(session, fold.totals.journal, above, timeout)
        # From here on, no process waits for this one: writers append to a new journal.
        taken.damaged |= _reject_damaged(session, fold, drained)
        taken.has_news |= _fold_sealed(session, fold, deadline)
        taken.unreadable = drained.unreadable
        if taken.failure:
            return taken
        if taken.unreadable or not callers.look(fold.totals):
            break
    if not taken.unreadable:  # an unread segment may contain the end of a call, or its beginning
        taken.has_news |= callers.count_interrupted(fold)
        fold.totals.tables[RUNNING.name].forget_ended()
    _forget_gone_writers(session, fold.totals, drained.writers)
    return taken


def _not_owned(session: Session) -> SessionOwnedError:
    path = session.owner_lock
    message = f"{path} was removed, and another process may own the session by now; nothing was published"
    return SessionOwnedError(message, path, None, None)


def _drain_and_seal(
    session: Session, folded: int, above: int, timeout: float | None
) -> tuple[Drained, OSError | None]:
    """Drain and seal under the journal's lock. Return the result of the drain, and the error of an append."""
    journal = staging(session).journal
    idle = idle_segments(session.segments)
    is_sealed = False

    def drain_and_seal() -> tuple[Drained, OSError | None]:
        nonlocal is_sealed
        failure = None
        segments, gone = find_segments(session.segments)
        try:
            drained = drain(journal, segments, idle)
        except OSError as error:
            drained, failure = Drained(), error
        drained.writers |= gone
        numbers = [number for number, _ in session.sealed() if number < folded + MAX_WAITING]
        is_sealed = journal.seal(max([above, *numbers]) + 1)
        files.delete_temporaries(session.root, "journal")
        return drained, failure

    found = journal.hold(drain_and_seal, timeout)
    if is_sealed:
        # Without the fsync, a power cut may undo the rename but keep the metrics.json that counts the
        # journal. Under its old name the journal would be counted again.
        files.sync_directory(session.root)
    return found


def _reject_damaged(session: Session, fold: Fold, drained: Drained) -> dict[str, str]:
    """Reject the files that are not what their names say. Return their paths and the paths to move them to.

    Files of an earlier run, which died before it had moved them, are not rejected a second time.
    """
    damaged = {path: reason for path, reason in drained.damaged if _is_free(path)}
    for number, path in session.sealed():
        if number > fold.totals.journal + MAX_WAITING:
            damaged[path] = "no journal was ever sealed with this number"
        elif not is_file(path):
            damaged[path] = "it is not a regular file"
    places = {path: _place_for(path) for path in damaged}
    names = {shown(session.name_of(path)): path for path in damaged}
    for name, path in names.items():
        if name not in fold.totals.set_aside:
            fold.reject(Rejected(shown(session.name_of(places[path])), 0, damaged[path], b""))
    fold.totals.set_aside = set(names)
    return places


def _place_for(path: str) -> str:
    """Choose a new path for a damaged file, in its directory, under a free and short enough name."""
    place = f"{path}.rejected"
    if len(os.fsencode(os.path.basename(place))) > _MAX_NAME_BYTES or os.path.lexists(place):
        return f"{os.path.dirname(path)}/{os.lstat(path).st_ino}.{time.time_ns()}.rejected"
    return place


def _fold_sealed(session: Session, fold: Fold, deadline: float) -> bool:
    """Fold the sealed journals that are not counted yet. Return whether there were any."""
    before = fold.totals.journal
    for number, path in session.sealed():
        if before < number <= before + MAX_WAITING and is_file(path):
            with reader.open_to_read(path) as stream:
                items = reader.read(stream)
                timed = items if deadline == math.inf else _until(deadline, items)
                fold.add_journal(session.name_of(path), timed)
            fold.totals.journal = number
            files.reached("folded")
    return fold.totals.journal > before


def _until(deadline: float, items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        _check_time(deadline)
        yield item


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("merging the records takes too long")


def _publishing_seconds(totals: Totals) -> float:
    return _ENTRY_SECONDS * totals.count_entries()


def _forget_gone_writers(session: Session, totals: Totals, writers: set[str]) -> None:
    """Forget the marks of writers that have no segment any more."""
    if not totals.writers.keys() <= writers:
        # Make the deletions durable first: the records of a segment that a power cut restores would be
        # counted again.
        files.sync_directory(session.segments)
        totals.keep_writers(writers)


def _delete(session: Session, folded: int, damaged: dict[str, str]) -> None:
    """Delete the journals that `metrics.json` contains now, and move damaged files out of the way."""
    for number, path in session.sealed():
        if number <= folded and path not in damaged:
            with files.step("delete journal"):
                files.delete_if_there(path)
    for path, place in damaged.items():
        with suppress(OSError), files.step("set file aside"):
            os.rename(path, place)
    delete_stillborn(session.segments)


def _is_free(path: str) -> bool:
    """Whether no process maps the segment. A segment of a later version looks damaged, but may be in use."""
    try:
        fd = files.open_private(path, os.O_RDONLY)
    except OSError as error:
        return error.errno in (ELOOP, ENXIO)  # a symlink, a socket
    try:
        return is_free(fd)
    finally:
        os.close(fd)
