"""Fold: what stands in journals, added to the totals, each record once."""

from __future__ import annotations

import time
from collections.abc import Iterable

from m31a_mp.events import fold_record
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
        lines = batch.records.split(b"\n")[:-1]
        known = max(0, mark.last + 1 - batch.first)
        if known < len(lines):
            self._lines(file, batch, lines, known)
            mark.last = batch.first + len(lines) - 1
        self.totals.saw_dropped(mark, batch.dropped)

    def _lines(self, file: str, batch: Batch, lines: list[bytes], known: int) -> None:
        offset = batch.offset + sum(len(line) + 1 for line in lines[:known])
        for line in lines[known:]:
            self._line(file, offset, line)
            offset += len(line) + 1

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
