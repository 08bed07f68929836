"""The options of the commands that show tables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from m31a_mp.cli.counts import WholeNumber
from m31a_mp.cli.entries import SORTS, Choice

_SORT_HELP = f"""\
Sort tools, models, phases and edit strategies by KEY: {", ".join(SORTS)}.
Names are sorted from A to Z, numbers from the largest. Phases are sorted by duration for p50, p95, max and
total. Entries without the number keep their order.
"""
_TOP_HELP = "Show only the first N of each table. By default all, but at most ten errors and ten happenings."


def choice_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for sorting and limiting tables. The command gets them as `choice`."""

    @functools.wraps(function)
    def chosen(*arguments: Any, sort: str | None, top: int | None, **others: Any) -> Any:
        return function(*arguments, choice=Choice(sort, top), **others)

    sort = click.option("--sort", type=click.Choice(list(SORTS)), metavar="KEY", help=_SORT_HELP)
    top = click.option("--top", type=WholeNumber(1), metavar="N", help=_TOP_HELP)
    return sort(top(chosen))
