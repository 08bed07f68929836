"""Segments to journal: append what is pending, note that it is there, delete what nobody needs.

A writer drains its own segments when one is full; the owner drains everybody's. Either holds
`journal.lock`. A writer's oldest segment goes first, for its records must enter the journal in the order
of their numbers.
"""

from __future__ import annotations

import os

from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.segments.format import DamagedSegmentError, name_parts
from m31a_mp.segments.reader import SegmentFile
from m31a_mp.system import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


# One append takes this much before the next begins: thousands of writers need little memory and few
# open files.
_CHUNK_BYTES = 1024 * 1024
_CHUNK_FILES = 64


class Drained:
    """The result of a drain.

    Attributes:
        writers: The writers that may still have a segment, so that their records may come again.
        damaged: The segments that are none, and why; they were left alone.
        unreadable: Why segments could not be read; they and their writers' later ones were left alone.
    """

    __slots__ = ("damaged", "unreadable", "writers")

    def __init__(self) -> None:
        self.writers: set[str] = set()
        self.damaged: list[tuple[str, str]] = []
        self.unreadable: list[OSError] = []


def drain(journal: Journal, segments: Iterable[str]) -> Drained:
    """Move the pending records of these segments to the journal. The caller holds `journal.lock`.

    Args:
        journal: Where the records go.
        segments: The segments, each writer's oldest first.

    Raises:
        OSError: The journal cannot take them. What was not moved stays where it is.
    """
    left = Drained()
    writers = {path: (name_parts(os.path.basename(path)) or [""])[0] for path in segments}
    chunk = _Chunk(journal)
    skipped: set[str] = set()
    unsure: set[str] = set()
    try:
        for path, writer in writers.items():
            if writer in skipped:
                continue
            try:
                chunk.add(path)
            except FileNotFoundError:
                unsure.add(writer)  # handed over and deleted meanwhile; it may have a newer one
            except DamagedSegmentError as error:
                unsure.add(writer)
                left.damaged.append((path, str(error)))
            except OSError as error:
                # Its later records must not overtake it: they would make it look counted already.
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
    """A segment with what is about to be appended of it."""

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
            is_finished = file.is_finished()  # asked before reading: all that is ever stored is there
            batch = file.pending(is_finished=is_finished)
        except BaseException:
            file.close()
            raise
        self._sources.append(_Source(file, batch, is_finished=is_finished))
        self._bytes += len(batch.records)

    def is_full(self) -> bool:
        return self._bytes >= _CHUNK_BYTES or len(self._sources) >= _CHUNK_FILES

    def hand_over(self, writers: set[str]) -> None:
        """Append, then note or delete. A crash in between appends twice, and the numbers tell.

        Args:
            writers: Has those added that may have another segment, and those removed that have no more.
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
            # The segments of the first half go away, which makes room for the second.
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
                writers.discard(file.writer)  # this is its last one

    def close(self) -> None:
        while self._sources:
            self._sources.pop().file.close()
        self._bytes = 0
