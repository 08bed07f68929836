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


def _field_column(name: str, items: Sequence[Any]) -> Column:
    """Make the column of a field by the type of its value. Without any value it is left out."""
    is_flag = any(isinstance(getattr(item, name), bool) for item in items)
    is_number = not is_flag and any(isinstance(getattr(item, name), int) for item in items)

    def of(item: Any) -> Value:
        value = getattr(item, name)
        if is_number:
            return Value(value_of_field(name, value), value)
        is_bad = is_flag and value is (name != "success")
        return dataclasses.replace(text(value_of_field(name, value)), is_bad=is_bad)

    return Column(title_of(name), of, is_text=not is_number, is_optional=not is_flag)


def sites_table(metrics: SessionMetrics) -> Table:
    """Make the table of the sites that the metrics come from; without rows if they are of one machine."""
    sites = [_fields_of(site) for site in getattr(metrics, "sites", None) or []]
    names = list(dict.fromkeys(name for site in sites for name in site))
    columns = [_site_column(name) for name in names[1:]]
    rows = [(str(next(iter(site.values()), "")), [site]) for site in sites]
    return table("sites", "Sites", title_of(names[0]) if names else "site", columns, rows)


def _fields_of(site: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(site):
        return {field.name: getattr(site, field.name) for field in dataclasses.fields(site)}
    return dict(site)


def _site_column(name: str) -> Column:
    def of(site: dict[str, Any]) -> Value:
        value = site.get(name)
        if isinstance(value, datetime):
            return Value(time_text(value), value.timestamp())
        if isinstance(value, int) and not isinstance(value, bool):
            return Value(value_of_field(name, value), value)
        return text("" if value is None else value_of_field(name, value))

    return Column(title_of(name), of, is_optional=True)
