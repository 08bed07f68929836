"""Drain segments: append pending records to the journal, note that they are there, delete used-up segments.

A process drains its own segments when one is full. The owner drains the segments of all processes. Both
hold `journal.lock` meanwhile. A writer's oldest segment is drained first, because its records must enter
the journal in the order of their numbers.
"""

from __future__ import annotations

import os

from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.segments.format import DamagedSegmentError, name_parts
from m31a_mp.segments.reader import SegmentFile, list_segments
from m31a_mp.system import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable


# The limits of one append. They bound memory and open files when thousands of writers have records
# pending.
_CHUNK_BYTES = 1024 * 1024
_CHUNK_FILES = 64


class Drained:
    """The result of a drain.

    Attributes:
        writers: The writers that may still have a segment. Their records may be appended again.
        damaged: The files that are no valid segments, each with the reason. They were left alone.
        unreadable: The errors of segments that could not be read. These segments and later segments of
            the same writers were left alone.
    """

    __slots__ = ("damaged", "unreadable", "writers")

    def __init__(self) -> None:
        self.writers: set[str] = set()
        self.damaged: list[tuple[str, str]] = []
        self.unreadable: list[OSError] = []


def idle_segments(directory: str) -> set[str]:
    """Find the segments in use from which a drain would take nothing.

    The owner looks for them before it takes `journal.lock`. It then holds the lock only for what is there.
    """
    idle = set()
    for path in list_segments(directory):
        try:
            with SegmentFile.open(path) as file:
                if file.is_idle():
                    idle.add(path)
        except (DamagedSegmentError, OSError):
            pass  # the drain deals with it
    return idle


def drain(journal: Journal, segments: Iterable[str], idle: Container[str] = ()) -> Drained:
    """Move the pending records of these segments to the journal. The caller holds `journal.lock`.

    Args:
        journal: The journal to append to.
        segments: Paths of segments, each writer's oldest first.
        idle: Segments that had no pending records before the caller took the lock. Such a segment is left for
            the next drain.

    Raises:
        OSError: An append failed. Records that were not moved stay in their segments.
    """
    left = Drained()
    writers = {path: (name_parts(os.path.basename(path)) or [""])[0] for path in segments}
    newest = {writer: path for path, writer in writers.items()}
    chunk = _Chunk(journal)
    skipped: set[str] = set()
    unsure: set[str] = set()
    try:
        for path, writer in writers.items():
            if writer in skipped:
                continue
            if path in idle and path == newest[writer]:  # an older one may have been filled since
                skipped.add(writer)
                continue
            try:
                chunk.add(path)
            except FileNotFoundError:
                unsure.add(writer)  # drained and deleted meanwhile; the writer may have a newer segment
            except DamagedSegmentError as error:
                unsure.add(writer)
                left.damaged.append((path, str(error)))
            except OSError as error:
                # Later records of this writer must wait: once they are folded, lower numbers count as known.
                left.unreadable.append(error)
                skipped.add(writer)
            if chunk.is_full():
                chunk.hand_over(left.writers)
        chunk.hand_over(left.writers)
        left.writers |= skipped | unsure
    finally:
        chunk.close()
    return left


class _Source:
    """A segment and the batch of its pending records."""

    __slots__ = ("batch", "file", "is_finished")

    def __init__(self, file: SegmentFile, batch: Batch, *, is_finished: bool) -> None:
        self.file = file
        self.batch = batch
        self.is_finished = is_finished


class _Chunk:
    """The segments whose records make up one append."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._sources: list[_Source] = []
        self._bytes = 0

    def add(self, path: str) -> None:
        file = SegmentFile.open(path)
        try:
            is_finished = file.is_finished()  # before reading: a finished segment gets no more records
            batch = file.pending(is_finished=is_finished)
        except BaseException:
            file.close()
            raise
        self._sources.append(_Source(file, batch, is_finished=is_finished))
        self._bytes += len(batch.records)

    def is_full(self) -> bool:
        return self._bytes >= _CHUNK_BYTES or len(self._sources) >= _CHUNK_FILES

    def hand_over(self, writers: set[str]) -> None:
        """Append, then advance or delete. After a crash in between, the record numbers reveal the repetition.

        Args:
            writers: Updated: gains writers that may have another segment, loses writers that have none left.
        """
        self._move(self._sources, writers)
        self.close()

    def _move(self, sources: list[_Source], writers: set[str]) -> None:
        batches = [source.batch for source in sources]
        try:
            self._journal.append(batch for batch in batches if batch.records or batch.dropped)
        except OSError as error:
            if error.errno not in files.FULL or len(sources) == 1:
                raise
            # Moving the first half deletes its finished segments, which makes room for the second half.
            half = len(sources) // 2
            self._move(sources[:half], writers)
            self._move(sources[half:], writers)
            return
        for source in sources:
            file, batch = source.file, source.batch
            if source.is_finished:
                with files.step("delete segment"):
                    files.delete_if_there(file.path)
            else:
                file.advance(batch.offset + len(batch.records), batch.first + batch.count)
            if file.is_followed or not source.is_finished:
                writers.add(file.writer)
            else:
                writers.discard(file.writer)  # this was the writer's last segment

    def close(self) -> None:
        while self._sources:
            self._sources.pop().file.close()
        self._bytes = 0
