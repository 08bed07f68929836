"""What happened when: sums for equal steps of time.

A step is a power of two of seconds wide, and aligned to the epoch. There are at most 384 steps in which
anything happened; a step in which nothing did is not kept. The width is the least one with which that is so.
One record of a clock that is years wrong makes one step, then, and the others stay as fine as they were.

Width, steps and sums follow from the set of the records: neither their order nor the parts that are merged
show in them. For records that take too many steps at one width do so with more records, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from m31a_mp.kinds.checks import saturated
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.parts import Exact, Part, Restoring, Sum, finite, integer
from m31a_mp.kinds.state import State
from m31a_mp.model import SessionMetrics, Timeline

MAX_STEPS = 384
"""With more than these, metrics.json of a usual session would be larger than 64 KiB."""
SECOND = 10**9


COUNTS = tuple(name for name in Timeline.columns() if name != "costs")
"""What is counted in a step, by the names of the timeline's columns."""


class Step:
    """What happened in one step: a number for each of `COUNTS`, and the cost."""

    __slots__ = (*COUNTS, "cost")
    cost: ExactSum

    def __init__(self) -> None:
        for name in COUNTS:
            setattr(self, name, 0)
        self.cost = ExactSum()

    def add(self, counts: Iterable[int], costs: Iterable[float]) -> None:
        """Add a number to each of `COUNTS`, and to the cost."""
        for name, count in zip(COUNTS, counts, strict=True):
            setattr(self, name, getattr(self, name) + count)
        self.cost.extend(costs)

    def merge(self, other: Step) -> None:
        """Add what happened in another one."""
        self.add(_counts_of(other), other.cost.parts())


_counts_of = attrgetter(*COUNTS)


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
        """The timeline without a step."""
        return StepsState(self)


class StepsState(State):
    """The steps in which anything happened."""

    def __init__(self, declaration: Steps) -> None:
        self.declaration = declaration
        self._seconds = 1
        self._steps: dict[int, Step] = {}

    def __len__(self) -> int:
        return 0  # it has no names

    def bounds(self, time: int, latest: int) -> tuple[int, int]:
        """From which time and up to which a step is that of a time; all in ns.

        Args:
            time: The time.
            latest: The latest time that there may be: the second bound is at most behind it.
        """
        width = self._seconds * SECOND
        start = time // width * width
        return start, min(start + width, latest + 1)

    def add(self, time: int, *counts: int, costs: list[float]) -> None:
        """Add to the step of a time in ns.

        Args:
            time: The time.
            counts: What to add to each of `COUNTS`.
            costs: What to add to the cost.
        """
        if any(counts):
            self._step(time).add(counts, costs)

    def _step(self, time: int) -> Step:
        """The step of a time in ns. A new one may make all steps wider."""
        number = time // SECOND // self._seconds
        if number not in self._steps:
            self._steps[number] = Step()
            while len(self._steps) > MAX_STEPS:
                self._widen()
            number = time // SECOND // self._seconds
        return self._steps[number]

    def begun(self) -> Iterator[int]:
        """Nothing: the entries know when they were first recorded."""
        return iter(())

    def settle(self) -> None:
        """Add up the costs that wait."""
        for step in self._steps.values():
            step.cost.settle()

    def merge(self, other: StepsState) -> None:
        """Add the steps of another state."""
        while self._seconds < other._seconds:
            self._widen()
        for number, step in other._steps.items():
            self._step(number * other._seconds * SECOND).merge(step)

    def shown(self) -> dict[str, Any]:
        """The steps as a field of `SessionMetrics`."""
        if not self._steps:
            return {self.declaration.name: None}
        numbers = sorted(self._steps)
        steps = [self._steps[number] for number in numbers]
        return {
            self.declaration.name: Timeline(
                self._seconds,
                [number * self._seconds for number in numbers],
                **{name: [saturated(count) for count in map(attrgetter(name), steps)] for name in COUNTS},
                costs=[step.cost.value() for step in steps],
            )
        }

    def kept(self) -> dict[str, Any] | None:
        """The checkpoint's part: of the cost of each step what a float does not hold; often one number."""
        rests = [self._steps[number].cost.parts()[1:] for number in sorted(self._steps)]
        return {"costs": [rest[0] if len(rest) == 1 else rest for rest in rests]} if any(rests) else None

    def restore(self, metrics: SessionMetrics, kept: Mapping[str, Any], at: Restoring) -> None:  # noqa: ARG002
        """Add what was shown."""
        shown: Timeline | None = getattr(metrics, self.declaration.name)
        if shown is None:
            return
        self._seconds = shown.step_seconds
        rests = kept.get("costs", [])
        if len(rests) != len(shown.starts):  # `save()` has put another timeline there
            rests = [[]] * len(shown.starts)
        for i, start in enumerate(shown.starts):
            counts = [getattr(shown, name)[i] for name in COUNTS]
            cost = shown.costs[i]
            rest = rests[i] if isinstance(rests[i], list) else [rests[i]]
            exact = ExactSum([cost, *map(finite, rest)])
            self._step(integer(start) * SECOND).add(
                counts, exact.parts() if exact.value() == cost else [cost]
            )

    def _widen(self) -> None:
        """Make each step twice as wide."""
        self._seconds *= 2
        finer, self._steps = self._steps, {}
        for number, step in finer.items():
            wider = self._steps.setdefault(number // 2, step)
            if wider is not step:
                wider.merge(step)
