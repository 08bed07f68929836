"""Single values: a field of which only the latest record stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.kinds.parts import Restoring
from m31a_mp.kinds.state import State
from m31a_mp.model import SINGLE


class Single:
    """The declaration of a field of `SessionMetrics` with the values of the latest record.

    Attributes:
        name: The key in `metrics.json`, which is the field of `SessionMetrics`.
        fields: The fields of the record, and of the value in `SessionMetrics`.
    """

    def __init__(self, name: str, *fields: str) -> None:
        self.name = name
        self.fields = fields

    def new(self) -> SingleState:
        """Return the state without a record."""
        return SingleState(self)


class SingleState(State):
    """The values of the latest record; at equal times, the greatest values.

    Attributes:
        table: The declaration.
        first: The time of the first record, in ns; meaningless without any.
    """

    def __init__(self, table: Single) -> None:
        self.table = table
        self.first = INT64_MAX
        self._latest: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return bool(self._latest)

    def add(self, time: int, *values: Any) -> None:
        """Add a record."""
        self._latest = max(self._latest, (time, *values))

    def begun(self) -> Iterator[int]:
        """Return the time of the first record, if any."""
        return iter([self.first] if self._latest else [])

    def merge(self, *others: SingleState) -> None:
        """Add the records of other states."""
        self.first = min([self.first, *(other.first for other in others)])
        self._latest = max([self._latest, *(other._latest for other in others)])

    def shown(self) -> dict[str, Any]:
        """Return the values as a field of `SessionMetrics`."""
        values = self._latest[1:]
        return {self.table.name: SINGLE[self.table.name](*values) if values else None}

    def kept(self) -> dict[str, Any] | None:
        """Return the checkpoint's part: the times."""
        return {"first": self.first, "time": self._latest[0]} if self._latest else None

    def restore(self, read: Mapping[str, Any], kept: Mapping[str, Any], at: Restoring) -> None:
        """Add the values of `metrics.json`."""
        shown = read[self.table.name]
        if shown is not None:
            self.first = at.time(kept.get("first", at.started))
            self.add(
                at.time(kept.get("time", at.updated)), *(getattr(shown, field) for field in self.table.fields)
            )
