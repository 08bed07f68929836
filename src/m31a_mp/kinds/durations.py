"""Durations: the least, the greatest, the sum and the histogram; and calls, which succeed or fail.

Added durations wait in a list, then in counts by duration, until a result is needed or they take much memory.
This takes a fourth of the time of adding each at once. There may be 100,000 tools: empty attributes are None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from m31a_mp.kinds.histogram import Histogram

# The most distinct durations that are counted by duration. Beyond it, only the histogram is kept.
_MAX_DISTINCT = 4096
# Up to so many durations take less memory in the list than counted.
_FEW = 32


class Durations:
    """Durations in milliseconds.

    Attributes:
        waiting: Durations that are not counted yet. Whoever adds a duration appends it here.
    """

    __slots__ = ("_counts", "_greatest", "_histogram", "_least", "_total", "waiting")

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
        self.waiting: list[int] = []

    @property
    def total(self) -> int:
        """The sum of the durations."""
        self._take_in()
        return self._total

    @property
    def least(self) -> int | None:
        """The least duration; None without durations."""
        self._take_in()
        return self._least

    @property
    def greatest(self) -> int | None:
        """The greatest duration; None without durations."""
        self._take_in()
        return self._greatest

    def histogram(self) -> Histogram | None:
        """Return a histogram of the durations; None without durations."""
        self._take_in()
        return self._histogram and self._histogram.copy()

    def settle(self) -> None:
        """Count waiting durations to save memory."""
        if len(self.waiting) > _FEW:
            self._gather()
            if self._counts and len(self._counts) > _MAX_DISTINCT:
                self._take_in()

    def _gather(self) -> None:
        if self.waiting:
            self._counts = self._counts or Counter()
            self._counts.update(self.waiting)
            self.waiting.clear()

    def _take_in(self) -> None:
        self._gather()
        if counts := self._counts:
            self._counts = None
            self._add(counts)

    def _add(self, counts: Mapping[int, int]) -> None:
        """Add durations, given as counts by duration."""
        self._total += sum(duration * count for duration, count in counts.items())
        self._widen(min(counts), max(counts))
        self._histogram = self._histogram or Histogram()
        self._histogram.add(counts)

    def _widen(self, least: int | None, greatest: int | None) -> None:
        """Extend the bounds by durations that are not in the histogram yet.

        Unknown bounds stay unknown: files of earlier versions do not have them for models.
        """
        if self._histogram is None:
            self._least, self._greatest = least, greatest
        elif least is None or greatest is None or self._least is None or self._greatest is None:
            self._least = self._greatest = None
        else:
            self._least, self._greatest = min(self._least, least), max(self._greatest, greatest)


class Calls(Durations):
    """Calls: their number, outcomes and durations.

    Attributes:
        waiting: Calls that are not counted yet. Whoever adds a call appends its duration here if it
            succeeded, or `~duration`, which is negative, if it failed.
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
        """The numbers of all calls, successes and failures."""
        self._take_in()
        return self._calls, self._successes, self._failures

    def interrupt(self) -> None:
        """Add a failed call without a duration."""
        self._take_in()
        self._calls += 1
        self._failures += 1

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
