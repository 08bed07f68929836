"""The tables of a report: a row for each name, a cell for each column, a line in it for each session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from m31a_mp.exports.report_durations import Axis, Distribution
from m31a_mp.exports.report_names import MAX_NAME, Name, name_of
from m31a_mp.wording import change, count, duration

MAX_ROWS = 100
"""The most rows of a table."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value in a cell.

    Attributes:
        text: The text.
        order: The number to sort by, and to compare; None if it is not known.
        is_bad: Whether the value is a failure.
        is_exact: Whether the number is known exactly.
        hint: More of a text that is cut.
    """

    text: str
    order: float | None = None
    is_bad: bool = False
    is_exact: bool = True
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: The title.
        of: Returns the value of an entry.
        is_text: Whether the values are texts, which are aligned to the left.
        is_optional: Whether the column is left out if all its values are zero, empty or not known.
        has_bars: Whether bars show the values.
    """

    title: str
    of: Callable[[Any], Value]
    is_text: bool = False
    is_optional: bool = False
    has_bars: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell.

    Attributes:
        values: A value for each session.
        change: How the second value differs from the first; empty if it does not, or if that is not known.
        bars: The lengths of the bars of the values, in percent; empty without bars.
    """

    values: list[Value]
    change: str = ""
    bars: list[str] = field(default_factory=list)

    @property
    def order(self) -> float | None:
        """The number to sort by: of the last session that has one."""
        known = [value.order for value in self.values if value.order is not None]
        return known[-1] if known else None


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its name, its cells, and the distribution of its durations."""

    name: Name
    cells: list[Cell]
    distribution: Distribution | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        key: A word that names the table in the page.
        title: The title.
        noun: What the first column holds.
        columns: The other columns.
        rows: The rows.
        total: A last row with the sums; None without one.
        remark: A text below the title.
        more: A text that says how many rows are left out; empty if none are.
        axis: The axis of the distributions; None without any.
        tag: The session whose table it is, if the page is of several.
    """

    key: str
    title: str
    noun: str
    columns: list[Column]
    rows: list[Row]
    total: Row | None = None
    remark: str = ""
    more: str = ""
    axis: Axis | None = None
    tag: str = ""


Entries = tuple[str, list[Any]]
"""The name of entries, and the entry of each session."""


def table(  # noqa: PLR0913  # the parts of a table
    key: str,
    title: str,
    noun: str,
    columns: Sequence[Column],
    entries: Sequence[Entries],
    *,
    total: Sequence[Any] = (),
    remark: str = "",
    nouns: str = "",
) -> Table:
    """Make a table of the first `MAX_ROWS` rows.

    Args:
        key: A word that names the table in the page.
        title: The title.
        noun: What the first column holds.
        columns: The other columns.
        entries: The rows in order.
        total: The sums, for each session; empty for a table without such a row.
        remark: A text below the title.
        nouns: The plural of `noun`; by default with an s.
    """
    first = entries[:MAX_ROWS]
    everything = [*total, *(one for _, row in first for one in row)]
    kept = [
        column
        for column in columns
        if not column.is_optional or any(_is_there(column.of(one)) for one in everything)
    ]
    columns_of_cells = [_cells(column, [row for _, row in first]) for column in kept]
    cells = zip(*columns_of_cells, strict=True) if kept else ([] for _ in first)
    rows = [Row(name_of(name), list(row)) for (name, _), row in zip(first, cells, strict=True)]
    sums = None
    if total and len(entries) > 1:
        without_bars = [replace(column, has_bars=False) for column in kept]
        sums = Row(Name("in all"), [_cells(column, [total])[0] for column in without_bars])
    left = len(entries) - len(first)
    more = "and " + count(left, f"more {noun}", f"more {nouns or noun + 's'}") if left else ""
    return Table(key, title, noun, kept, rows, sums, remark, more)


def _is_there(value: Value) -> bool:
    return bool(value.order) if value.order is not None else value.text not in {"", "-"}


def _cells(column: Column, rows: Sequence[Sequence[Any]]) -> list[Cell]:
    """Make the cells of a column."""
    values = [[column.of(one) for one in row] for row in rows]
    if not column.has_bars:
        return [Cell(row, change_of(row)) for row in values]
    most = max((value.order or 0 for row in values for value in row), default=0) or 1
    return [Cell(row, change_of(row), [_bar(value, most) for value in row]) for row in values]


def _bar(value: Value, most: float) -> str:
    return f"{100 * ((value.order or 0) / most):.1f}".removesuffix(".0") + "%"


def change_of(values: Sequence[Value]) -> str:
    """Compare two values; empty if they are the same, or if there are not two numbers."""
    if len(values) != 2:  # noqa: PLR2004  # before and after
        return ""
    before, after = values
    if before.order is None or after.order is None or before.order == after.order:
        return ""
    return change(before.order, after.order) if before.is_exact and after.is_exact else "change not known"


# --- Values -------------------------------------------------------------------------------------------


def number(value: int, *, is_bad: bool = False) -> Value:
    """Return a count. A bad count is shown as a failure unless it is 0."""
    return Value(f"{value:,}", value, is_bad=is_bad and value > 0)


def milliseconds(value: float | None) -> Value:
    """Return a duration; None if it is not known."""
    return Value(duration(value), value)


def time_text(time: datetime) -> str:
    """Format a time in UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def text(whole: str) -> Value:
    """Return a text, cut if it is long; `-` if it is empty."""
    named = name_of(whole, 2 * MAX_NAME)
    return Value(named.text or "-", hint=named.hint)
