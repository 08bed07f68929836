"""Tables that adapt to the width: columns are left out and names are cut, but never numbers and states.

The tables of rich cut all columns alike, and take half a millisecond for each row. Only a terminal needs
rich: to import it takes twice as long as to start Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

ELLIPSIS = "…"

Cell = str | tuple[str, str]
"""A text, or a text and its style."""

_GAP = 2
# The most cells of a name. In a pipe, a longer name would make every line as long.
_LONGEST = 200
# A name keeps these tenths of the width, and at least the comfort, before a column is left out for it. It
# keeps `_LEAST` cells in any case.
_TENTHS_OF_WIDTH = 3
_LEAST_COMFORT = 12
_LEAST = 5


class Line:
    """A line of text. A terminal wraps it where it is too long."""

    def __init__(self, *cells: Cell) -> None:
        self._pieces = [(cell, "") if isinstance(cell, str) else cell for cell in cells]

    def __str__(self) -> str:
        return "".join(text for text, _ in self._pieces)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment
        from rich.style import Style
        from rich.text import Text

        if cell_len(str(self)) > options.max_width:
            # Wrap between words, or cells of a table: a number is never cut.
            yield Text.assemble(*self._pieces, overflow="fold")
            return
        for text, style in self._pieces:
            yield Segment(text, console.get_style(style) if style else Style.null())
        yield Segment.line()


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: The title.
        rank: 0 for a column that stays at any width. Other columns get room in the order of their ranks.
        short: The title for narrow tables; by default the same.
        is_right: Whether the column is aligned to the right, like numbers.
        may_be_cut: Whether cells may be cut in the middle, like names.
    """

    title: str
    rank: int = 0
    short: str = ""
    is_right: bool = True
    may_be_cut: bool = False


class Fit(NamedTuple):
    """The part of a table that fits.

    Attributes:
        indexes: The indexes of the columns that stay.
        columns: These columns, with the titles that fit.
        widths: The width of each column, in cells.
    """

    indexes: list[int]
    columns: list[Column]
    widths: list[int]

    @property
    def width(self) -> int:
        """The total width, in cells."""
        return sum(self.widths) + _GAP * (len(self.widths) - 1)


class Table:
    """Rows under columns, as wide as the content needs and at most as wide as the room.

    Attributes:
        title: The title; empty for none.
        columns: The columns.
        rows: The rows, each with a cell for each column.
        total: A last row, under a line; None for none.
        remark: The text after the title.
        more: A text that says how many rows were left out.
    """

    def __init__(  # noqa: PLR0913  # one for each attribute
        self,
        title: str,
        columns: Sequence[Column],
        rows: list[Sequence[Cell]] | None = None,
        total: Sequence[Cell] | None = None,
        *,
        remark: str = "",
        more: str = "",
    ) -> None:
        self.title = title
        self.columns = columns
        self.rows = rows or []
        self.total = total
        self.remark = remark
        self.more = more

    def fit(self, width: int) -> Fit:
        """Choose columns and widths for a width in cells."""
        return fit(self.columns, self._content_widths(), width)

    def hidden(self, width: int) -> list[str]:
        """List the titles of the columns that do not fit."""
        kept = set(self.fit(width).indexes)
        return [column.title for i, column in enumerate(self.columns) if i not in kept]

    def lines(self, width: int) -> Iterator[Line]:
        """Yield the lines for a width in cells."""
        found = self.fit(width)
        if self.title:
            yield Line((self.title + self.remark, "bold"))
        rule = Line(("─" * found.width, "dim"))
        yield _line([(column.title, "dim") for column in found.columns], found, "dim")
        yield rule
        for row in self.rows:
            yield _line([row[i] for i in found.indexes], found)
        if self.total:
            yield rule
            yield _line([self.total[i] for i in found.indexes], found, "bold")

    def _content_widths(self) -> list[int]:
        rows = [*self.rows, self.total] if self.total else self.rows
        return [max((cell_len(_text(row[i])) for row in rows), default=0) for i in range(len(self.columns))]


def fit(columns: Sequence[Column], content: Sequence[int], width: int) -> Fit:
    """Choose the columns and widths for a width in cells.

    If the columns are too wide, long names are cut, short titles are used, and columns are added in the order
    of their ranks while they fit. A column that is too wide leaves its room to later ones.

    Args:
        columns: All columns.
        content: The width of the widest cell of each column.
        width: The available cells.

    Returns:
        The choice. It exceeds `width` only if the parts that must not be cut do.
    """
    comfort = min(max(_LEAST_COMFORT, width * _TENTHS_OF_WIDTH // 10), _LONGEST)
    if found := _fit_names(range(len(columns)), columns, content, width, comfort):
        return found
    short = [column._replace(title=column.short or column.title) for column in columns]
    kept = [i for i, column in enumerate(columns) if not column.rank]
    found = _fit_names(kept, short, content, width, comfort) or _fit_names(
        kept, short, content, width, _LEAST
    )
    if not found:
        return Fit(kept, [short[i] for i in kept], [_least(short[i], content[i], _LEAST) for i in kept])
    for i in sorted((i for i in range(len(columns)) if columns[i].rank), key=lambda i: columns[i].rank):
        more = sorted([*kept, i])
        if wider := _fit_names(more, short, content, width, comfort):
            kept, found = more, wider
    return found


def _fit_names(
    kept: Sequence[int], columns: Sequence[Column], content: Sequence[int], width: int, comfort: int
) -> Fit | None:
    """Fit these columns, or return None. Remaining room is shared equally by the names that are cut."""
    chosen = [columns[i] for i in kept]
    widths = [_least(columns[i], content[i], comfort) for i in kept]
    left = width - sum(widths) - _GAP * (len(kept) - 1)
    if left < 0:
        return None
    wanted = [min(content[i], _LONGEST) for i in kept]
    while left and (cut := [n for n, w in enumerate(widths) if w < wanted[n] and chosen[n].may_be_cut]):
        for n in cut:
            more = min(wanted[n] - widths[n], max(1, left // len(cut)), left)
            widths[n] += more
            left -= more
    return Fit(list(kept), chosen, widths)


def _least(column: Column, content: int, comfort: int) -> int:
    """Return the least width of a column."""
    return max(cell_len(column.title), min(content, comfort) if column.may_be_cut else content)


def _line(cells: Iterable[Cell], found: Fit, style: str = "") -> Line:
    """Format one line, without padding after the last cell."""
    pieces: list[tuple[str, str]] = []
    plain = ""
    gap = ""
    for cell, column, width in zip(cells, found.columns, found.widths, strict=True):
        text = _text(cell)
        own_style = "" if isinstance(cell, str) else cell[1]
        if column.may_be_cut:
            text = cut(text, width)
        padding = " " * (width - cell_len(text))
        plain += gap + (padding if column.is_right else "")
        if own_style and own_style != style:
            pieces += [(plain, style), (text, own_style)]
            plain = ""
        else:
            plain += text
        gap = " " * _GAP + ("" if column.is_right else padding)
    pieces.append((plain, style))
    return Line(*(piece for piece in pieces if piece[0]))


def cut(text: str, width: int) -> str:
    """Cut a text in the middle: `very-long…name`.

    Args:
        text: A text in one line.
        width: The most cells of a terminal: a wide character takes two, a combining character none.

    Returns:
        The cut text, or the text itself if it is short enough.
    """
    if cell_len(text) <= width:
        return text
    if width < 1:
        return ""
    last = _fill(reversed(list(_clusters(text[-_reach(text, width) :]))), (width - 1) // 2)
    first = _fill(_clusters(text), width - 1 - sum(map(cell_len, last)))
    return "".join([*first, ELLIPSIS, *reversed(last)])


def _reach(text: str, width: int) -> int:
    """Return how many characters at the end certainly fill `width` cells: all if many take no cells."""
    return width if cell_len(text[-width:]) >= width else len(text)


def _fill(clusters: Iterable[str], width: int) -> list[str]:
    """Return the first clusters that fit into `width` cells."""
    found = []
    for cluster in clusters:
        width -= cell_len(cluster)
        if width < 0:
            break
        found.append(cluster)
    return found


def _clusters(text: str) -> Iterator[str]:
    """Yield each character with its combining characters: a cut between them would show another letter."""
    cluster = ""
    for character in text:
        if cluster and cell_len(character):
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def bad(number: float) -> Cell:
    """Format a number of bad things, in red unless 0."""
    return (f"{number:,}", "red") if number else "0"
