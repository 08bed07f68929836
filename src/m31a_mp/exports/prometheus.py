"""The metrics of sessions for Prometheus. This module needs the extra `prometheus`.

Each counter of `counters` is `m31a_NAME_total`, with `_` for dots. Histograms have the bounds of `POWERS`. A
histogram of which only a part is known, from a file of an earlier version, has no `_sum` and no `_count`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import EINVAL
from functools import partial
from threading import Lock
from typing import Any

from m31a_mp.exports.counters import COUNTERS
from m31a_mp.exports.numbers import POWERS, Labels, Numbers, to_float
from m31a_mp.exports.sessions import Condition, Seen, Sessions
from m31a_mp.inspection.status import Status

try:
    from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString
except ImportError as error:
    raise ImportError(
        f"{error}; metrics for Prometheus need prometheus_client: pip install 'm31a_mp[prometheus]'",
        name=error.name,
    ) from None

OTHER = "other"
"""The value of a label for the names beyond the limit, together."""

MAX_NAMES = 500
"""How many tools, phases and models have series of their own. A tool has 27 series."""

# The sum of all sessions stands where a session's id stands, which is never empty.
_SUM = ""

_BOUNDS = [*(floatToGoString(2.0**power) for power in POWERS), "+Inf"]
_HISTOGRAMS = {
    "tool.call.duration": ("tool", "Durations of tool calls. Interrupted calls have none."),
    "model.interaction.duration": ("model", "Recorded durations of interactions with language models."),
}
_GAUGES: list[tuple[str, Labels, str]] = [
    ("tool_calls_running", ("tool",), "Calls of a tool that are under way."),
    ("writers", (), "Living writers: streams of records, each of one process."),
    ("session_start_time_seconds", (), "When the session began; of several the earliest."),
    ("session_last_record_time_seconds", (), "The time of the last record; of several the latest."),
    ("names_in_other", ("label",), 'Names beyond the limit, which count together as "other".'),
]


class SessionsCollector:
    """A collector for a registry of prometheus_client: the sessions of a directory, read at each scrape.

    By default these are the sessions that run, and the counters are sums over them. A session that ended
    stays in the sums: a counter never decreases. A session that is resumed joins with all that it has.
    """

    def __init__(
        self,
        sessions_dir: str | os.PathLike[str],
        sessions: Iterable[str] | None = None,
        *,
        by_session: bool = False,
        max_names: int = MAX_NAMES,
    ) -> None:
        """Collect from a directory of sessions. Nothing is read before the first `collect()`.

        Args:
            sessions_dir: The directory of the sessions.
            sessions: The ids of the sessions to show, whether they run or not. None: those that run.
            by_session: Whether each session has series of its own, with the label `session`. A session that
                ended is shown for 5 more minutes then. Each session makes new series, which Prometheus keeps.
            max_names: How many tools, phases and models have series of their own, at least 1. The others
                count together as `other`, and `m31a_names_in_other` says how many they are.

        Raises:
            ValueError: An id is not valid, or `max_names` is less than 1.
        """
        if max_names < 1:
            raise ValueError(f"max_names must be at least 1, not {max_names}")
        self._by_session = by_session
        self._names = _Names(max_names)
        self._sessions = Sessions(sessions_dir, sessions, self._shown)
        self._lock = Lock()

    def describe(self) -> Iterable[Any]:
        """Return the families without samples. A registry uses them to find duplicates."""
        return [*_families([], self._names, by_session=self._by_session), _conditions({})]

    def collect(self) -> Iterable[Any]:
        """Look at the sessions, and return the metric families. Any thread may call this at any time.

        Raises:
            OSError: The directory cannot be listed.
        """
        with self._lock:
            self._sessions.look()
            self._names.keep({_SUM, *self._sessions.seen})
            families = [*_families(self._groups(), self._names, by_session=self._by_session)]
            return [*families, _conditions(self._sessions.conditions)]

    def _shown(self, session: str, label: str, name: str) -> str:
        return self._names.shown(session if self._by_session else _SUM, label, name)

    def _groups(self) -> list[_Group]:
        sessions = self._sessions
        if self._by_session:
            return [
                _Group(seen.name, seen.numbers, seen.started, [seen]) for seen in sessions.shown_by_name()
            ]
        return [_Group(_SUM, sessions.total(), sessions.first_started, sessions.present())]


def text(found: Status, *, by_session: bool = False) -> bytes:
    """Return the metrics of one session in Prometheus's text format.

    Args:
        found: The session's status.
        by_session: Whether the series have the label `session`.
    """
    data: bytes = generate_latest(_registry(found, by_session=by_session))
    return data


def write_textfile(path: str | os.PathLike[str], found: Status, *, by_session: bool = False) -> None:
    """Write the metrics of one session to a file for the textfile collector of node_exporter.

    The file is replaced as a whole; a link leads to it. Its name has to end in `.prom`: the collector reads
    no other.

    Args:
        path: The file.
        found: The session's status.
        by_session: Whether the series have the label `session`.

    Raises:
        OSError: The file cannot be written, or is not a regular file. The previous one is as it was.
    """
    path = os.path.realpath(os.fspath(path))
    if os.path.lexists(path) and not os.path.isfile(path):
        # The rename would replace a device or a pipe: for root, /dev/null would be a file from then on.
        raise OSError(EINVAL, "it is not a regular file", path)
    write_to_textfile(path, _registry(found, by_session=by_session))


class WithoutCreated:
    """A collector without the times of creation. In the text format each would be a metric of its own."""

    def __init__(self, collector: SessionsCollector | _OneSession) -> None:
        self._collector = collector

    def describe(self) -> Iterable[Any]:
        """See `SessionsCollector.describe`."""
        return self._collector.describe()

    def collect(self) -> Iterable[Any]:
        """See `SessionsCollector.collect`."""
        for family in self._collector.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class _OneSession:
    """A collector of one session that was read before."""

    def __init__(self, found: Status, *, by_session: bool) -> None:
        self._names = _Names(MAX_NAMES)
        self._session = found.metrics.session_id if by_session else _SUM
        self._seen = Seen.of(found.metrics, partial(self._names.shown, self._session))
        self._seen.writers = len(found.writers)

    def describe(self) -> Iterable[Any]:
        return []

    def collect(self) -> Iterable[Any]:
        seen = self._seen
        group = _Group(self._session, seen.numbers, seen.started, [seen])
        return _families([group], self._names, by_session=self._session != _SUM)


def _registry(found: Status, *, by_session: bool) -> Any:
    registry = CollectorRegistry()
    registry.register(WithoutCreated(_OneSession(found, by_session=by_session)))
    return registry


# --- Families -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """What has series of its own: one session, or the sum of all.

    Attributes:
        session: The session's id; `_SUM` for the sum.
        numbers: The counters and histograms.
        created: When they were 0, in seconds since the epoch; None if there never was a session.
        present: The sessions that the gauges are about.
    """

    session: str
    numbers: Numbers
    created: float | None
    present: list[Seen]


class _Names:
    """The names that have series of their own. A name that has them keeps them: no counter decreases."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[tuple[str, str], dict[str, str]] = {}

    def shown(self, session: str, label: str, name: str) -> str:
        """Return the value of the label for a name: the name, or `other`."""
        known = self._known.setdefault((session, label), {})
        if name not in known:
            known[name] = name if len(known) < self._limit else OTHER
        return known[name]

    def in_other(self, session: str) -> Iterator[tuple[str, int]]:
        """Yield for each label how many names are beyond the limit."""
        for (of, label), known in self._known.items():
            if of == session:
                yield label, max(0, len(known) - self._limit)

    def keep(self, sessions: set[str]) -> None:
        """Forget the names of all other sessions."""
        self._known = {key: known for key, known in self._known.items() if key[0] in sessions}


def _families(groups: list[_Group], names: _Names, *, by_session: bool) -> Iterator[Any]:
    own = ("session",) if by_session else ()
    for counter in COUNTERS:
        unit = "_seconds" if counter.unit == "s" else ""
        family = CounterMetricFamily(_name(counter.name) + unit, counter.help, labels=own + counter.labels)
        for group in groups:
            for labels, count in group.numbers.counts.get(counter.name, {}).items():
                family.add_metric(_own(group, own) + labels, to_float(count), created=group.created)
        yield family
    for name, (label, text_of_help) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(_name(name) + "_seconds", text_of_help, labels=(*own, label))
        for group in groups:
            for labels, (*counted, total) in group.numbers.durations.get(name, {}).items():
                values = _own(group, own) + labels
                seconds = None if math.isnan(total) else total / 1000
                family.add_metric(values, list(zip(_BOUNDS, counted, strict=True)), seconds)
                if group.created is not None:
                    of = dict(zip((*own, label), values, strict=True))
                    family.add_sample(family.name + "_created", of, group.created)
        yield family
    yield from _gauges(groups, names, own)


def _gauges(groups: list[_Group], names: _Names, own: Labels) -> Iterator[Any]:
    calls, writers, started, last, beyond = (
        GaugeMetricFamily("m31a_" + name, text_of_help, labels=own + labels)
        for name, labels, text_of_help in _GAUGES
    )
    for group in groups:
        values = _own(group, own)
        running = Counter[str]()
        for seen in group.present:
            running.update(seen.calls)
        for tool, count in running.items():
            calls.add_metric((*values, tool), count)
        writers.add_metric(values, sum(seen.writers for seen in group.present))
        if group.present:
            started.add_metric(values, min(seen.started for seen in group.present))
        if times := [seen.last_record for seen in group.present if seen.last_record is not None]:
            last.add_metric(values, max(times))
        for label, count in names.in_other(group.session):
            beyond.add_metric((*values, label), count)
    yield from (calls, writers, started, last, beyond)


def _conditions(conditions: dict[Condition, int]) -> Any:
    family = GaugeMetricFamily(
        "m31a_sessions", "Sessions by what the latest look found of them.", labels=("condition",)
    )
    for condition in Condition:
        family.add_metric((str(condition),), conditions.get(condition, 0))
    return family


def _name(dotted: str) -> str:
    return "m31a_" + dotted.replace(".", "_")


def _own(group: _Group, own: Labels) -> Labels:
    return (group.session,) if own else ()
