"""Fold one line of any program: check it, with a reason for each error, then count it."""

from __future__ import annotations

from typing import Any

import orjson

from m31a_mp.kinds import json
from m31a_mp.kinds.catalog import EVENTS
from m31a_mp.kinds.checks import INT64_MAX, check_int
from m31a_mp.kinds.declaration import Into, Kind
from m31a_mp.kinds.running import Running
from m31a_mp.kinds.tables import Table
from m31a_mp.kinds.times import plausible
from m31a_mp.metrics._folding import fold_plain
from m31a_mp.metrics.totals import Totals


def fold_checked(totals: Totals, text: bytes, now: int) -> None:
    """Count one line. Unknown keys are ignored: later versions may add keys.

    Args:
        totals: The totals to add to. They stay as they are if the line is not a record.
        text: The line.
        now: The time for a line without one, or with an implausible one (see `plausible`), in nanoseconds
            since the epoch.

    Raises:
        ValueError: The line is not a record; the message is the reason.
    """
    kind, record = _checked(text, now)
    names = [
        (into.table.name, record[into.key])
        for into in kind.into
        if isinstance(into, Into) and isinstance(into.table, Table) and record[into.key] is not None
    ]
    for table, name in names:
        totals.check_room(table, name)
    for into in kind.into:
        if isinstance(into, Running):
            totals.tables[into.name].check_room(*(record[field] for field in into.fields))
    for table, name in names:
        totals.entry(table, name, record["time"])
    # A checked record is plain, and its name has an entry. A bug here must reject one line, not end the fold.
    if fold_plain(totals, [record], INT64_MAX):
        raise ValueError(f"{kind.event} passes the checks but cannot be counted, which is a bug in m31a_mp")


def _checked(text: bytes, now: int) -> tuple[Kind, dict[str, Any]]:
    """Return the kind of the record in a line, and the record with plain values."""
    try:
        record = json.parse(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    event = record.get("event") if isinstance(record, dict) else None
    kind = EVENTS.get(event) if isinstance(event, str) else None
    if kind is None:
        given = repr(event[:80]) if isinstance(event, str) else f"a {type(event).__name__}"
        raise ValueError(f"not a record: its event is {given}")
    try:
        time = plausible(check_int("time", record["time"]), now) if "time" in record else now
        values = kind.complete(record)
        for name, field in kind.fields.items():
            if not field.is_optional or record.get(name, field.default) is not field.default:
                values[name] = field.check(name, values[name])
        for rule in kind.rules:
            rule.check(values)
    except KeyError as error:
        raise ValueError(f"{kind.event} without {error.args[0]!r}") from None
    except TypeError as error:
        raise ValueError(str(error)) from None
    return kind, {"event": kind.event, "time": time, **values}
