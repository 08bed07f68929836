"""The totals of all folded records, and the checkpoint of the fold.

The totals must not depend on the order in which batches arrive. Sums of integers do not, costs are summed
without rounding, and the times in the records decide the rest.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from time import time_ns
from typing import Any

import orjson

from m31a_mp.kinds.catalog import RUNNING, TABLES, TIMELINE, TOOLS
from m31a_mp.kinds.checks import saturated
from m31a_mp.kinds.parts import Restoring, integer
from m31a_mp.kinds.tables import Entries
from m31a_mp.kinds.timeline import COUNTS
from m31a_mp.kinds.times import from_ns, plausible, to_ns
from m31a_mp.metrics.site import Site, check_id
from m31a_mp.model import SessionMetrics, SiteMetric, has_records

CHECKPOINT_VERSION = 1
# The limits keep a hostile journal from taking all memory.
MAX_ENTRIES = 100_000
MAX_NAMES_BYTES = 64 * 1024 * 1024  # of all names together, as JSON
MAX_WRITERS = 1_000_000


class TooManyEntriesError(ValueError):
    """A session has too many distinct names; the message is the reason."""


@dataclass(slots=True)
class WriterMark:
    """The counted records of a writer: the number of the last one, and the drop counts so far.

    Writers of this library number records from 1. Foreign writers may start at 0.
    """

    last: int = -1
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Totals:
    """The state that a fold changes. Times are nanoseconds since the epoch.

    Attributes:
        started: The time when the first owner opened the session, or the start in `metrics.json`; None
            without either.
        updated: The time of the latest record; 0 without records.
        tables: The states of the declared tables and lists, by their keys in `metrics.json`.
        writers: The marks of the writers whose records may come again.
        journal: The number of the last counted journal.
        records: The number of counted records; None if not known: a release that did not count them, or
            another program, wrote the first of them.
        dropped: The counts of records that writers dropped, by reason.
        rejected: The number of rejected pieces of input.
        names_bytes: Bytes of all names, as JSON.
        set_aside: Files that are counted as rejected, and were about to be moved out of the way.
        site: The site, and the number of the latest publication; None before the first one.
        sites: The sites that the totals were gathered from, by their ids; empty for a session of its own.
        gatherers: The gathered sessions that the totals were gathered from, directly or by way of others.
    """

    started: int | None = None
    updated: int = 0
    tables: dict[str, Any] = field(
        default_factory=lambda: {name: table.new() for name, table in TABLES.items()}
    )
    writers: dict[str, WriterMark] = field(default_factory=dict)
    journal: int = 0
    records: int | None = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    names_bytes: int = 0
    set_aside: set[str] = field(default_factory=set)
    site: Site | None = None
    sites: dict[str, SiteMetric] = field(default_factory=dict)
    gatherers: set[str] = field(default_factory=set)

    def entry(self, table: str, name: str, time: int) -> Any:
        """Return the entry of a name in a table. A missing entry is made, first recorded at `time`."""
        entries: Entries = self.tables[table]
        if name not in entries:
            self.names_bytes += len(orjson.dumps(name))
        return entries.entry(name, time)

    def check_room(self, table: str, name: str) -> None:
        """Raise TooManyEntriesError if the table has no room for an entry of the name."""
        entries: Entries = self.tables[table]
        is_new = name not in entries
        size = len(orjson.dumps(name))
        if is_new and (len(entries) >= MAX_ENTRIES or self.names_bytes + size > MAX_NAMES_BYTES):
            raise TooManyEntriesError(
                f"{name!r:.80} would be one of more than {MAX_ENTRIES} distinct names, "
                f"or make them longer than {MAX_NAMES_BYTES} bytes in all"
            )

    def interrupt(self, call: str) -> None:
        """Count a running call whose process died, as a failure without a duration.

        Raises:
            TooManyEntriesError: There is no room for the tool. The call is removed from the running ones.
        """
        time, name = self.tables[RUNNING.name].take(call)
        self.check_room(TOOLS.name, name)
        tool = self.entry(TOOLS.name, name, time)
        tool.first = min(tool.first, time)
        tool.calls.interrupt()
        tool.interrupted_count += 1
        counts = (int(column in {"tool_calls", "failures"}) for column in COUNTS)
        self.tables[TIMELINE.name].add(time, *counts, costs=[])

    def settle(self) -> None:
        """Count the durations that wait in the tables to be counted together."""
        for table in self.tables.values():
            table.settle()

    def count_entries(self) -> int:
        """Count the entries of all tables."""
        return sum(map(len, self.tables.values()))

    def writer(self, writer: str) -> WriterMark:
        """Return the mark of a writer. A missing mark is made."""
        mark = self.writers.get(writer)
        if mark is None:
            if len(self.writers) >= MAX_WRITERS:
                raise TooManyEntriesError(f"writer {writer!r:.80} is one of more than {MAX_WRITERS}")
            mark = self.writers[writer] = WriterMark()
        return mark

    def keep_writers(self, writers: set[str]) -> None:
        """Forget the marks of all other writers. They are gone, and none of their records can come again."""
        self.writers = {writer: mark for writer, mark in self.writers.items() if writer in writers}

    def saw_dropped(self, mark: WriterMark, dropped: dict[str, int]) -> None:
        """Count the drops of a writer. `dropped` has its counts so far, so that a repetition is harmless."""
        for reason, so_far in dropped.items():
            new = so_far - mark.dropped.get(reason, 0)
            if new > 0:
                mark.dropped[reason] = so_far
                self.dropped[reason] = self.dropped.get(reason, 0) + new

    def to_metrics(self, session_id: str) -> SessionMetrics:
        """Return the metrics for users, with the hidden state that an exact merge needs."""
        metrics = self.to_shown(session_id)
        metrics.rest = self._rest()
        return metrics

    def to_shown(self, session_id: str, but: Container[str] = ()) -> SessionMetrics:
        """Return the visible metrics, but for some tables. The checkpoint has the rest.

        A session with neither an owner nor a record starts now.
        """
        starts = [time for table in self.tables.values() for time in table.begun()]
        if self.started is not None:
            starts.append(self.started)
        started = min(starts) if starts else time_ns()
        shown: dict[str, Any] = {}
        for name, table in self.tables.items():
            shown |= {} if name in but else table.shown()
        return SessionMetrics(
            session_id,
            from_ns(started),
            from_ns(max(started, self.updated)),
            **shown,
            dropped={reason: saturated(n) for reason, n in sorted(self.dropped.items())},
            rejected=saturated(self.rejected),
            sites=sorted(self.sites.values(), key=lambda site: (site.host, site.id)),
        )

    def _rest(self, but: Container[str] = ()) -> dict[str, Any]:
        """Return the state of the tables, but for some, that `SessionMetrics` does not show."""
        return {
            name: kept for name, table in self.tables.items() if name not in but and (kept := table.kept())
        }

    def merge(self, *others: Totals) -> None:
        """Add the totals of other parts. No record may be counted in two of them. The parts stay unchanged.

        The marks of the other parts' writers are not added: their records come only to these parts.
        """
        parts = [self, *others]
        self.started = min([part.started for part in parts if part.started is not None], default=None)
        self.updated = max([part.updated for part in parts])
        for name, table in self.tables.items():
            table.merge(*[other.tables[name] for other in others])
        for other in others:
            for reason, count in other.dropped.items():
                self.dropped[reason] = self.dropped.get(reason, 0) + count
            self.rejected += other.rejected
            for site in other.sites.values():
                if site.id not in self.sites or self.sites[site.id].number < site.number:
                    self.sites[site.id] = site
        counts = [part.records for part in parts]
        self.records = None if None in counts else sum(filter(None, counts))
        self.names_bytes = self._size_of_names()

    def _size_of_names(self) -> int:
        tables = [table for table in self.tables.values() if isinstance(table, Entries)]
        names = [name for table in tables for name in table.names()]
        return len(orjson.dumps(names)) - max(len(names), 1) - 1  # without brackets and commas

    def to_checkpoint(self, but: Container[str] = ()) -> dict[str, Any]:
        """Return the state that `to_shown` leaves out, as JSON, but for some tables."""
        return {
            "version": CHECKPOINT_VERSION,
            "journal": self.journal,
            "set_aside": sorted(self.set_aside),
            "writers": {w: {"last": m.last, "dropped": m.dropped} for w, m in self.writers.items()},
            **({} if self.records is None else {"records": saturated(self.records)}),
            **({"site": self.site.kept()} if self.site else {}),
            **({"gatherers": sorted(self.gatherers)} if self.gatherers else {}),
            **self._rest(but),
        }

    @classmethod
    def restore(cls, read: Mapping[str, Any], checkpoint: dict[str, Any]) -> Totals:
        """Restore the totals from `metrics.json`. They take over the values in `read`.

        Args:
            read: The result of `model.read`.
            checkpoint: The checkpoint; empty if another program wrote the file.

        Raises:
            KeyError, TypeError, ValueError: The checkpoint is not valid.
        """
        now = time_ns()
        started = plausible(to_ns(read["started_at"]), now)
        totals = cls(started, journal=integer(checkpoint.get("journal", 0)))
        if has_records(read):  # without records, `updated_at` is only the start of the session
            totals.updated = plausible(to_ns(read["updated_at"]), now)
            totals.records = None
        if "records" in checkpoint:
            totals.records = integer(checkpoint["records"])
        for writer, mark in checkpoint.get("writers", {}).items():
            totals.writers[writer] = WriterMark(
                integer(mark["last"]), {r: integer(n) for r, n in mark["dropped"].items()}
            )
        at = Restoring(started, totals.updated, now)
        for name, table in totals.tables.items():
            table.restore(read, checkpoint.get(name, {}), at)
        totals.set_aside = set(map(str, checkpoint.get("set_aside", [])))
        totals.site = Site.restored(checkpoint["site"]) if "site" in checkpoint else None
        totals.sites = {site.id: site for site in read["sites"].entries()}
        totals.gatherers = set(map(check_id, checkpoint.get("gatherers", [])))
        totals.dropped = read["dropped"]
        totals.rejected = read["rejected"]
        totals.names_bytes = totals._size_of_names()
        return totals
