"""Merge: what several sessions, or the parts of one, add up to."""

from __future__ import annotations

from m31a_mp.metrics.totals import Totals
from m31a_mp.model import SessionMetrics


def merge(*parts: SessionMetrics) -> SessionMetrics:
    """The metrics of all records of some sessions, or of the parts of one, of which each counts others.

    The order of the parts does not show. Sums are exact, costs to the last digit, if the parts are what
    `load`, `compact` or a snapshot returned; of parts that were put together otherwise they are those of the
    numbers that are shown.

    Args:
        parts: The metrics; none is changed.

    Returns:
        Their sum. Its id is theirs, joined by a comma where they have several.

    Raises:
        TypeError: A part is no SessionMetrics.
        ValueError: There is no part, or a part holds what its types do not allow; says where.
    """
    if not parts:
        raise ValueError("there is nothing to merge")
    whole = None
    for part in parts:
        if not isinstance(part, SessionMetrics):
            raise TypeError(f"merge() takes SessionMetrics, not {type(part).__name__}")
        metrics = SessionMetrics.from_json(part.to_json())
        try:
            totals = Totals.restore(metrics, {} if part.rest is None else {"journal": 0, **part.rest})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"what session {part.session_id!r} does not show is damaged: {error!r}"
            ) from None
        if whole is None:
            whole = totals
        else:
            whole.merge(totals)
    assert whole  # noqa: S101  # for mypy
    return whole.to_metrics(",".join(dict.fromkeys(part.session_id for part in parts)))
