"""Tables at any width: names are cut in the middle, columns leave by their rank, numbers stay whole."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from m31a_mp.cli.layout import ELLIPSIS, Column, Table, cut

COLUMNS = (
    Column("name", is_right=False, may_be_cut=True),
    Column("state", is_right=False),
    Column("first", 1),
    Column("a third column", 3, short="third"),
    Column("second", 2),
)

numbers = st.integers(0, (1 << 63) - 1).map("{:,}".format)
states = st.sampled_from(["finished", "newer version", "not closed"])
texts = st.text(st.sampled_from("abc-日本語👍e\u0301\u20dd\ufe0f"), min_size=1, max_size=300)
rows = st.lists(st.tuples(texts, states, numbers, numbers, numbers), min_size=1, max_size=4)


def lines_of(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False)
    for line in table.lines(width):
        console.print(line)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_table_with_room_for_all_of_it_is_as_wide_as_it_needs_to_be() -> None:
    table = Table("Title", COLUMNS, [["a", "ok", "1", "22", ("333", "red")]], ["in all", "-", "1", "2", "3"])
    assert lines_of(table, 80) == [
        "Title",
        "name    state  first  a third column  second",
        "────────────────────────────────────────────",
        "a       ok         1              22     333",
        "────────────────────────────────────────────",
        "in all  -          1               2       3",
    ]
    assert table.hidden(80) == []


@pytest.mark.parametrize(
    ("width", "hidden", "header"),
    [
        (100, [], "name state first a third column second"),
        (60, [], "name state first a third column second"),
        (44, [], "name state first third second"),
        (36, ["a third column"], "name state first second"),
        (28, ["a third column", "second"], "name state first"),
        (21, ["first", "a third column", "second"], "name state"),
        (12, ["first", "a third column", "second"], "name state"),
    ],
)
def test_columns_leave_by_their_rank(width: int, hidden: list[str], header: str) -> None:
    table = Table("", COLUMNS, [["a-name-that-is-longer-than-its-share", "ok", "1", "2", "3"]])
    assert table.hidden(width) == hidden
    lines = lines_of(table, width)
    assert " ".join(lines[0].split()) == header
    assert len(lines[1]) == min(width, 74)  # what is left belongs to the name
    assert all(cell_len(line) <= width for line in lines)


def test_column_that_is_too_wide_leaves_its_room_to_the_next() -> None:
    table = Table("", COLUMNS, [["name", "ok", "9" * 30, "2", "3"]])
    assert table.hidden(30) == ["first"]


@given(rows=rows, width=st.integers(8, 160))
def test_at_any_width_no_line_is_wider_and_no_number_and_no_state_is_cut(
    rows: list[tuple[str, ...]], width: int
) -> None:
    table = Table("", COLUMNS, list(rows))
    found = table.fit(width)
    lines = lines_of(table, width)
    if found.width > width:  # only what must not be cut is there, and it is wrapped
        assert [COLUMNS[i].rank for i in found.indexes] == [0, 0]
        assert all(state.split()[0] in " ".join(lines) for _, state, *_ in rows)
        return
    assert all(cell_len(line) <= width for line in lines)
    for row, line in zip(rows, lines[2:], strict=True):
        whole = [row[i] for i in found.indexes][1:]
        assert re.split(r"\s{2,}", line.rstrip())[-len(whole) :] == whole


@given(text=texts, width=st.integers(0, 60))
def test_cut_text_fits_and_has_beginning_and_end(text: str, width: int) -> None:
    found = cut(text, width)
    assert cell_len(found) <= width
    if cell_len(text) <= width:
        assert found == text
    elif width > 0:
        first, _, last = found.partition(ELLIPSIS)
        assert text.startswith(first)
        assert text.endswith(last)
        assert not last or cell_len(last[0])  # no mark without its letter
        assert cell_len(found) >= width - 3  # at most a wide character on either side has no room


def test_cut_counts_cells_and_keeps_marks_with_their_letters() -> None:
    assert cut("very-long-name", 9) == "very…name"
    assert cut("very-long-name", 14) == "very-long-name"
    assert cut("very-long-name", 1) == ELLIPSIS
    assert cut("日本語の名前", 7) == "日本…前"
    marked = unicodedata.normalize("NFD", "éèêëàâäùûü")
    assert cut(marked, 5) == unicodedata.normalize("NFD", "éè…ûü")
    assert cut("x" * 4096, 11) == "xxxxx…xxxxx"


def test_longest_name_does_not_widen_a_pipe() -> None:
    lines = lines_of(Table("", COLUMNS, [["x" * 4096, "ok", "1", "2", "3"]]), 10_000)
    assert max(map(len, lines)) < 300
