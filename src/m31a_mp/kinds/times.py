"""The time of a record: nanoseconds since the epoch in a line, microseconds in `metrics.json`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

MAX_AHEAD = 24 * 60 * 60 * 10**9
"""The most ns that a record's time may be after the moment of merging. Beyond it, the clock is wrong."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plausible(time: int, now: int) -> int:
    """Return the time of a record that is merged at `now`, or `now` if the record is more than a day ahead.

    With its own time, the record would stay the session's last one, and its duration that of its phase,
    forever.
    """
    return time if time <= now + MAX_AHEAD else now


def from_ns(time: int) -> datetime:
    """Convert a record's time to that of `metrics.json`."""
    return _EPOCH + timedelta(microseconds=time // 1000)


def to_ns(time: datetime) -> int:
    """Convert a time of `metrics.json` to nanoseconds since the epoch."""
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000
