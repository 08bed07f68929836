"""Whole numbers on the command line."""

from __future__ import annotations

import click

from m31a_mp.kinds.checks import INT64_MAX


class WholeNumber(click.ParamType):  # type: ignore[type-arg]  # which click 8.1 does not take
    """A whole number that a record may hold. Click's own type would show its bounds in every help line.

    Attributes:
        least, most: The least and the greatest accepted number.
    """

    name = "n"

    def __init__(self, least: int = 0, most: int = INT64_MAX) -> None:
        self.least = least
        self.most = most

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse an argument."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        if number < self.least:
            self.fail(f"{number} is less than {self.least}", param, ctx)
        if number > self.most:
            self.fail(f"{number} is more than {self.most}", param, ctx)
        return number
