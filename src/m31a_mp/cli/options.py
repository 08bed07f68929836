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
Names go from A to Z, of numbers the largest is first. Phases go by their duration where others go by p50,
p95, max or total. What has no such number stays in its order.
"""
_TOP_HELP = "Show the first N of each table only. Without it: all, but ten errors and ten of what happened."


def choice_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is shown of each table, and in which order: a `choice` for the command."""

    @functools.wraps(function)
    def chosen(*arguments: Any, sort: str | None, top: int | None, **others: Any) -> Any:
        return function(*arguments, choice=Choice(sort, top), **others)

    sort = click.option("--sort", type=click.Choice(list(SORTS)), metavar="KEY", help=_SORT_HELP)
    top = click.option("--top", type=WholeNumber(1), metavar="N", help=_TOP_HELP)
    return sort(top(chosen))
