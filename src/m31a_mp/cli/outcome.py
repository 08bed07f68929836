"""The report and the exit status of a compaction. This module needs neither click nor rich."""

from __future__ import annotations

import os
from collections.abc import Iterator

from m31a_mp.metrics.compactor import Compaction
from m31a_mp.system.log import shown
from m31a_mp.wording import count

NOT_ALL_WELL = 1
"""The exit status if input was set aside, or could not be read and stays where it is."""


def lines(directory: str, done: Compaction) -> Iterator[str]:
    """Yield the report of a compaction in lines for people."""
    merged = f"{count(done.records, 'record')} merged"
    interrupted = f", {count(done.interrupted, 'call')} interrupted" if done.interrupted else ""
    yield f"{shown(directory)}: {merged}{interrupted}"
    for item in done.rejected:
        yield f"set aside: {shown(item.file)}, byte {item.offset}: {shown(item.reason)}"
    if any(item.data for item in done.rejected):  # items without data are whole files, named above
        place = os.path.join(directory, "journal.rejected.ndjson")
        yield f"the text of what was set aside is in {shown(place)}"


def status(done: Compaction) -> int:
    """Return the exit status of a compaction."""
    return NOT_ALL_WELL if done.rejected or done.unreadable else 0
