"""The base class of the states of all tables, lists and single values."""

from __future__ import annotations

from typing import Any


class State:
    """The records of one declaration, added up. Equal states show and keep the same."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.shown() == other.shown() and self.kept() == other.kept()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def settle(self) -> None:
        """Count waiting values to save memory."""

    def shown(self) -> dict[str, Any]:
        """Return the fields of `SessionMetrics` that show the state."""
        raise NotImplementedError

    def kept(self) -> dict[str, Any] | None:
        """Return the state that is not shown, for the checkpoint; None if there is none."""
        raise NotImplementedError
