"""The time of a record: nanoseconds since the epoch in a line, microseconds in `metrics.json`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

MAX_AHEAD = 24 * 60 * 60 * 10**9
"""A record of a later time than this after the moment of merging, in ns, is of a clock that is wrong."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plausible(time: int, now: int) -> int:
    """The time of a record that is merged now: that moment, if its clock is more than a day ahead.

    It is counted like any other. With its own time it would stay the session's last record, and its duration
    that of its phase, for ever.
    """
    return time if time <= now + MAX_AHEAD else now


def from_ns(time: int) -> datetime:
    """A time of a record as `metrics.json` shows it."""
    return _EPOCH + timedelta(microseconds=time // 1000)


def to_ns(time: datetime) -> int:
    """A time of `metrics.json` in nanoseconds since the epoch."""
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000
