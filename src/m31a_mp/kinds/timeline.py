"""The timeline: sums for equal steps of time.

The width of a step is a power of two in seconds, and steps are aligned to the epoch. Only steps with records
are kept, at most 384. The width is the smallest that meets this limit. One record from a clock that is years
wrong therefore adds one step, and does not make the other steps coarser.

Width, steps and sums depend only on the set of records, not on their order or on the parts that are merged:
records that need too many steps at one width also do so together with more records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import add
from typing import Any

from m31a_mp.kinds.checks import saturated
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.parts import Exact, Part, Restoring, Sum, exact
from m31a_mp.kinds.state import State
from m31a_mp.model import Timeline

MAX_STEPS = 384
"""The most steps. With more of them, `metrics.json` of a usual session would be larger than 64 KiB."""
SECOND = 10**9


COUNTS = tuple(name for name in Timeline.columns() if name != "costs")
"""The names of the counts in a step, which are columns of the timeline."""


class Step:
    """The sums of one step.

    Attributes:
        counts: A number for each of `COUNTS`.
        cost: The cost.
    """

    __slots__ = ("cost", "counts")

    def __init__(self) -> None:
        self.counts = [0] * len(COUNTS)
        self.cost = ExactSum()

    def add(self, counts: Iterable[int], costs: Iterable[float]) -> None:
        """Add a number to each of `COUNTS`, and to the cost."""
        self.counts = list(map(add, self.counts, counts))
        self.cost.waiting.extend(costs)

    def packed(self) -> tuple[Any, ...]:
        """Return the packed form: a tuple of plain values, which takes little memory and adds up fast.

        It has a number for each of `COUNTS`, then the cost as a tuple of the parts of its sum.
        """
        return *self.counts, tuple(self.cost.parts())

    @classmethod
    def unpacked(cls, packed: tuple[Any, ...]) -> Step:
        """Return the step of a packed form."""
        step = cls()
        *step.counts, costs = packed
        step.cost.waiting.extend(costs)
        return step


def _merged(steps: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the sum of packed steps."""
    if len(steps) == 1:
        return steps[0]
    *counts, costs = zip(*steps, strict=True)
    return *map(sum, counts), tuple(ExactSum(list(chain.from_iterable(costs))).parts())


class Steps:
    """The declaration of the timeline.

    Attributes:
        name: The key in `metrics.json`, which is the field of `SessionMetrics`.
        parts: The parts of a step.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: dict[str, Part] = {name: Sum() for name in COUNTS} | {"cost": Exact(keep="costs")}

    def new(self) -> StepsState:
        """Return the timeline without steps."""
        return StepsState(self)


class StepsState(State):
    """The steps with records."""

    def __init__(self, declaration: Steps) -> None:
        self.declaration = declaration
        self._seconds = 1
        self._steps: dict[int, Step] = {}
        # Steps that were restored or merged, and not added to since.
        self._packed: dict[int, tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return 0  # the timeline has no named entries

    def bounds(self, time: int, latest: int) -> tuple[int, int]:
        """Return the start and the end of the step at a time, all in ns.

        Args:
            time: The time.
            latest: The latest possible time. The end is limited to the nanosecond after it.
        """
        width = self._seconds * SECOND
        start = time // width * width
        return start, min(start + width, latest + 1)

    def add(self, time: int, *counts: int, costs: list[float]) -> None:
        """Add to the step at a time.

        Args:
            time: The time in ns.
            counts: The number to add to each of `COUNTS`.
            costs: The costs to add.
        """
        if any(counts):
            self._step(time).add(counts, costs)

    def _step(self, time: int) -> Step:
        """Return the step at a time in ns. A new step may make all steps wider."""
        number = time // SECOND // self._seconds
        if number not in self._steps:
            if number not in self._packed:
                self._packed[number] = Step().packed()
                self._limit()
                number = time // SECOND // self._seconds
            self._steps[number] = Step.unpacked(self._packed.pop(number))
        return self._steps[number]

    def _limit(self) -> None:
        while len(self._steps) + len(self._packed) > MAX_STEPS:
            self._widen(2 * self._seconds)

    def begun(self) -> Iterator[int]:
        """Return no times: the entries of tables have the times of first records."""
        return iter(())

    def settle(self) -> None:
        """Add up the waiting costs."""
        for step in self._steps.values():
            step.cost.settle()

    def merge(self, *others: StepsState) -> None:
        """Add the steps of other states."""
        self._widen(max([self._seconds, *[other._seconds for other in others]]))
        self._add([(other._seconds, other._all_packed()) for other in (self, *others)])

    def _add(self, found: list[tuple[int, dict[int, tuple[Any, ...]]]]) -> None:
        """Replace the steps by the sum of packed ones. Each group has the width of its steps."""
        steps: dict[int, list[tuple[Any, ...]]] = {}
        for seconds, group in found:
            finer = self._seconds // seconds
            for number, packed in group.items():
                steps.setdefault(number // finer, []).append(packed)
        self._steps.clear()
        self._packed = {number: _merged(parts) for number, parts in steps.items()}
        self._limit()

    def _widen(self, seconds: int) -> None:
        """Make the steps wider."""
        if seconds > self._seconds:
            before = self._seconds
            self._seconds = seconds
            self._add([(before, self._all_packed())])

    def _all_packed(self) -> dict[int, tuple[Any, ...]]:
        return self._packed | {number: step.packed() for number, step in self._steps.items()}

    def shown(self) -> dict[str, Any]:
        """Return the steps as a field of `SessionMetrics`."""
        steps = sorted(self._all_packed().items())
        if not steps:
            return {self.declaration.name: None}
        *counts, costs = zip(*[packed for _, packed in steps], strict=True)
        return {
            self.declaration.name: Timeline(
                self._seconds,
                [number * self._seconds for number, _ in steps],
                **{name: list(map(saturated, column)) for name, column in zip(COUNTS, counts, strict=True)},
                costs=[parts[0] if parts else 0.0 for parts in costs],
            )
        }

    def kept(self) -> dict[str, Any] | None:
        """Return the checkpoint's part: for each step the rest of its rounded cost, mostly one number."""
        rests = [list(packed[-1][1:]) for _, packed in sorted(self._all_packed().items())]
        return {"costs": [rest[0] if len(rest) == 1 else rest for rest in rests]} if any(rests) else None

    def restore(self, read: Mapping[str, Any], kept: Mapping[str, Any], at: Restoring) -> None:  # noqa: ARG002
        """Add the steps of `metrics.json`."""
        shown: Timeline | None = read[self.declaration.name]
        if shown is None:
            return
        rests = kept.get("costs", [])
        if len(rests) != len(shown.starts):  # `save()` has replaced the timeline
            rests = [[]] * len(shown.starts)
        costs = list(map(_exact, shown.costs, rests))
        columns = [getattr(shown, name) for name in COUNTS]
        self._seconds = shown.step_seconds
        numbers = [start // shown.step_seconds for start in shown.starts]
        steps = list(zip(*columns, costs, strict=True))
        self._packed = dict(zip(numbers, steps, strict=True))
        if len(self._packed) < len(steps) or len(steps) > MAX_STEPS:  # as no release of this library wrote it
            self._packed = {}
            self._add([(self._seconds, {number: step}) for number, step in zip(numbers, steps, strict=True)])


def _exact(cost: float, rest: object) -> tuple[float, ...]:
    """Return the parts of an exact sum: the shown cost, and the rest of it that was kept."""
    if type(rest) is float and cost + rest == cost:  # mostly
        return cost, rest
    if rest == []:
        return (cost,)
    return exact(cost, [cost, *(rest if isinstance(rest, list) else [rest])])
