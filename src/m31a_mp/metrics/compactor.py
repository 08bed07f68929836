"""Compaction: drain -> seal -> fold -> publish -> delete.

The steps may be cut short anywhere: run again, they find in `metrics.json` which journals, and which
records of each writer, are counted already. Only the holder of the session's lease compacts. Anyone may
look: what he sees is what a compaction would publish now.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ELOOP, ENXIO
from typing import TypeVar

from m31a_mp.errors import SessionOwnedError
from m31a_mp.journal import reader
from m31a_mp.kinds.catalog import RUNNING
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics import rejected
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.interrupted import Callers
from m31a_mp.metrics.rejected import Rejected, shown
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import SessionMetrics
from m31a_mp.segments.drain import Drained, drain
from m31a_mp.segments.reader import delete_stillborn, find_segments
from m31a_mp.segments.staging import staging
from m31a_mp.session.lease import owning, still_owned
from m31a_mp.session.paths import MAX_WAITING, Session, is_file
from m31a_mp.system import files
from m31a_mp.system.flock import lock_if_free

_MAX_NAME_BYTES = 255
# To render a name's entry and write it takes about so long.
_ENTRY_SECONDS = 20e-6

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Compaction:
    """The result of a compaction.

    Attributes:
        metrics: What is published now.
        records: How many records it counted that were not counted before.
        rejected: What it set aside in `journal.rejected.ndjson`.
        unreadable: Why segments could not be read, which were left for the next time.
    """

    metrics: SessionMetrics
    records: int
    rejected: list[Rejected]
    unreadable: list[OSError]


def compact(sessions_dir: str | os.PathLike[str], session_id: str, *, rebuild: bool = False) -> Compaction:
    """Do what the owner of a session would do, when there is none: recover after a crash.

    Args:
        sessions_dir: The directory of the sessions.
        session_id: The session's id.
        rebuild: If `metrics.json` is damaged, set it aside and start a new one from the records that are
            still there. What had been merged before is not among them: it is only in the file that was
            set aside, and `rejected` says so.

    Returns:
        What was found; `metrics.json` contains every record of the session now, durably.

    Raises:
        FileNotFoundError: There is no such session.
        SessionOwnedError: Its owner lives; says which process it is.
        DamagedMetricsError: `metrics.json` is not valid, and `rebuild` is false; nothing was touched.
        UnsupportedVersionError: A later version wrote `metrics.json`, which is not damage.
        JournalLockedError: Another process held the journal's lock for 5 seconds; says which.
        OSError: The disk is full, or fails.

        In all cases the records stay where they are, for the next compaction that succeeds.
    """
    session = Session.named(session_id, sessions_dir)
    session.must_be_there()
    session.make()
    return owning(session, lambda: compact_session(session, lambda: still_owned(session), rebuild=rebuild))


def compact_session(  # noqa: PLR0913  # most of them by name
    session: Session,
    is_owned: Callable[[], bool],
    started: int | None = None,
    *,
    is_durable: bool = False,
    rebuild: bool = False,
    timeout: float | None = None,
) -> Compaction:
    """Bring `metrics.json` up to date with everything recorded. The caller holds the session's lease.

    Args:
        session: What to compact; its directory exists.
        is_owned: Whether the caller still holds the lease: asked again right before publishing.
        started: When its owner opened the session, in ns since the epoch, if `metrics.json` does not say.
            None: there is no owner, and the session starts with its first record.
        is_durable: The caller knows that `metrics.json` as it is survives a power cut, so that it need
            not be written when there is no news. One that another process wrote may not.
        rebuild: Start anew if `metrics.json` is damaged.
        timeout: Seconds to wait for the journal's lock, to fold and to publish; None: 5 for the lock, and as
            long as the rest takes.

    Raises:
        DamagedMetricsError, JournalLockedError, OSError: As `compact`.
        SessionOwnedError: Somebody removed `owner.lock` meanwhile.
        TimeoutError: It was given up, for it would take longer. Nothing is counted; the next one begins anew.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    damage = metrics_file.set_aside_if_damaged(session) if rebuild else None
    published = None if damage else metrics_file.read_totals(session)
    fold = Fold(published or Totals(started))
    if damage:
        fold.reject(damage)
    if not is_durable:
        files.sync_parents(session.root)  # the process that made it may have been killed right after
    while True:
        counted = fold.records
        taken = _take_everything(session, fold, deadline, timeout, is_known=published is not None)
        _check_time(deadline - _publishing_seconds(fold.totals))
        if taken.has_news or taken.damaged or published is None or not is_durable:
            if not is_owned():
                raise _not_owned(session)
            rejected.append(session.rejected, fold.rejected)
            metrics_file.publish(session, fold.totals)
        _delete(session, fold.totals.journal, taken.damaged)
        if not taken.failure:
            metrics = fold.totals.to_metrics(session.id)
            return Compaction(metrics, fold.records, fold.rejected, taken.unreadable)
        if fold.records == counted:
            raise taken.failure
        # Once more: the journal that is gone now may have been what filled the disk.


@dataclass
class _Taken:
    """The result of a drain and a fold.

    Attributes:
        has_news: Whether a journal was folded, or a call found to be interrupted.
        damaged: The files that are not what their names say, and where they are to be put.
        unreadable: Why segments could not be read, which were left for the next time.
        failure: Why the journal did not take everything, if it did not.
    """

    has_news: bool = False
    damaged: dict[str, str] = field(default_factory=dict)
    unreadable: list[OSError] = field(default_factory=list)
    failure: OSError | None = None


def _take_everything(
    session: Session, fold: Fold, deadline: float, timeout: float | None, *, is_known: bool
) -> _Taken:
    """Drain, seal and fold what is there; once more, if a process with a call under way died meanwhile.

    Args:
        session: The session.
        fold: What it is added to.
        deadline: Until when, by `time.monotonic()`.
        timeout: Seconds to wait for the journal's lock.
        is_known: Whether `metrics.json` tells which numbers of journals there were.
    """
    taken, callers = _Taken(), Callers(session)
    while True:
        callers.look(fold.totals)
        # Where metrics.json is gone or damaged, nobody knows which numbers there were: a copy that is
        # restored later must not have counted the number of a journal that is sealed now.
        above = fold.totals.journal if is_known else max(fold.totals.journal, time.time_ns() // 10**8)
        drained, taken.failure = _drain_and_seal(session, fold.totals.journal, above, timeout)
        # From here on nobody waits for this process: writers append to a new journal.
        taken.damaged |= _reject_damaged(session, fold, drained)
        taken.has_news |= _fold_sealed(session, fold, deadline)
        taken.unreadable = drained.unreadable
        if taken.failure:
            return taken
        if taken.unreadable or not callers.look(fold.totals):
            break
    if not taken.unreadable:  # what is not read may be the end of a call, or its beginning
        taken.has_news |= callers.count_interrupted(fold)
        fold.totals.tables[RUNNING.name].forget_ended()
    _forget_the_gone(session, fold.totals, drained.writers)
    return taken


def _not_owned(session: Session) -> SessionOwnedError:
    path = session.owner_lock
    message = f"{path} was removed, and another process may own the session by now; nothing was published"
    return SessionOwnedError(message, path, None, None)


def _drain_and_seal(
    session: Session, folded: int, above: int, timeout: float | None
) -> tuple[Drained, OSError | None]:
    """Returns what the drain left, or the reason why the journal did not take all of it."""
    journal = staging(session).journal
    is_sealed = False

    def drain_and_seal() -> tuple[Drained, OSError | None]:
        nonlocal is_sealed
        failure = None
        segments, gone = find_segments(session.segments)
        try:
            drained = drain(journal, segments)
        except OSError as error:
            drained, failure = Drained(), error
        drained.writers |= gone
        numbers = [number for number, _ in session.sealed() if number < folded + MAX_WAITING]
        is_sealed = journal.seal(max([above, *numbers]) + 1)
        files.delete_temporaries(session.root, "journal")
        return drained, failure

    found = journal.hold(drain_and_seal, timeout)
    if is_sealed:
        # Else a power cut may keep the metrics.json that counts it and give the journal its old name back,
        # under which it would be counted again.
        files.sync_directory(session.root)
    return found


def _reject_damaged(session: Session, fold: Fold, drained: Drained) -> dict[str, str]:
    """Reject the files that are not what their names say; returns where they are to be put.

    Those of an earlier run, which died before it had put them there, are rejected already.
    """
    damaged = {path: reason for path, reason in drained.damaged if _is_free(path)}
    for number, path in session.sealed():
        if number > fold.totals.journal + MAX_WAITING:
            damaged[path] = "no journal was ever sealed with such a number"
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
    """The new path of a damaged file: beside the old one, under a name that is free and short enough."""
    place = f"{path}.rejected"
    if len(os.fsencode(os.path.basename(place))) > _MAX_NAME_BYTES or os.path.lexists(place):
        return f"{os.path.dirname(path)}/{os.lstat(path).st_ino}.{time.time_ns()}.rejected"
    return place


def _fold_sealed(session: Session, fold: Fold, deadline: float) -> bool:
    """Fold the sealed journals that are not counted yet; returns whether there were any."""
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
        raise TimeoutError("it takes too long to merge what is there")


def _publishing_seconds(totals: Totals) -> float:
    return _ENTRY_SECONDS * totals.count_entries()


def _forget_the_gone(session: Session, totals: Totals, writers: set[str]) -> None:
    """Forget how far those writers are that have no segment any more."""
    if not totals.writers.keys() <= writers:
        # Where a power cut brings a deleted segment back, its records must still be known.
        files.sync_directory(session.segments)
        totals.keep_writers(writers)


def _delete(session: Session, folded: int, damaged: dict[str, str]) -> None:
    """Delete what `metrics.json` contains now, and put what is damaged out of the way."""
    for number, path in session.sealed():
        if number <= folded and path not in damaged:
            with files.step("delete journal"):
                files.delete_if_there(path)
    for path, place in damaged.items():
        with suppress(OSError), files.step("set file aside"):
            os.rename(path, place)
    delete_stillborn(session.segments)


def _is_free(path: str) -> bool:
    """Whether no process maps that segment: one of a later version may be alive and well."""
    try:
        fd = files.open_private(path, os.O_RDONLY)
    except OSError as error:
        return error.errno in (ELOOP, ENXIO)  # a symlink, a socket
    try:
        return lock_if_free(fd)
    finally:
        os.close(fd)
