"""The tables of a report that are of one session: running calls, and the latest happenings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from m31a_mp.exports.report_cells import (
    Column,
    Table,
    Value,
    table,
    text,
    time_text,
)
from m31a_mp.kinds.catalog import TABLES
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.model import RunningCall, SessionMetrics
from m31a_mp.wording import title_of, value_of_field

MAX_HAPPENINGS = 50
"""The most happenings of one kind that are shown."""
_BAD = {"success": False, "failure": True, "timeout": True}


def tables_of_one(metrics: SessionMetrics) -> Iterator[Table]:
    """Yield the tables of what cannot be compared: running calls, and the latest happenings."""
    yield _running_table(metrics.running)
    for declared in TABLES.values():
        if isinstance(declared, Happenings):
            yield _happenings_table(declared, metrics)


def _running_table(running: Sequence[RunningCall]) -> Table:
    columns = (
        Column(
            "since", lambda call: Value(time_text(call.started_at), call.started_at.timestamp()), is_text=True
        ),
        Column("process", lambda call: Value(str(call.pid or "-"), call.pid), is_optional=True),
        Column("machine", lambda call: text(call.host), is_text=True, is_optional=True),
    )
    rows = [(call.name, [call]) for call in running]
    return table(
        "running", "Calls under way", "tool", columns, rows, remark="the longest first", nouns="calls"
    )


def _happenings_table(declared: Happenings, metrics: SessionMetrics) -> Table:
    """Make a table of the latest happenings, the latest first."""
    items, total = getattr(metrics, declared.name), getattr(metrics, declared.count)
    shown_items = items[-MAX_HAPPENINGS:][::-1]
    first, *fields = declared.fields
    columns = [_field_column(name, shown_items) for name in (*fields, *declared.derived)]
    when = Column(
        "time", lambda item: Value(time_text(item.timestamp), item.timestamp.timestamp()), is_text=True
    )
    rows = [(getattr(item, first), [item]) for item in shown_items]
    title = declared.name.replace("_", " ").capitalize()
    total = max(total, len(items))  # another program may not have counted
    remark = f"the latest {len(shown_items)} of {total:,}" if total > len(shown_items) else "the latest first"
    key = declared.name.replace("_", "-")
    return table(key, title, title_of(first), [when, *columns], rows, remark=remark)


def sites_table(metrics: SessionMetrics) -> Table:
    """Make the table of the sites that were gathered; without rows if the session is of one machine."""
    sites = getattr(metrics, "sites", [])
    if not sites:
        return table("sites", "Sites", "site", [], [])
    first, *names = [field.name for field in dataclasses.fields(sites[0])]
    columns = [_field_column(name, sites) for name in names]
    return table("sites", "Sites", "site", columns, [(getattr(site, first), [site]) for site in sites])


def _field_column(name: str, items: Sequence[Any]) -> Column:
    """Make the column of a field by the type of its value. Without any value it is left out."""
    values = [getattr(item, name) for item in items]
    is_flag = any(isinstance(value, bool) for value in values)
    is_number = not is_flag and any(isinstance(value, int) for value in values)

    def of(item: Any) -> Value:
        value = getattr(item, name)
        if isinstance(value, datetime):
            return Value(time_text(value), value.timestamp())
        if is_number:
            return Value(value_of_field(name, value), value)
        is_bad = is_flag and _BAD.get(name) is value
        return dataclasses.replace(text(value_of_field(name, value)), is_bad=is_bad)

    return Column(title_of(name), of, is_text=not is_number, is_optional=not is_flag)
