"""Merge: add up the metrics of several sessions, or of the parts of one."""

from __future__ import annotations

from m31a_mp.kinds.catalog import RUNNING
from m31a_mp.kinds.checks import kind
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import SessionMetrics, read


def merge(*parts: SessionMetrics) -> SessionMetrics:
    """Add up the metrics of several sessions, or of parts of one session.

    No record may be counted in two parts. The order of the parts makes no difference. Sums are exact, costs
    to the last digit, for parts that `load`, `compact` or a snapshot returned. For parts that a program made
    itself, the visible numbers are added.

    Args:
        parts: The metrics. They are not changed.

    Returns:
        The sum. Its id is the id of the parts; different ids are joined by commas.

    Raises:
        TypeError: A part is not a SessionMetrics.
        ValueError: There are no parts, or a part has an invalid value; the message names the place.
    """
    if not parts:
        raise ValueError("there is nothing to merge")
    found = []
    ids = {part.session_id for part in parts if isinstance(part, SessionMetrics)}
    for part in parts:
        if not isinstance(part, SessionMetrics):
            hint = {
                list: "; of a list: merge(*parts)",
                type(None): "; load() returned None for a session without metrics.json",
            }.get(type(part), "")
            raise TypeError(f"merge() takes SessionMetrics, not {kind(part)}{hint}")
        shown = read(part.to_json())
        try:
            totals = Totals.restore(shown, {} if part.rest is None else {"journal": 0, **part.rest})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the hidden state of session {part.session_id!r} is damaged: {error!r}"
            ) from None
        if len(ids) > 1:
            totals.tables[RUNNING.name].qualify(part.session_id)
        found.append(totals)
    whole, *others = found
    whole.merge(*others)  # all at once: a sum costs what all of its parts have
    return whole.to_metrics(",".join(dict.fromkeys(part.session_id for part in parts)))
