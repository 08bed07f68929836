"""Snapshots: the metrics that a compaction would publish now. Nothing is changed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, BinaryIO, NamedTuple, TypeVar

from m31a_mp.errors import InterruptedCallError
from m31a_mp.journal import reader
from m31a_mp.journal.batch import Batch
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics.beginning import identity
from m31a_mp.metrics.fold import Fold
from m31a_mp.metrics.interrupted import Callers
from m31a_mp.metrics.rejected import Rejected, shown
from m31a_mp.metrics.totals import Totals
from m31a_mp.segments.format import DamagedSegmentError
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.segments.staging import staging
from m31a_mp.session.paths import MAX_WAITING, Session, is_file
from m31a_mp.system.files import inode_of

# The number of attempts without the journal's lock. An attempt fails if an owner publishes meanwhile.
_LOOKS = 20
# The bytes of the live journal by which a look knows it again: at least one record of this library, with its
# time. A journal may be cut and grow again; if it is removed, a new one may get the same inode.
_TAIL_BYTES = 4096
# The most bytes of segments that stay in memory. The rest goes to a temporary file.
_STAGED_BYTES = 8 * 1024 * 1024

T = TypeVar("T")


class Looks:
    """Looks at one session, one after the other. Each reads only what is new since the last one.

    The fold of the last look stays in memory. A look takes it out while it adds to it: a concurrent look, or
    one by a signal handler in the middle of another, reads all unmerged records instead.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last: list[_Seen] = []

    def look(self, use: Callable[[Fold], T]) -> T:
        """Fold all records, and return what `use` makes of the fold, which it must not change or keep.

        Raises:
            DamagedMetricsError, JournalLockedError, OSError: See `fold_everything`.
        """
        try:
            seen = self._last.pop()
        except IndexError:
            seen = None
        found = _fold_everything(self._session, seen)
        result = use(found.fold)
        self._last = [found.seen] if found.seen else []
        return result

    def staged(self) -> dict[str, tuple[int, int]]:
        """Return how far the last look has read each segment: see `SegmentFile.pending`."""
        for seen in self._last:
            return seen.staged
        return {}


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
    return _fold_everything(session, from_zero=from_zero).fold


class _Seen(NamedTuple):
    """What a look has read. The next look goes on from there, unless a flush or damage is in between.

    Attributes:
        fold: The fold of what was read.
        publication: See `_publication`.
        sealed: The sealed journals.
        live: The device and inode of the live journal; None if there was none.
        offset: Bytes of the live journal before the first item to read next.
        tail: The last of these bytes.
        staged: The offset and the number of the record to read next, by the path of its segment.
    """

    fold: Fold
    publication: tuple[int, ...] | None
    sealed: list[tuple[int, str]]
    live: tuple[int, int] | None
    offset: int
    tail: bytes
    staged: dict[str, tuple[int, int]]

    def continues(self, live: BinaryIO | None, sealed: list[tuple[int, str]]) -> bool:
        """Whether the journals are those that were read, unless they became longer."""
        if live is None or self.live is None:
            return sealed == self.sealed and self.live is None
        is_same = self.live == inode_of(live.fileno()) and self.tail == _tail(live, self.offset)
        return sealed == self.sealed and is_same


class _Found(NamedTuple):
    """The result of a look: the fold, and where the next look goes on; None if it starts anew."""

    fold: Fold
    seen: _Seen | None


def _fold_everything(session: Session, seen: _Seen | None = None, *, from_zero: bool = False) -> _Found:
    callers = Callers(session)
    for _ in range(_LOOKS):
        publication = _publication(session)
        found = _look(session, publication, seen, from_zero=from_zero)
        seen = found.seen if found else None
        if found and _publication(session) == publication:
            if callers.look(found.fold.totals):
                continue  # the dead process may have ended a call after this fold had read its segments
            if not found.fold.is_certain:
                found = _look_again(session, found, from_zero=from_zero)
            callers.count_interrupted(found.fold)
            return found
    found = staging(session).journal.hold(lambda: _look_under_lock(session, from_zero=from_zero))
    callers.count_interrupted(found.fold)
    return found


def _look_again(session: Session, found: _Found, *, from_zero: bool) -> _Found:
    if not os.path.lexists(session.journal_lock):
        return found  # without the lock's file no process appends; a look must not create the file
    try:
        return staging(session).journal.hold(lambda: _look_under_lock(session, from_zero=from_zero))
    except (OSError, InterruptedCallError) as error:
        found.fold.doubt(session.name_of(session.journal), str(error).partition(". ")[0])
        return _Found(found.fold, None)


def _look_under_lock(session: Session, *, from_zero: bool) -> _Found:
    # While the lock is held, no drain or seal happens. `_look` notices a publication.
    while True:
        if found := _look(session, _publication(session), None, from_zero=from_zero):
            return found


def _look(
    session: Session, publication: tuple[int, ...] | None, seen: _Seen | None, *, from_zero: bool
) -> _Found | None:
    """Fold what was not read before. Return None if the files changed in a way that makes the fold invalid.

    The files are opened in the direction in which records move: a record that moves meanwhile is met twice,
    which its number reveals, and never missed. Open files stay readable when renamed or deleted.
    """
    if seen and seen.publication != publication:
        seen = None
    with ExitStack() as files:
        copy, staged = _copy_staged(session, files, seen.staged if seen else {})
        live = _open(session.journal, files)
        sealed = session.sealed()
        if seen and not seen.continues(live, sealed):
            return None
        fold = seen.fold if seen else _fold_merged(session, sealed, from_zero=from_zero)
        if fold is None:
            return None
        fold.continue_now()
        rejected_before = fold.totals.rejected
        reading = None
        if live and not _is_among(live, sealed):
            reading = _Reading(live, seen.offset if seen else 0)
            try:
                fold.add_journal(session.name_of(session.journal), reading.items())
            except _OvertakenError:
                return None
        fold.is_certain = fold.totals.rejected == rejected_before
        _fold_staged(fold, staged, copy)
        is_sound = all(isinstance(segment.found, Batch) for segment in staged)
        if not is_sound or (reading and not reading.is_repeatable):
            return _Found(fold, None)  # the next look would count the damage, or a line, once more
        inode, offset, tail = None, 0, b""
        if reading:
            inode, offset = inode_of(reading.stream.fileno()), reading.offset
            tail = _tail(reading.stream, offset)
        ends = {segment.path: segment.end for segment in staged}
        return _Found(fold, _Seen(fold, publication, sealed, inode, offset, tail, ends))


def _fold_merged(session: Session, sealed: list[tuple[int, str]], *, from_zero: bool) -> Fold | None:
    """Fold `metrics.json` and the sealed journals. Return None if a journal was published meanwhile."""
    published = None if from_zero else metrics_file.read_totals(session)
    fold = Fold(published or Totals())
    for number, path in sealed:
        if fold.totals.journal < number <= fold.totals.journal + MAX_WAITING and is_file(path):
            try:
                with reader.open_to_read(path) as stream:
                    fold.add_journal(session.name_of(path), reader.read(stream))
            except FileNotFoundError:
                return None
    return fold


class _OvertakenError(Exception):
    """An append continued while it was read."""


class _Reading:
    """The reading of a journal that other processes append to.

    Attributes:
        stream: The journal.
        offset: Bytes before the first item that the next reading has to read: all before it is complete.
        is_repeatable: Whether what was read from `offset` on may be read again: appends that are running, or
            that a death ended, and whole batches, whose numbers reveal the repetition.
    """

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        self.stream = stream
        self.offset = offset
        self.is_repeatable = True

    def items(self) -> Iterator[reader.Item]:
        """Yield the items from `offset` on, which moves behind them as long as they are complete.

        Items after unfilled room may be the rest of the same append, read a moment later than the room. Their
        lines would count without their numbers. In this case the room is filled by now, because an append is
        written from its beginning to its end.
        """
        torn, is_complete = None, True
        for item in reader.read(self.stream, self.offset):
            if torn is not None and os.pread(self.stream.fileno(), 1, torn) != b"\0":
                raise _OvertakenError
            torn = item.offset if isinstance(item, reader.Torn) else None
            is_complete = is_complete and _is_complete(item)
            if is_complete:
                self.offset = self.stream.tell()
            elif isinstance(item, Batch):
                # Without room for its rest, what others append may look like the rest.
                self.is_repeatable = self.is_repeatable and item.room is not None
            elif not isinstance(item, reader.Torn):
                self.is_repeatable = False
            yield item


def _is_complete(item: reader.Item) -> bool:
    if isinstance(item, Batch):
        return item.room == len(item.records)
    return isinstance(item, reader.Lines) and item.text.endswith(b"\n")


class _Staged(NamedTuple):
    """The pending batch of a segment. Its records are in a copy.

    Attributes:
        path: The path of the segment.
        file: The path, relative to the session's directory.
        found: The batch without its records, or the reason why there is none.
        size: Bytes of the records in the copy.
        end: The offset in the segment of the record after the batch, and its number.
    """

    path: str
    file: str
    found: Batch | Rejected
    size: int = 0
    end: tuple[int, int] = (0, 0)


def _copy_staged(
    session: Session, files: ExitStack, seen: dict[str, tuple[int, int]]
) -> tuple[IO[bytes], list[_Staged]]:
    """Copy the records of all segments that were not seen before. `files` closes the copy."""
    copy: IO[bytes] = io.BytesIO()
    staged = []
    for path in list_segments(session.segments):
        name = shown(session.name_of(path))
        try:
            with SegmentFile.open(path) as file:
                pending = file.pending(is_finished=False, seen=seen.get(path))
        except FileNotFoundError:
            continue  # drained since the listing: its records are in the journal
        except DamagedSegmentError as error:
            staged.append(_Staged(path, name, Rejected(name, 0, str(error), b"")))
        else:
            copy.write(pending.records)
            size, end = len(pending.records), pending.first + pending.count
            pending.records = b""
            staged.append(_Staged(path, name, pending, size, (pending.offset + size, end)))
            if isinstance(copy, io.BytesIO) and copy.tell() > _STAGED_BYTES:
                copy = files.enter_context(_on_disk(copy))
    return copy, staged


def _on_disk(copy: io.BytesIO) -> IO[bytes]:
    from tempfile import TemporaryFile  # few looks need it, and it imports much  # noqa: PLC0415

    file = TemporaryFile()  # noqa: SIM115  # the caller closes it
    file.write(copy.getbuffer())
    return file


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


def _is_among(live: BinaryIO, sealed: list[tuple[int, str]]) -> bool:
    """Whether the live journal was sealed after it had been opened."""
    for _, path in sealed:
        try:
            if os.path.samestat(os.fstat(live.fileno()), os.lstat(path)):
                return True
        except FileNotFoundError:
            continue
    return False


def _publication(session: Session) -> tuple[int, ...] | None:
    """Return what tells one publication from another; without any, one state of the directory from another.

    The directory changes when a file in it is made, renamed or removed. If the session is removed, a new
    session of the same name may get the same inodes.
    """
    if published := identity(session):
        return published
    try:
        status = os.lstat(session.root)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _tail(file: BinaryIO, end: int) -> bytes:
    size = min(end, _TAIL_BYTES)
    return os.pread(file.fileno(), size, end - size)
