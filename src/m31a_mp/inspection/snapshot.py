"""A snapshot: what a compaction would publish now. It changes nothing, and waits for nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, BinaryIO

from m31a_mp.errors import InterruptedCallError
from m31a_mp.journal import reader
from m31a_mp.journal.batch import Batch
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.interrupted import Callers
from m31a_mp.metrics.rejected import Rejected, shown
from m31a_mp.metrics.totals import Totals
from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.segments.staging import staging
from m31a_mp.session.paths import MAX_WAITING, Session, is_file

# A look that a publication overtakes is taken anew, this often; then it waits for the journal's lock.
_LOOKS = 20
# What it keeps of the segments in memory; more than that goes to a temporary file.
_STAGED_BYTES = 8 * 1024 * 1024


def fold_everything(session: Session, *, from_zero: bool = False) -> Fold:
    """Fold everything recorded, and change nothing.

    It waits for nobody but where something is wrong in the live journal: that may be an append in progress,
    of which a reader met the end before the beginning. So it is looked at again under the journal's lock.

    Args:
        session: What to look at; it need not exist.
        from_zero: Take no notice of what `metrics.json` contains.

    Returns:
        What is there. If the lock could not be had for 5 seconds, or not at all, the reason of what is wrong
        in the live journal says that it is not certain.

    Raises:
        DamagedMetricsError: `metrics.json` is not valid.
        JournalLockedError: Flushes overtook it all the time, and the lock could not be had either.
        OSError: Something could not be read.
    """
    callers = Callers(session)
    for _ in range(_LOOKS):
        before = _publication(session)
        fold = _look(session, from_zero)
        if fold and _publication(session) == before:
            if callers.look(fold.totals):
                continue  # before a process died, it may have ended a call behind this look
            found = fold if fold.is_certain else _look_again(session, from_zero, fold)
            callers.count_interrupted(found)
            return found
    found = staging(session).journal.hold(lambda: _look_in_peace(session, from_zero))
    callers.count_interrupted(found)
    return found


def _look_again(session: Session, from_zero: bool, seen: Fold) -> Fold:
    if not os.path.lexists(session.journal_lock):
        return seen  # without the lock's file nobody appends; and no look makes one
    try:
        return staging(session).journal.hold(lambda: _look_in_peace(session, from_zero))
    except (OSError, InterruptedCallError) as error:
        seen.doubt(session.name_of(session.journal), str(error).partition(". ")[0])
        return seen


def _look_in_peace(session: Session, from_zero: bool) -> Fold:
    # While the lock is held nothing is drained or sealed, and what is published meanwhile says so.
    while True:
        if fold := _look(session, from_zero):
            return fold


def _publication(session: Session) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(session.metrics)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _look(session: Session, from_zero: bool) -> Fold | None:
    """One look; None if the files changed in a way that makes it worthless."""
    # In the direction in which records travel: one that moves on meanwhile is met twice, which its
    # number tells, and never missed. Open files stay readable when they are renamed or deleted.
    with ExitStack() as files:
        copy = files.enter_context(SpooledTemporaryFile(_STAGED_BYTES))
        staged = _copy_staged(session, copy)
        live = _open(session.journal, files)
        sealed = session.sealed()
        published = None if from_zero else metrics_file.read_totals(session)
        fold = Fold(published or Totals())
        for number, path in sealed:
            if fold.totals.journal < number <= fold.totals.journal + MAX_WAITING and is_file(path):
                try:
                    with reader.open_to_read(path) as stream:
                        if live and _same_file(live, stream):
                            live = None
                        fold.add_journal(session.name_of(path), reader.read(stream))
                except FileNotFoundError:
                    return None  # published meanwhile
        if live:
            rejected_before = fold.totals.rejected
            try:
                fold.add_journal(session.name_of(session.journal), _read_live(live))
            except _OvertakenError:
                return None
            fold.is_certain = fold.totals.rejected == rejected_before
        _fold_staged(fold, staged, copy)
    return fold


class _OvertakenError(Exception):
    """An append went on while it was read."""


def _read_live(live: BinaryIO) -> Iterator[reader.Item]:
    """Read a journal that others append to.

    What stands behind room that is not filled may be the rest of that append, read a moment later than the
    room: then its lines would count without their numbers. By now the room has been filled, for an append
    is written from its beginning to its end.
    """
    torn = None
    for item in reader.read(live):
        if torn is not None and os.pread(live.fileno(), 1, torn) != b"\0":
            raise _OvertakenError
        torn = item.offset if isinstance(item, reader.Torn) else None
        yield item


@dataclass(frozen=True, slots=True)
class _Staged:
    """The batch of a segment for the journal. Its records are in the copy, `size` bytes of them.

    Attributes:
        file: The segment, from the session's directory.
        found: The batch without its records; or why there is none.
        size: The bytes of its records.
    """

    file: str
    found: Batch | Rejected
    size: int = 0


def _copy_staged(session: Session, copy: IO[bytes]) -> list[_Staged]:
    """Copy the records of all segments."""
    staged = []
    for path in list_segments(session.segments):
        name = shown(session.name_of(path))
        try:
            with SegmentFile.open(path) as file:
                pending = file.pending(is_finished=False)
        except FileNotFoundError:
            continue  # handed over since it was listed: its records are in the journal
        except DamagedSegmentError as error:
            staged.append(_Staged(name, Rejected(name, 0, str(error), b"")))
        else:
            copy.write(pending.records)
            size, pending.records = len(pending.records), b""
            staged.append(_Staged(name, pending, size))
    return staged


def _fold_staged(fold: Fold, staged: list[_Staged], copy: IO[bytes]) -> None:
    copy.seek(0)
    for segment in staged:
        if isinstance(segment.found, Batch):
            segment.found.records = copy.read(segment.size)
            fold.add_batch(segment.file, segment.found)
            segment.found.records = b""  # the next one needs the memory
        else:
            fold.reject(segment.found)


def _open(path: str, files: ExitStack) -> BinaryIO | None:
    try:
        return files.enter_context(reader.open_to_read(path))
    except FileNotFoundError:
        return None


def _same_file(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.sameopenfile(one.fileno(), other.fileno())
