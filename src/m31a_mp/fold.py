"""Fold: what stands in journals, added to the totals, each record once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import accumulate

import orjson

from m31a_mp.events import fold_known, fold_record
from m31a_mp.journal import Batch, Damage, Line, Torn
from m31a_mp.rejected import Rejected
from m31a_mp.totals import TooManyEntriesError, Totals

# What is set aside stays in memory until it is written. Of more than this only the place is kept.
_MAX_REJECTED_BYTES = 16 * 1024 * 1024
_MAX_REJECTED = 10_000


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
            self.reject(Rejected(file, batch.offset, str(error), batch.records))
            return
        known = max(0, mark.last + 1 - batch.first)
        if known < batch.count:
            self._records(file, batch, known)
            mark.last = batch.first + batch.count - 1
        self.totals.saw_dropped(mark, batch.dropped)

    def _records(self, file: str, batch: Batch, known: int) -> None:
        """Add those behind the first `known` ones."""
        try:
            # As one array: that takes two thirds of the time of parsing line by line.
            parsed = orjson.loads(b"[%b]" % batch.records[:-1].replace(b"\n", b","))
        except orjson.JSONDecodeError:
            parsed = []
        if len(parsed) == batch.count:
            others = [known + i for i in fold_known(self.totals, parsed[known:])]
        else:
            others = list(range(known, batch.count))
        self.records += batch.count - known - len(others)
        if others:
            self._lines(file, batch, others)

    def _lines(self, file: str, batch: Batch, positions: list[int]) -> None:
        lines = batch.records.split(b"\n")
        offsets = list(accumulate((len(line) + 1 for line in lines), initial=batch.offset))
        for position in positions:
            self._line(file, offsets[position], lines[position])

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
