"""Records of every kind, what they must add up to, and a process that is killed on their way."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import orjson
from hypothesis import strategies as st

from m31a_mp import PhaseMetric, PlanOutcome, SessionMetrics, ToolMetric, Usage
from m31a_mp._recording import Recording
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.kinds.catalog import EVENTS, KINDS, TABLES
from m31a_mp.kinds.declaration import Ends, Into, Kind, Whole
from m31a_mp.kinds.fields import CALL, COUNT, FILES, FLAG, NAME, PRICE, SHORT_NAME, TEXT
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.kinds.latest import Single
from m31a_mp.kinds.parts import Counts, Earliest, Ever, Exact, LastTime, Latest, Part, Sum, Timed, TimedCalls
from m31a_mp.kinds.running import Running
from m31a_mp.kinds.tables import Table
from m31a_mp.kinds.timeline import Steps
from m31a_mp.segments.drain import drain
from m31a_mp.segments.reader import list_segments
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from workers import locked

INT64_MAX = 2**63 - 1
MAX_STEPS = 384  # of a timeline


@dataclass(frozen=True)
class Record:
    """One call of a `record_*` method."""

    event: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def perform(self, recorder: Recording) -> None:
        getattr(recorder, f"record_{self.event}")(*self.arguments, **self.options)

    def fields(self) -> dict[str, Any]:
        """The arguments by the keys that they have in a line."""
        kind = EVENTS[self.event]
        given = dict(zip(_arguments(kind), self.arguments, strict=False)) | dict(self.options)
        for group, names in kind.grouped.items():
            given |= {name: getattr(given[group], name) for name in names}
        return {
            name: list(given[name]) if field.type == FILES.type else given[name]
            for name, field in kind.fields.items()
            if name in given and not (field.is_optional and given[name] == field.default)
        }

    def line(self, time: int) -> bytes:
        """As any other program would write it."""
        return orjson.dumps({"event": self.event, "time": time, **self.fields()}) + b"\n"


def _arguments(kind: Kind) -> list[str]:
    """The names of the arguments of a kind's method."""
    group_of = {name: group for group, names in kind.grouped.items() for name in names}
    return list(dict.fromkeys(group_of.get(name, name) for name in kind.fields))


Entries = dict[str, Any]
Fields = dict[str, Any]


def expected(records: Iterable[tuple[int, Record]]) -> Entries:
    """What records of these times must add up to, as in `metrics.json`; no two have the same time."""
    in_order = sorted(records, key=lambda item: item[0])
    of: dict[str, list[tuple[int, Ends | Into | Whole, Fields]]] = {name: [] for name in TABLES}
    for time, record in in_order:
        kind = EVENTS[record.event]
        for into in kind.into:
            table = into.table if isinstance(into, Into | Ends) else into
            of[table.name].append((time, into, kind.complete(record.fields())))
    found = {name: _EXPECTED[type(table)](table, of[name]) for name, table in TABLES.items()}
    return found | {"timeline": _sums(found["timeline"])}


def _expected_entries(table: Any, records: list[tuple[int, Any, Fields]]) -> list[Fields]:
    added: dict[str, dict[str, list[Any]]] = {}
    for _, into, fields in records:
        if fields[into.key] is not None:
            entry = added.setdefault(fields[into.key], {part: [] for part in table.parts})
            for part, effect in into.adds.items():
                entry[part].append(effect.of(fields))
    entries = []
    for name, parts in added.items():
        shown = {table.key: name}
        for part, values in parts.items():
            shown |= _expected_part(part, table.parts[part], values)
        shown |= {at: derived.of(shown) for at, derived in table.derived.items()}
        entries.append(_without_empty(shown))
    return entries


_EMPTY: dict[str, Any] = {
    "durations": None, "min_duration_ms": None, "max_duration_ms": None, "errors": {},
    "unknown_cost_count": 0, "prompt_hash": "", "truncated_input": False,
    "interrupted_count": 0, "heal_duration_ms": 0, "heal_loop_count": 0, "files": (), "error_type": "",
}  # fmt: skip


def _without_empty(shown: Fields) -> Fields:
    """Without what is left out where it is empty; that a model took no time is, that a tool did is not."""
    empty = _EMPTY | ({"total_duration_ms": 0} if "model" in shown else {})
    return {name: value for name, value in shown.items() if name not in empty or value != empty[name]}


def _expected_part(name: str, part: Part, values: list[Any]) -> Fields:  # noqa: PLR0911  # one for each
    """What is shown of values that were added in the order of their times."""
    given = [value for value in values if value is not None]
    match part:
        case Sum():
            return {name: _most(sum(given))}
        case Exact():
            return {name: _total(given)}
        case LastTime():
            return {}  # times are left out, as `entries` leaves them out
        case Latest():
            return dict(zip(part.zeros, values[-1] if values else part.zeros.values(), strict=True))
        case Earliest():
            return {name: given[0] if given else ""}
        case Ever():
            return {name: any(values)}
        case Counts():
            return {name: _expected_counts(given)}
        case TimedCalls():
            outcomes = [success for success, _ in values]
            counts = (len(values), sum(outcomes), len(values) - sum(outcomes))
            durations = [duration for _, duration in values]
            return dict(zip(part.counts, counts, strict=True)) | _expected_durations(part, durations)
        case Timed():
            return _expected_durations(part, given)
    raise AssertionError(part)


def _expected_durations(part: Timed, durations: list[int]) -> Fields:
    bounds = (min(durations, default=None), max(durations, default=None))
    shown = {part.total: _most(sum(durations)), part.histogram: histogram(durations)}
    return shown | dict(zip(part.bounds, bounds, strict=True))


def _most(number: int) -> int:
    return min(number, INT64_MAX)


def _total(costs: Iterable[float]) -> float:
    return float(sum(map(Fraction, costs), Fraction()))


def _expected_counts(names: list[str]) -> dict[str, int]:
    kept = sorted({name for name in names if name != "other"})[:100]
    counts = {name: names.count(name) for name in kept}
    others = len(names) - sum(counts.values())
    return counts | ({"other": others} if others else {})


def histogram(durations: list[int]) -> Fields | None:
    """The histogram of durations in ms, with buckets found by comparing whole numbers."""
    found = [bucket(duration) for duration in durations if duration]
    if not durations:
        return None
    indexes = range(min(found), max(found) + 1) if found else range(0)
    return {
        "scale": 4,
        "zero_count": durations.count(0),
        "offset": indexes.start,
        "bucket_counts": [found.count(index) for index in indexes],
    }


def bucket(duration: int) -> int:
    """The least `i` with `duration <= 1000 * 2**((i + 1) / 16)`, all to the power of 16."""
    index = math.floor(16 * math.log2(duration / 1000)) - 2  # below it, whatever the logarithm's last digit
    while Fraction(duration, 1000) ** 16 > Fraction(2) ** (index + 1):
        index += 1
    return index


def _expected_list(table: Any, records: list[tuple[int, Any, Fields]]) -> list[Fields]:
    items = []
    for _, _, fields in records:
        shown = {name: fields[name] for name in table.fields}
        shown = _without_empty(shown | {at: derived.of(shown) for at, derived in table.derived.items()})
        items.append(shown | ({"files": list(shown["files"])} if "files" in shown else {}))
    return items[-1000:]


def _expected_single(table: Any, records: list[tuple[int, Any, Fields]]) -> Fields | None:
    return {name: records[-1][2][name] for name in table.fields} if records else None


def expected_timeline(records: Iterable[tuple[int, Record]]) -> Fields | None:
    """The timeline of records of these times, as `metrics.json` has it."""
    [table] = [table for table in TABLES.values() if isinstance(table, Steps)]
    into = {kind.event: [i for i in kind.into if isinstance(i, Into) and i.table is table] for kind in KINDS}
    found = [
        (time, into[record.event][0], EVENTS[record.event].complete(record.fields()))
        for time, record in records
        if into[record.event]
    ]
    return _expected_timeline(table, found)


def _expected_timeline(table: Any, records: list[tuple[int, Any, Fields]]) -> Fields | None:
    seconds = 1
    while len({time // (seconds * 10**9) for time, _, _ in records}) > MAX_STEPS:
        seconds *= 2
    steps: dict[int, dict[str, list[Any]]] = {}
    for time, into, fields in records:
        step = steps.setdefault(time // (seconds * 10**9) * seconds, {part: [] for part in table.parts})
        for part, effect in into.adds.items():
            if (value := effect.of(fields)) is not None:
                step[part].append(value)
    if not steps:
        return None
    columns = {
        "costs" if part == "cost" else part: [
            (_total if part == "cost" else lambda values: _most(sum(values)))(steps[start][part])
            for start in sorted(steps)
        ]
        for part in table.parts
    }
    return {"step_seconds": seconds, "starts": sorted(steps), **columns}


def _expected_running(table: Any, records: list[tuple[int, Any, Fields]]) -> list[Fields]:
    """The calls that began and did not end. The same id is the same call."""
    del table
    ended = {fields[into.call] for _, into, fields in records if isinstance(into, Ends)}
    begun: dict[str, str] = {}
    for _, into, fields in records:
        if not isinstance(into, Ends):
            begun.setdefault(fields["call"], fields["name"])
    return [{"name": name} for call, name in begun.items() if call not in ended]


_EXPECTED: dict[type, Callable[[Any, list[tuple[int, Any, Fields]]], Any]] = {
    Table: _expected_entries,
    Happenings: _expected_list,
    Single: _expected_single,
    Running: _expected_running,
    Steps: _expected_timeline,
}


def untimed(phases: Iterable[PhaseMetric]) -> list[PhaseMetric]:
    """Phases without the times at which they were entered and ended."""
    return [replace(phase, entered_at=None, ended_at=None) for phase in phases]


def bare(tools: Iterable[ToolMetric]) -> list[ToolMetric]:
    """Tools without the distribution of their durations."""
    return [replace(tool, min_duration_ms=None, max_duration_ms=None, durations=None) for tool in tools]


def entries(metrics: SessionMetrics) -> Entries:
    """The entries of metrics, to compare with what was `expected`; without the times of happenings."""
    document = metrics.to_json()
    lists = [
        document[name] for name, table in TABLES.items() if isinstance(table, Happenings) and name in document
    ]
    for happening in (entry for found in lists for entry in found):
        happening.pop("timestamp")
    for entry in (*document["phases"], *document.get("running", [])):
        for time in ("entered_at", "ended_at", "started_at"):
            entry.pop(time, None)
    none: dict[str, Any] = {
        name: [] if isinstance(table, Table | Happenings | Running) else None
        for name, table in TABLES.items()
    }
    found = {name: document.get(name, none[name]) for name in TABLES}
    return found | {"timeline": _sums(found["timeline"])}


def _sums(timeline: Fields | None) -> Fields | None:
    """What a timeline shows in all, whenever it was; the costs of the steps are rounded, each by itself."""
    columns = {"tool_calls", "failures", "interactions", "unknown_costs"}
    return timeline and {name: sum(timeline[name]) for name in columns}


_TRICKY = [
    "bash", "plan", "%", "%d%b%s", '"', "\\", "\n", "\0", "\x7f", "\r\n", "\u2028", "é", "e\u0301", "\ufeff",
    "\U0001f600", "\U0010ffff", "\ufffe", '{"batch":"', "null", " ", "x" * 4096, "\0" * 4096,
    "\U0001f600" * 1024,
]  # fmt: skip

_characters = st.characters(exclude_categories=["Cs"])  # all that UTF-8 can carry
names = st.sampled_from(_TRICKY) | st.text(_characters, min_size=1, max_size=60)
few_names = st.sampled_from(["bash", "plan", "%é", "\n"])
counts = st.integers(0, 1000) | st.integers(0, 2**40)
any_counts = counts | st.sampled_from([INT64_MAX - 1, INT64_MAX]) | st.integers(0, INT64_MAX)
costs = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1e-300, 5e-324, 1e16]) | st.floats(0, 1e15, allow_subnormal=True)


def _values(
    names: st.SearchStrategy[str], counts: st.SearchStrategy[int]
) -> dict[str, st.SearchStrategy[Any]]:
    """The values of each type of field."""
    short = names.filter(lambda name: len(name.encode()) <= 1024)
    return {
        NAME.type: names,
        SHORT_NAME.type: short,
        CALL.type: st.uuids().map(str),
        TEXT.type: st.just("") | short,
        FILES.type: st.lists(short, max_size=2).map(tuple),
        COUNT.type: counts,
        FLAG.type: st.booleans(),
        PRICE.type: costs | st.none(),
    }


def records_of(
    names: st.SearchStrategy[str], counts: st.SearchStrategy[int] = counts
) -> st.SearchStrategy[Record]:
    """A record of any kind with such names and numbers; what may be left out is left out at times."""
    values = _values(names, counts)
    return st.one_of([_records_of(kind, values) for kind in KINDS])


def _records_of(kind: Kind, values: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Record]:
    fields = {
        name: values[field.type] | st.just(field.default) if field.is_optional else values[field.type]
        for name, field in kind.fields.items()
    }
    return st.fixed_dictionaries(fields).map(lambda given: _record(kind, given))


def _record(kind: Kind, given: Fields) -> Record:
    """A record of these values of its fields, of which `Usage` and `PlanOutcome` take some."""
    for rule in kind.rules:  # make it true: a share of the whole for each part
        for part in rule.parts:
            given[part] = min(given[part], given[rule.whole] // len(rule.parts))
    for name in kind.only_failed:
        if given[name] is not None:
            given["success"] = False
    if "usage" in kind.grouped:
        whole, parts = kind.grouped["usage"][:3], kind.grouped["usage"][3:]
        given["usage"] = Usage(*(given[name] for name in whole), **{name: given[name] for name in parts})
    if "outcome" in kind.grouped:
        given["outcome"] = PlanOutcome(**{name: given[name] for name in kind.grouped["outcome"]})
    grouped = {name for names in kind.grouped.values() for name in names}
    options = {name for name, field in kind.fields.items() if field.is_optional} - grouped
    arguments = [name for name in _arguments(kind) if name not in options]
    return Record(
        kind.event, tuple(given[name] for name in arguments), {name: given[name] for name in sorted(options)}
    )


records = records_of(names)
few_records = records_of(few_names)


def encoded(batch: Batch) -> bytes:
    """A batch as it stands in the journal."""
    return batch.header() + bytes(batch.records)


def killed_while_appending(session: Session, written: Callable[[bytes], int]) -> None:
    """A process that drains everything is killed when it has written so many bytes to the journal."""
    pid = os.fork()
    if not pid:
        try:
            _append_and_die(session, written)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _append_and_die(session: Session, written: Callable[[bytes], int]) -> None:
    write_all = files.write_all

    def write_some(fd: int, data: bytes, *where: int) -> None:
        if data == b"\n":  # completes the line of another
            write_all(fd, data, *where)
            return
        write_all(fd, data[: written(data)], *where)
        os._exit(0)

    files.write_all = write_some  # type: ignore[assignment]
    log = Journal(session)
    with locked(session):
        drain(log, list_segments(session.segments))


def around_line_ends(line: int, shift: int) -> Callable[[bytes], int]:
    """So many bytes that they end `shift` bytes from the end of a line, and are never all."""

    def length(data: bytes) -> int:
        ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
        return max(0, min(ends[line % len(ends)] + shift, len(data) - 1))

    return length
