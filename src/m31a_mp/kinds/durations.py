"""Durations: the least, the greatest, their sum and their histogram; and calls, which succeed or fail.

What is added waits in a list, and then in counts by duration, until it is asked for or takes much room. So
one duration costs a fourth of what it does by itself. There may be 100,000 tools: what is empty is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from m31a_mp.kinds.histogram import Histogram

# Of more distinct durations than these, only the histogram is kept.
_MAX_DISTINCT = 4096
# As few take less room in the list than counted.
_FEW = 32


class Durations:
    """Durations in milliseconds.

    Attributes:
        append: Adds one.
    """

    __slots__ = ("_counts", "_greatest", "_histogram", "_least", "_total", "_waiting", "append")

    def __init__(
        self,
        total: int = 0,
        histogram: Histogram | None = None,
        least: int | None = None,
        greatest: int | None = None,
    ) -> None:
        self._total = total
        self._histogram = histogram
        self._least = least
        self._greatest = greatest
        self._counts: Counter[int] | None = None
        self._waiting: list[int] = []
        self.append = self._waiting.append

    @property
    def total(self) -> int:
        """The sum of them."""
        self._take_in()
        return self._total

    @property
    def least(self) -> int | None:
        """The least of them; None while there is none."""
        self._take_in()
        return self._least

    @property
    def greatest(self) -> int | None:
        """The greatest of them; None while there is none."""
        self._take_in()
        return self._greatest

    def histogram(self) -> Histogram | None:
        """A histogram of them; None while there is none."""
        self._take_in()
        return self._histogram and self._histogram.copy()

    def settle(self) -> None:
        """Count those that wait, so that they take no more memory than they must."""
        if len(self._waiting) > _FEW:
            self._gather()
            if self._counts and len(self._counts) > _MAX_DISTINCT:
                self._take_in()

    def merge(self, other: Durations) -> None:
        """Add the durations of another one."""
        self._take_in()
        self._total += other.total
        if other._histogram:
            self._widen(other._least, other._greatest)
            self._histogram = self._histogram or Histogram()
            self._histogram.merge(other._histogram)

    def _gather(self) -> None:
        if self._waiting:
            self._counts = self._counts or Counter()
            self._counts.update(self._waiting)
            self._waiting.clear()

    def _take_in(self) -> None:
        self._gather()
        if counts := self._counts:
            self._counts = None
            self._add(counts)

    def _add(self, counts: Mapping[int, int]) -> None:
        """Add durations: how many there are of each."""
        self._total += sum(duration * count for duration, count in counts.items())
        self._widen(min(counts), max(counts))
        self._histogram = self._histogram or Histogram()
        self._histogram.add(counts)

    def _widen(self, least: int | None, greatest: int | None) -> None:
        """Take the bounds of durations into account that are not in the histogram yet.

        Where those of earlier ones are not known, which a file of an earlier version does not tell of models,
        they stay unknown.
        """
        if self._histogram is None:
            self._least, self._greatest = least, greatest
        elif least is None or greatest is None or self._least is None or self._greatest is None:
            self._least = self._greatest = None
        else:
            self._least, self._greatest = min(self._least, least), max(self._greatest, greatest)


class Calls(Durations):
    """Calls: how many there were, how they ended, and how long they took.

    Attributes:
        append: Adds one: its duration if it succeeded, and `~duration`, which is negative, if it failed.
    """

    __slots__ = ("_calls", "_failures", "_successes")

    def __init__(
        self,
        counts: tuple[int, int, int] = (0, 0, 0),
        total: int = 0,
        histogram: Histogram | None = None,
        least: int | None = None,
        greatest: int | None = None,
    ) -> None:
        super().__init__(total, histogram, least, greatest)
        self._calls, self._successes, self._failures = counts

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many there were, how many succeeded, and how many failed."""
        self._take_in()
        return self._calls, self._successes, self._failures

    def interrupt(self) -> None:
        """Add a call that failed, whose duration nobody knows."""
        self._take_in()
        self._calls += 1
        self._failures += 1

    def merge(self, other: Durations) -> None:
        """Add the calls of another one."""
        super().merge(other)
        if isinstance(other, Calls):
            calls, successes, failures = other.counts
            self._calls += calls
            self._successes += successes
            self._failures += failures

    def _add(self, counts: Mapping[int, int]) -> None:
        durations: dict[int, int] = {}
        failures = 0
        for ended, count in counts.items():
            duration = ended
            if ended < 0:
                duration = ~ended
                failures += count
            durations[duration] = durations.get(duration, 0) + count
        calls = sum(counts.values())
        self._calls += calls
        self._successes += calls - failures
        self._failures += failures
        super()._add(durations)
