"""Snapshots: the metrics that a compaction would publish now. Nothing is changed."""

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

# The number of attempts without the journal's lock. An attempt fails if an owner publishes meanwhile.
_LOOKS = 20
# The most bytes of segments that stay in memory. The rest goes to a temporary file.
_STAGED_BYTES = 8 * 1024 * 1024


def fold_everything(session: Session, *, from_zero: bool = False) -> Fold:
    """Fold all records, and change nothing.

    The fold waits only if the live journal seems damaged. The damage may be a running append whose end was
    read before its beginning. In this case the fold is repeated under the journal's lock.

    Args:
        session: The session to read; it need not exist.
        from_zero: Whether to ignore `metrics.json`.

    Returns:
        The fold. If the lock was not free for 5 seconds, or could not be taken, the reasons of damage in the
        live journal say that they are not certain.

    Raises:
        DamagedMetricsError: `metrics.json` is not valid.
        JournalLockedError: Flushes interfered with every attempt, and the lock was not free either.
        OSError: A file could not be read.
    """
    callers = Callers(session)
    for _ in range(_LOOKS):
        before = _publication(session)
        fold = _look(session, from_zero)
        if fold and _publication(session) == before:
            if callers.look(fold.totals):
                continue  # the dead process may have ended a call after this fold had read its segments
            found = fold if fold.is_certain else _look_again(session, from_zero, fold)
            callers.count_interrupted(found)
            return found
    found = staging(session).journal.hold(lambda: _look_under_lock(session, from_zero))
    callers.count_interrupted(found)
    return found


def _look_again(session: Session, from_zero: bool, seen: Fold) -> Fold:
    if not os.path.lexists(session.journal_lock):
        return seen  # without the lock's file no process appends; a snapshot must not create the file
    try:
        return staging(session).journal.hold(lambda: _look_under_lock(session, from_zero))
    except (OSError, InterruptedCallError) as error:
        seen.doubt(session.name_of(session.journal), str(error).partition(". ")[0])
        return seen


def _look_under_lock(session: Session, from_zero: bool) -> Fold:
    # While the lock is held, no drain or seal happens. `_look` notices a publication.
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
    """Fold all files once. Return None if the files changed in a way that makes the fold invalid."""
    # Open the files in the direction in which records move: a record that moves meanwhile is met twice,
    # which its number reveals, and never missed. Open files stay readable when renamed or deleted.
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
    """An append continued while it was read."""


def _read_live(live: BinaryIO) -> Iterator[reader.Item]:
    """Read a journal that other processes append to.

    Items after unfilled room may be the rest of the same append, read a moment later than the room. Their
    lines would count without their numbers. In this case the room is filled by now, because an append is
    written from its beginning to its end.
    """
    torn = None
    for item in reader.read(live):
        if torn is not None and os.pread(live.fileno(), 1, torn) != b"\0":
            raise _OvertakenError
        torn = item.offset if isinstance(item, reader.Torn) else None
        yield item


@dataclass(frozen=True, slots=True)
class _Staged:
    """The pending batch of a segment. Its records are in a copy.

    Attributes:
        file: The path of the segment, relative to the session's directory.
        found: The batch without its records, or the reason why there is none.
        size: Bytes of the records in the copy.
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
            continue  # drained since the listing: its records are in the journal
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
            segment.found.records = b""  # free the memory for the next segment
        else:
            fold.reject(segment.found)


def _open(path: str, files: ExitStack) -> BinaryIO | None:
    try:
        return files.enter_context(reader.open_to_read(path))
    except FileNotFoundError:
        return None


def _same_file(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.sameopenfile(one.fileno(), other.fileno())
