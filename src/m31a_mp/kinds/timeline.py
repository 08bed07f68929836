"""The timeline: sums for equal steps of time.

The width of a step is a power of two in seconds, and steps are aligned to the epoch. Only steps with records
are kept, at most 384. The width is the smallest that meets this limit. One record from a clock that is years
wrong therefore adds one step, and does not make the other steps coarser.

Width, steps and sums depend only on the set of records, not on their order or on the parts that are merged:
records that need too many steps at one width also do so together with more records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import add
from typing import Any

from m31a_mp.kinds.checks import saturated
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.parts import Exact, Part, Restoring, Sum, finite, integer
from m31a_mp.kinds.state import State
from m31a_mp.model import SessionMetrics, Timeline

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

    def merge(self, other: Step) -> None:
        """Add the sums of another step."""
        self.add(other.counts, other.cost.parts())


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
            self._steps[number] = Step()
            while len(self._steps) > MAX_STEPS:
                self._widen()
            number = time // SECOND // self._seconds
        return self._steps[number]

    def begun(self) -> Iterator[int]:
        """Return no times: the entries of tables have the times of first records."""
        return iter(())

    def settle(self) -> None:
        """Add up the waiting costs."""
        for step in self._steps.values():
            step.cost.settle()

    def merge(self, other: StepsState) -> None:
        """Add the steps of another state."""
        while self._seconds < other._seconds:
            self._widen()
        for number, step in other._steps.items():
            self._step(number * other._seconds * SECOND).merge(step)

    def shown(self) -> dict[str, Any]:
        """Return the steps as a field of `SessionMetrics`."""
        if not self._steps:
            return {self.declaration.name: None}
        numbers = sorted(self._steps)
        steps = [self._steps[number] for number in numbers]
        return {
            self.declaration.name: Timeline(
                self._seconds,
                [number * self._seconds for number in numbers],
                **{name: [saturated(step.counts[i]) for step in steps] for i, name in enumerate(COUNTS)},
                costs=[step.cost.value() for step in steps],
            )
        }

    def kept(self) -> dict[str, Any] | None:
        """Return the checkpoint's part: for each step the rest of its rounded cost, mostly one number."""
        rests = [self._steps[number].cost.parts()[1:] for number in sorted(self._steps)]
        return {"costs": [rest[0] if len(rest) == 1 else rest for rest in rests]} if any(rests) else None

    def restore(self, metrics: SessionMetrics, kept: Mapping[str, Any], at: Restoring) -> None:  # noqa: ARG002
        """Add the steps of `metrics.json`."""
        shown: Timeline | None = getattr(metrics, self.declaration.name)
        if shown is None:
            return
        self._seconds = shown.step_seconds
        rests = kept.get("costs", [])
        if len(rests) != len(shown.starts):  # `save()` has replaced the timeline
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
