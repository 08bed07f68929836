"""Snapshots: the metrics that a compaction would publish now. Nothing is changed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, BinaryIO, NamedTuple, TypeVar

from m31a_mp.errors import InterruptedCallError
from m31a_mp.journal import reader
from m31a_mp.journal.batch import MAX_LINE_BYTES, Batch
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
        found = _fold_everything(self._session, seen, is_one_of_many=True)
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
    """The result of a look.

    Attributes:
        fold: The fold.
        seen: Where the next look goes on; None if it starts anew, because it would count damage, or a line,
            once more.
        rejected: How many pieces of the live journal this look rejected. They may be a running append.
        doubts: These pieces, as far as they were kept.
        is_stuck: Whether later looks have to read again from a place that a running append may still fill. If
            nobody holds the journal's lock, no append is running, and they need not.
    """

    fold: Fold
    seen: _Seen | None
    rejected: int
    doubts: list[Rejected]
    is_stuck: bool = False


def _fold_everything(
    session: Session, seen: _Seen | None = None, *, from_zero: bool = False, is_one_of_many: bool = False
) -> _Found:
    callers = Callers(session)
    for _ in range(_LOOKS):
        publication = _publication(session)
        found = _look(session, publication, seen, from_zero=from_zero)
        seen = found.seen if found else None
        if found and _publication(session) == publication:
            if callers.look(found.fold.totals):
                continue  # the dead process may have ended a call after this fold had read its segments
            if found.rejected:
                found = _look_again(session, found, callers, from_zero=from_zero)
            elif found.is_stuck and is_one_of_many:
                found = _look_on(session, found, callers)
            callers.count_interrupted(found.fold)
            return found
    found = staging(session).journal.hold(lambda: _look_under_lock(session, callers, from_zero=from_zero))
    callers.count_interrupted(found.fold)
    return found


def _look_again(session: Session, found: _Found, callers: Callers, *, from_zero: bool) -> _Found:
    if not os.path.lexists(session.journal_lock):
        return found  # without the lock's file no process appends; a look must not create the file

    def look() -> _Found:
        if _are_there(session, found):
            return found
        return _look_under_lock(session, callers, from_zero=from_zero)

    try:
        return staging(session).journal.hold(look)
    except (OSError, InterruptedCallError) as error:
        found.fold.doubt(session.name_of(session.journal), str(error).partition(". ")[0])
        return _Found(found.fold, None, 0, [])


def _are_there(session: Session, found: _Found) -> bool:
    """Whether the journal still has what a look rejected, byte by byte. The caller holds the journal's lock.

    If it has not, the look read what a process was just appending, or putting in the place of a torn line.
    """
    if found.seen is None or len(found.doubts) < found.rejected:
        return False
    with ExitStack() as files:
        live = _open(session.journal, files)
        return (
            live is not None
            and inode_of(live.fileno()) == found.seen.live
            and all(at.data and _bytes_at(live, at) == at.data for at in found.doubts)
        )


def _bytes_at(live: BinaryIO, at: Rejected) -> bytes:
    return os.pread(live.fileno(), len(at.data), at.offset)


def _look_on(session: Session, found: _Found, callers: Callers) -> _Found:
    """Read on behind what is torn, if the journal's lock is free. The next look then goes on from there."""
    looked: list[_Found] = []
    has_begun = False

    def look() -> None:
        nonlocal has_begun
        has_begun = True
        looked.append(_look_under_lock(session, callers, found.seen))

    if os.access(session.journal_lock, os.R_OK | os.W_OK):
        try:
            staging(session).journal.turn.take_if_free(look)
        except OSError:
            if has_begun:
                raise  # a file could not be read; otherwise only the lock could not be had, say a symlink
    return looked[0] if looked else found


def _look_under_lock(
    session: Session, callers: Callers, seen: _Seen | None = None, *, from_zero: bool = False
) -> _Found:
    # While the lock is held, no drain or seal happens. But an owner may publish journals that it sealed
    # before, and delete them: a look that has read the previous `metrics.json` would miss their records.
    while True:
        publication = _publication(session)
        found = _look(session, publication, seen, from_zero=from_zero, is_locked=True)
        seen = None
        if found and _publication(session) == publication:
            # A fold that starts anew has calls that the last fold had as interrupted, not as running.
            if not callers.look(found.fold.totals):
                return found
            seen = found.seen


def _look(
    session: Session,
    publication: tuple[int, ...] | None,
    seen: _Seen | None,
    *,
    from_zero: bool,
    is_locked: bool = False,
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
        rejected_before, kept_before = fold.totals.rejected, len(fold.rejected)
        reading = None
        if live and not _is_among(live, sealed):
            reading = _Reading(live, seen.offset if seen else 0, is_locked=is_locked)
            try:
                fold.add_journal(session.name_of(session.journal), reading.items())
            except _OvertakenError:
                return None
        rejected, doubts = fold.totals.rejected - rejected_before, fold.rejected[kept_before:]
        _fold_staged(fold, staged, copy)
        is_sound = all(isinstance(segment.found, Batch) for segment in staged)
        now = None
        if is_sound and (reading is None or reading.is_repeatable):
            ends = {segment.path: segment.end for segment in staged}
            now = _Seen(fold, publication, sealed, *_read_of(reading), ends)
        is_stuck = is_sound and reading is not None and reading.is_stuck
        return _Found(fold, now, rejected, doubts, is_stuck)


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


def _read_of(reading: _Reading | None) -> tuple[tuple[int, int] | None, int, bytes]:
    """Return what `_Seen` has of the live journal: the inode, the offset, and the bytes before it."""
    if reading is None:
        return None, 0, b""
    return inode_of(reading.stream.fileno()), reading.offset, _tail(reading.stream, reading.offset)


class _OvertakenError(Exception):
    """An append continued while it was read."""


class _Reading:
    """The reading of a journal that other processes append to.

    Attributes:
        stream: The journal.
        offset: Bytes before the first item that the next reading has to read: all before it is complete.
        is_repeatable: Whether what was read from `offset` on may be read again: appends that are running, or
            that a death ended, and whole batches, whose numbers reveal the repetition.
        is_stuck: Whether a reading under the journal's lock would move `offset` further.
    """

    def __init__(self, stream: BinaryIO, offset: int, *, is_locked: bool) -> None:
        """`is_locked`: the caller holds the journal's lock, so that nobody fills what is torn."""
        self.stream = stream
        self.offset = offset
        self.is_repeatable = True
        self.is_stuck = False
        self._is_locked = is_locked

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
            is_open = not self._is_closed(item)
            is_complete = is_complete and not is_open and (self._is_locked or _is_complete(item))
            if is_complete:
                self.offset = self.stream.tell()
            else:
                is_harmless = isinstance(item, reader.Torn) or (isinstance(item, Batch) and not is_open)
                self.is_repeatable = self.is_repeatable and is_harmless
                self.is_stuck = self.is_stuck or not (self._is_locked or is_open)
            yield item

    def _is_closed(self, item: reader.Item) -> bool:
        """Whether an item that was just read has its end, so that later appends cannot look like its rest.

        A batch that was cut has no end, and no room for its rest either; a line has none without a newline,
        also behind NULs.
        """
        if isinstance(item, Batch):
            return item.room is not None
        if isinstance(item, reader.Lines):
            return item.text.endswith(b"\n")
        end = self.stream.tell()
        last = os.pread(self.stream.fileno(), 1, end - 1) if end else b""
        return last == b"\n" or (last == b"\0" and self._ends_line(end))

    def _ends_line(self, offset: int) -> bool:
        """Whether the line that goes on at an offset has its end. The stream stays there."""
        rest = self.stream.readline(MAX_LINE_BYTES)
        self.stream.seek(offset)
        return rest.endswith(b"\n")


def _is_complete(item: reader.Item) -> bool:
    """Whether the item has no room that a running append may still fill."""
    return isinstance(item, reader.Lines) or (isinstance(item, Batch) and item.room == len(item.records))


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
