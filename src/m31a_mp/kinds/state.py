"""What the states of all tables, lists and single things have in common."""

from __future__ import annotations

from typing import Any


class State:
    """What was recorded of one declaration. Equal states show and keep the same."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.shown() == other.shown() and self.kept() == other.kept()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def settle(self) -> None:
        """Count what waits, so that it takes no more memory than it must."""

    def shown(self) -> dict[str, Any]:
        """The fields of `SessionMetrics` that show it."""
        raise NotImplementedError

    def kept(self) -> dict[str, Any] | None:
        """What is not shown, for the checkpoint; nothing if there is nothing."""
        raise NotImplementedError
