"""Fold: what stands in journals, added to the totals, each record once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

import orjson

from m31a_mp.decoder import Damage, Line, Torn
from m31a_mp.events import fold_known, fold_record
from m31a_mp.journal import Batch, count_lines
from m31a_mp.rejected import Rejected
from m31a_mp.totals import TooManyEntriesError, Totals

# What is set aside stays in memory until it is written. Of more than this only the place is kept.
_MAX_REJECTED_BYTES = 16 * 1024 * 1024
_MAX_REJECTED = 10_000
# Lines are parsed as one array, which takes two thirds of the time of one by one; of more at a time than
# this, the parsed records would leave the processor's cache before they are counted.
_PIECE_BYTES = 32 * 1024


def _pieces(records: bytes) -> Iterator[bytes]:
    """Lines in pieces of about that size."""
    start = 0
    while start < len(records):
        end = records.find(b"\n", start + _PIECE_BYTES) + 1 or len(records)
        yield records[start:end]
        start = end


class Fold:
    """One run over some journals.

    Attributes:
        totals: What is added to.
        records: How many records were added.
        rejected: What was not, and why.
        torn: Where in the last journal room for an append was not filled yet, if it was not.
    """

    def __init__(self, totals: Totals) -> None:
        self.totals = totals
        self.records = 0
        self.rejected: list[Rejected] = []
        self.torn: int | None = None
        self._rejected_bytes = 0
        self._now = time.time_ns()

    def journal(self, file: str, items: Iterable[Batch | Line | Damage | Torn]) -> None:
        """Add what stands in a journal.

        Args:
            file: Its name, for what is rejected.
            items: What was read from it, in order.
        """
        self.torn = None
        for item in items:
            match item:
                case Batch():
                    self.batch(file, item)
                case Line():
                    self._line(file, item.offset, item.text)
                case Torn():
                    self.torn = item.offset
                case Damage():
                    self.reject(Rejected(file, item.offset, item.reason, item.data))

    def batch(self, file: str, batch: Batch) -> None:
        """Add the records of a batch that are not counted yet: one that comes again adds nothing."""
        try:
            mark = self.totals.writer(batch.writer)
        except TooManyEntriesError as error:
            self.reject(Rejected(file, batch.offset, str(error), bytes(batch.records)))
            return
        number, offset = batch.first, batch.offset
        for piece in _pieces(bytes(batch.records)):
            count = count_lines(piece)
            known = max(0, mark.last + 1 - number)
            if known < count:
                self._piece(file, offset, piece, count, known)
                mark.last = number + count - 1
            number += count
            offset += len(piece)
        self.totals.saw_dropped(mark, batch.dropped)

    def _piece(self, file: str, offset: int, piece: bytes, count: int, known: int) -> None:
        """Add the records of some lines, but for the first `known` ones."""
        try:
            parsed = orjson.loads(b"[%b]" % piece[:-1].replace(b"\n", b","))
        except orjson.JSONDecodeError:
            parsed = []
        if len(parsed) == count:
            others = [known + i for i in fold_known(self.totals, parsed[known:])]
        else:
            others = list(range(known, count))
        self.records += count - known - len(others)
        if others:
            lines = piece.split(b"\n")
            offsets = list(accumulate((len(line) + 1 for line in lines), initial=offset))
            for i in others:
                self._line(file, offsets[i], lines[i])

    def _line(self, file: str, offset: int, line: bytes) -> None:
        self._now += 1  # lines without a time keep their order
        try:
            fold_record(self.totals, line, self._now)
        except ValueError as error:
            self.reject(Rejected(file, offset, str(error), line))
        else:
            self.records += 1

    def reject(self, rejected: Rejected) -> None:
        """Set something aside."""
        self.totals.rejected += 1
        if len(self.rejected) >= _MAX_REJECTED:
            return  # counted all the same
        self._rejected_bytes += len(rejected.data)
        if self._rejected_bytes > _MAX_REJECTED_BYTES:
            rejected = Rejected(rejected.file, rejected.offset, rejected.reason, b"")
        self.rejected.append(rejected)
