"""Fold: add the records of journals to the totals, each record once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import orjson

from m31a_mp.journal.batch import Batch
from m31a_mp.journal.reader import Damage, Item, Lines, Torn
from m31a_mp.kinds import json
from m31a_mp.kinds.times import MAX_AHEAD
from m31a_mp.metrics._folding import fold_plain
from m31a_mp.metrics.events import fold_checked
from m31a_mp.metrics.rejected import Rejected
from m31a_mp.metrics.totals import TooManyEntriesError, Totals

# Rejected items stay in memory until they are written. Beyond this size, only their places are kept.
_MAX_REJECTED_BYTES = 16 * 1024 * 1024
_MAX_REJECTED = 10_000
# The size of the lines that are parsed at a time. The parsed records of more lines would leave the
# processor's cache before they are counted.
_PIECE_BYTES = 32 * 1024
# The first piece is small, and the next ones grow: all records of a name that has no entry yet, up to the end
# of the piece, take the slow way.
_FIRST_PIECE_BYTES = 1024
# The most durations that wait to be counted, if there are fewer entries. Counting them together takes a third
# of the time. More of them would leave the processor's cache before they are counted.
_SETTLED_RECORDS = 4_000
_BETWEEN = b",0,\n"


def _parse(lines: bytes, array: bytes, count: int) -> list[Any]:
    """Parse each line. A line that is not JSON by itself yields None.

    Parsing all lines as one array takes two thirds of the time. In an array, a line could continue a value
    that the previous line began. The zero between two lines prevents that: a string has no raw newline, a
    zero is no key of an object, and lines with a bracket are parsed one by one. Each line is therefore at
    least one item. If there are as many items as lines, each line is exactly one item.
    """
    if b"[" not in lines:
        try:
            parsed: list[Any] = json.parse(b"[%b]" % array)
        except orjson.JSONDecodeError:
            parsed = []
        if len(parsed) == 2 * count - 1:
            return parsed[::2]
    return [_parse_line(line) for line in lines.split(b"\n")]


def _parse_line(line: bytes) -> Any:
    try:
        return json.parse(line)
    except orjson.JSONDecodeError:
        return None


class Fold:
    """One run over some journals.

    Attributes:
        totals: The totals to add to.
        records: The number of added records.
        interrupted: The number of calls that were found to be interrupted.
        rejected: The input that was not added, with the reasons.
    """

    def __init__(self, totals: Totals) -> None:
        self.totals = totals
        self.records = 0
        self.interrupted = 0
        self.rejected: list[Rejected] = []
        self._rejected_bytes = 0
        self._unsettled = 0
        self._piece_bytes = _FIRST_PIECE_BYTES
        self._now = time.time_ns()

    @property
    def news(self) -> tuple[int, ...]:
        """What changes whenever the fold gains anything."""
        totals = self.totals
        return self.records, self.interrupted, totals.rejected, sum(totals.dropped.values())

    def add_journal(self, file: str, items: Iterable[Item]) -> None:
        """Add the items of a journal.

        Args:
            file: The name of the journal, for rejected items.
            items: The items of the journal, in order.
        """
        for item in items:
            match item:
                case Batch():
                    self.add_batch(file, item)
                case Lines():
                    self._add_lines(file, item.offset, item.text)
                case Torn():
                    pass  # normal after a crash; the records come again from the segment
                case Damage():
                    self.reject(Rejected(file, item.offset, item.reason, item.data))

    def add_batch(self, file: str, batch: Batch) -> None:
        """Add the records of a batch that are not counted yet. A repeated batch adds nothing."""
        try:
            mark = self.totals.writer(batch.writer)
        except TooManyEntriesError as error:
            self.reject(Rejected(file, batch.offset, str(error), bytes(batch.records)))
            return
        number, offset = batch.first, batch.offset
        for piece in self._pieces(bytes(batch.records)):
            known = max(0, mark.last + 1 - number)
            count = self._piece(file, offset, piece[:-1], known)
            mark.last = max(mark.last, number + count - 1)
            number += count
            offset += len(piece)
        self.totals.saw_dropped(mark, batch.dropped)

    def _add_lines(self, file: str, offset: int, lines: bytes) -> None:
        """Add records that were appended on their own. Each comes once: they have no numbers."""
        for piece in self._pieces(lines):
            self._piece(file, offset, piece.removesuffix(b"\n"), 0, ending=b"\n")
            offset += len(piece)

    def _pieces(self, records: bytes) -> Iterator[bytes]:
        """Split lines into pieces that are parsed at a time."""
        start = 0
        while start < len(records):
            end = records.find(b"\n", start + self._piece_bytes) + 1 or len(records)
            yield records[start:end]
            start = end
            self._piece_bytes = min(2 * self._piece_bytes, _PIECE_BYTES)

    def _piece(self, file: str, offset: int, text: bytes, known: int, ending: bytes = b"") -> int:
        """Add the records of some lines, without the first `known` lines. Return the number of lines.

        A line that is set aside gets the `ending`.
        """
        array = text.replace(b"\n", _BETWEEN)
        count = 1 + (len(array) - len(text)) // (len(_BETWEEN) - 1)
        if known >= count:
            return count
        parsed = _parse(text, array, count)
        latest = self._now + MAX_AHEAD
        others = fold_plain(self.totals, parsed[known:] if known else parsed, latest)
        self.records += count - known - len(others)
        self._unsettled += count
        if self._unsettled > _SETTLED_RECORDS and self._unsettled > self.totals.count_entries():
            self.totals.settle()
            self._unsettled = 0
        if others:
            lines = text.split(b"\n")
            offsets = list(accumulate((len(line) + 1 for line in lines), initial=offset))
            for i in others:
                self._line(file, offsets[known + i], lines[known + i], ending)
        return count

    def _line(self, file: str, offset: int, line: bytes, ending: bytes) -> None:
        self._now += 1  # keep the order of lines without a time
        try:
            fold_checked(self.totals, line, self._now)
        except ValueError as error:
            self.reject(Rejected(file, offset, str(error), line + ending))
        else:
            self.records += 1

    def continue_now(self) -> None:
        """Take the time of now for lines that come without one, and as the bound of plausible times."""
        self._now = max(self._now, time.time_ns())

    def doubt(self, file: str, why: str) -> None:
        """Add to the reasons of all items rejected in the file that they are not certain, and why."""
        self.rejected = [
            item._replace(reason=f"{item.reason}; not certain, because {why}") if item.file == file else item
            for item in self.rejected
        ]

    def reject(self, rejected: Rejected) -> None:
        """Count a rejected item, and keep it up to the limits."""
        self.totals.rejected += 1
        if len(self.rejected) >= _MAX_REJECTED:
            return  # counted, but not kept
        self._rejected_bytes += len(rejected.data)
        if self._rejected_bytes > _MAX_REJECTED_BYTES:
            rejected = Rejected(rejected.file, rejected.offset, rejected.reason, b"")
        self.rejected.append(rejected)
