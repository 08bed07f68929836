"""The metrics of a session: the types, and their JSON.

Types, keys and meaning follow the `metrics` package of the Go program M31A, so that each program reads the
files of the other. Only this library uses some additional keys.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from reprlib import recursive_repr
from typing import Any, NamedTuple, TypeVar

from m31a_mp.kinds import packed
from m31a_mp.kinds.checks import INT64_MAX, as_bool, as_float, as_int, kind, saturated
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.kinds.packed import pack, unpack
from m31a_mp.kinds.value import Value
from m31a_mp.plan import PlanOutcome


class WorkflowPhase(StrEnum):
    """The phases of M31A's workflow. Any other string names a user-defined phase."""

    IDLE = "idle"
    INITIALIZE = "initialize"
    DISCUSS = "discuss"
    PLAN = "plan"
    EXECUTE = "execute"
    VERIFY = "verify"
    RUNTIME = "runtime"
    SHIP = "ship"


OPTIONAL = {"omitempty": True}
"""Marks a field that JSON omits if it has its default; `omitempty` in Go."""


class _Metric:
    """What `dataclass` would write anew for each of these types, in half of the time of their import."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _compared(self) == _compared(other)

    __hash__ = None  # type: ignore[assignment]  # mutable

    @recursive_repr()
    def __repr__(self) -> str:
        fields = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__qualname__}({', '.join(fields)})"


def _compared(metric: Any) -> tuple[Any, ...]:
    return tuple(getattr(metric, f.name) for f in dataclasses.fields(metric) if f.compare)


@dataclass(eq=False, repr=False, slots=True)
class ToolMetric(_Metric):
    """All calls of one tool. Durations are in milliseconds.

    Attributes:
        name: The tool.
        call_count, success_count, fail_count: The numbers of all calls, successes and failures.
        total_duration_ms, avg_duration_ms: The sum and the mean of the durations.
        min_duration_ms, max_duration_ms: The shortest and the longest duration; None if unknown.
        durations: The histogram of the durations; None if unknown.
        errors: The number of failures for each name of an error. At most 100 names; the rest is `other`.
        interrupted_count: The number of calls whose process died during the call. They count as failures, and
            have no durations.
    """

    name: str
    call_count: int = 0
    success_count: int = 0
    fail_count: int = 0
    total_duration_ms: int = 0
    avg_duration_ms: float = 0.0
    min_duration_ms: int | None = field(default=None, metadata=OPTIONAL)
    max_duration_ms: int | None = field(default=None, metadata=OPTIONAL)
    durations: Histogram | None = field(default=None, metadata=OPTIONAL)
    errors: dict[str, int] = field(default_factory=dict, metadata=OPTIONAL)
    interrupted_count: int = field(default=0, metadata=OPTIONAL)

    def quantile(self, q: float) -> float | None:
        """Return the duration that a fraction of the calls did not exceed, exact within 2.2 %.

        Args:
            q: The fraction, from 0 to 1: 0.5 is the median.

        Returns:
            Milliseconds; None if no duration is known.

        Raises:
            ValueError: `q` is not from 0 to 1.
        """
        return _quantile(self.durations, q, self.min_duration_ms, self.max_duration_ms)


@dataclass(eq=False, repr=False, slots=True)
class LLMMetric(_Metric):
    """All language-model interactions of one phase.

    Attributes:
        phase: The workflow phase.
        prompt_tokens, completion_tokens, total_tokens: The sums of the tokens.
        cost: The sum of the costs; a lower bound if `unknown_cost_count` is not 0.
        interaction_count: The number of interactions.
        unknown_cost_count: The number of interactions without a known cost.
        prompt_hash: The first recorded hash of a prompt; empty without one.
        truncated_input: Whether the input of any interaction was cut.
    """

    phase: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost: float = 0.0
    interaction_count: int = 0
    unknown_cost_count: int = field(default=0, metadata=OPTIONAL)
    prompt_hash: str = field(default="", metadata=OPTIONAL)
    truncated_input: bool = field(default=False, metadata=OPTIONAL)


@dataclass(eq=False, repr=False, slots=True)
class ModelMetric(_Metric):
    """All interactions with one language model.

    Attributes:
        model: The name of the model.
        interaction_count: The number of interactions.
        prompt_tokens, completion_tokens, total_tokens: The sums of the tokens.
        cached_tokens, cache_write_tokens: Prompt tokens that were read from a cache, or written to one.
        reasoning_tokens: Completion tokens that were reasoning.
        cost: The sum of the costs; a lower bound if `unknown_cost_count` is not 0.
        unknown_cost_count: The number of interactions without a known cost.
        total_duration_ms: The sum of the recorded durations, in milliseconds.
        min_duration_ms, max_duration_ms: The shortest and the longest duration; None if unknown.
        durations: The histogram of the recorded durations; None without any.
    """

    model: str
    interaction_count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    unknown_cost_count: int = field(default=0, metadata=OPTIONAL)
    total_duration_ms: int = field(default=0, metadata=OPTIONAL)
    min_duration_ms: int | None = field(default=None, metadata=OPTIONAL)
    max_duration_ms: int | None = field(default=None, metadata=OPTIONAL)
    durations: Histogram | None = field(default=None, metadata=OPTIONAL)

    def quantile(self, q: float) -> float | None:
        """Return the duration that a fraction of interactions did not exceed. See `ToolMetric.quantile`."""
        return _quantile(self.durations, q, self.min_duration_ms, self.max_duration_ms)


@dataclass(eq=False, repr=False, slots=True)
class PhaseMetric(_Metric):
    """One workflow phase. Duration and success are the latest recorded values, not sums.

    Attributes:
        phase: The phase.
        duration_ms, success: The duration in milliseconds, and the outcome.
        transition_count: The number of times that the phase was entered.
        heal_trigger_count, bisect_trigger_count: The numbers of triggers of self-healing and bisecting.
        heal_success_count, heal_fail_count: The outcomes of self-healing.
        bisect_success_count, bisect_fail_count: The outcomes of bisecting.
        heal_duration_ms: The sum of the durations of self-healing, in milliseconds.
        heal_loop_count: The number of times that self-healing ran in a loop.
        entered_at, ended_at: The times when the phase was last entered, and when its duration was last
            recorded; aware, in UTC, or None.
    """

    phase: str
    duration_ms: int = 0
    transition_count: int = 0
    heal_trigger_count: int = 0
    bisect_trigger_count: int = 0
    success: bool = False
    heal_success_count: int = 0
    heal_fail_count: int = 0
    bisect_success_count: int = 0
    bisect_fail_count: int = 0
    heal_duration_ms: int = field(default=0, metadata=OPTIONAL)
    heal_loop_count: int = field(default=0, metadata=OPTIONAL)
    entered_at: datetime | None = field(default=None, metadata=OPTIONAL)
    ended_at: datetime | None = field(default=None, metadata=OPTIONAL)


@dataclass(eq=False, repr=False, slots=True)
class EditStrategyMetric(_Metric):
    """The number of uses of one edit strategy."""

    strategy: str
    count: int = 0


@dataclass(eq=False, repr=False, slots=True)
class StartupMetric(_Metric):
    """The duration of the program's latest start, in milliseconds, and the durations of its parts."""

    duration_ms: int = 0
    config_load_ms: int = 0
    provider_ms: int = 0
    tui_ms: int = 0


@dataclass(eq=False, repr=False, slots=True)
class CompletionMetric(_Metric):
    """One completion of a phase. It failed if it neither succeeded nor timed out. The time is in UTC."""

    phase: str
    success: bool
    failure: bool
    timeout: bool
    timestamp: datetime


@dataclass(eq=False, repr=False, slots=True)
class CancellationMetric(_Metric):
    """One cancellation of a phase. The time is aware, in UTC."""

    phase: str
    reason: str
    timestamp: datetime


@dataclass(eq=False, repr=False, slots=True)
class RunningCall(_Metric):
    """A running tool call.

    Attributes:
        name: The tool.
        started_at: The time of the beginning; aware, in UTC.
        pid: The process id of the caller; 0 if unknown.
        host: The machine of the caller; empty if unknown.
    """

    name: str
    started_at: datetime
    pid: int = field(default=0, metadata=OPTIONAL)
    host: str = field(default="", metadata=OPTIONAL)


@dataclass(eq=False, repr=False, slots=True)
class SiteMetric(_Metric):
    """One site of a gathered session: a machine, or another directory.

    Attributes:
        id: The site's id, 32 hexadecimal digits.
        host: The name of the machine.
        number: The number of the state that is counted, 0 if none is. A site's states are numbered upwards.
        shared_at: The time when the site last shared; aware, in UTC.
        has_ended: Whether the site's owner stopped, so that it does not share any more.
        tool_calls, llm_interactions: The numbers of tool calls and of interactions with language models.
        dropped: The number of records that the site dropped.
        rejected: The number of pieces of input that the site set aside.
        sites: The number of sites that the state was gathered from; 0 if it is not a gathered one.
        problem: Why the state is not counted, or may be counted in part twice; empty if all is well.
        records: The number of all records; None if not known: a release that did not count them, or another
            program, wrote the first of them.
    """

    id: str
    host: str
    number: int
    shared_at: datetime
    has_ended: bool = field(default=False, metadata=OPTIONAL)
    tool_calls: int = 0
    llm_interactions: int = 0
    dropped: int = field(default=0, metadata=OPTIONAL)
    rejected: int = field(default=0, metadata=OPTIONAL)
    sites: int = field(default=0, metadata=OPTIONAL)
    problem: str = field(default="", metadata=OPTIONAL)
    records: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(eq=False, repr=False, slots=True)
class Timeline(_Metric):
    """The activity over time: columns with a value for each step of time that has records.

    Attributes:
        step_seconds: The width of each step in seconds, a power of two.
        starts: The start of each step in seconds since the epoch, to which steps are aligned.
        tool_calls, failures: The numbers of tool calls, and of failed ones.
        interactions, tokens, costs: The numbers of interactions with language models, their total tokens,
            and their costs.
        unknown_costs: The numbers of interactions without a known cost.
    """

    step_seconds: int = 1
    starts: list[int] = field(default_factory=list)
    tool_calls: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    interactions: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    unknown_costs: list[int] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the columns.

        Raises:
            ValueError: The width is not a power of two, the starts are not in order, a column has another
                length than `starts`, or a value is negative.
        """
        if self.step_seconds < 1 or self.step_seconds & (self.step_seconds - 1):
            raise ValueError(f"step_seconds is {self.step_seconds}, not a power of two")
        for name in self.columns():
            if len(getattr(self, name)) != len(self.starts):
                raise ValueError(f"{name} must have as many values as there are starts")
            if min(getattr(self, name), default=0) < 0:
                raise ValueError(f"{name} has a negative value")
        if any(after <= before for before, after in pairwise(self.starts)):
            raise ValueError("starts are not in order")

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Return the names of the columns after `starts`."""
        return _TIMELINE_COLUMNS


_TIMELINE_COLUMNS = tuple(f.name for f in dataclasses.fields(Timeline))[2:]


@dataclass(frozen=True, slots=True)
class SessionTotals:
    """The sums over all entries of a session. `cost` is a lower bound if `unknown_cost_count` is not 0."""

    tool_calls: int
    tool_failures: int
    llm_interactions: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: float
    unknown_cost_count: int
    dropped: int
    interrupted: int


def _sum(numbers: Iterable[int]) -> int:
    return saturated(sum(numbers))


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(eq=False, repr=False, slots=True)
class SessionMetrics(_Metric):
    """The metrics of a session. Entries are in the order of their first records.

    Attributes:
        session_id: The session's id.
        started_at: The time when the first owner opened the session, or of the first record, if that is
            earlier or if there never was an owner. Aware, in UTC.
        updated_at: The time of the latest record; `started_at` without records. Aware, in UTC.
        tools: One entry for each tool.
        llms: One entry for each phase with language-model use.
        phases: One entry for each phase.
        dropped: The counts of dropped records, by reason: `no_space`, `io_error`, or
            `backlog` from earlier releases.
        rejected: The number of damaged or invalid pieces of input, set aside in `journal.rejected.ndjson`.
        models: One entry for each named language model.
        edit_strategies: One entry for each edit strategy.
        plan_outcomes, completions, cancellations: The latest 1,000 of each, by time.
        plan_outcome_count, completion_count, cancellation_count: The total numbers.
        startup: The latest start of the program; None if none was recorded.
        running: The running tool calls, longest first.
        timeline: The activity over time; None without records.
        sites: The sites that were gathered; empty if the session was not gathered.
    """

    session_id: str
    started_at: datetime = field(default_factory=_now)
    updated_at: datetime = field(default_factory=_now)
    tools: list[ToolMetric] = field(default_factory=list)
    llms: list[LLMMetric] = field(default_factory=list)
    phases: list[PhaseMetric] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    models: list[ModelMetric] = field(default_factory=list, metadata=OPTIONAL)
    edit_strategies: list[EditStrategyMetric] = field(default_factory=list, metadata=OPTIONAL)
    plan_outcomes: list[PlanOutcome] = field(default_factory=list, metadata=OPTIONAL)
    plan_outcome_count: int = field(default=0, metadata=OPTIONAL)
    startup: StartupMetric | None = field(default=None, metadata=OPTIONAL)
    completions: list[CompletionMetric] = field(default_factory=list, metadata=OPTIONAL)
    completion_count: int = field(default=0, metadata=OPTIONAL)
    cancellations: list[CancellationMetric] = field(default_factory=list, metadata=OPTIONAL)
    cancellation_count: int = field(default=0, metadata=OPTIONAL)
    running: list[RunningCall] = field(default_factory=list, metadata=OPTIONAL)
    timeline: Timeline | None = field(default=None, metadata=OPTIONAL)
    sites: list[SiteMetric] = field(default_factory=list, metadata=OPTIONAL)
    rest: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    """Hidden state for exact merges; None if another program made the metrics. Not for users."""

    @property
    def totals(self) -> SessionTotals:
        """The sums over all entries. Integers saturate at the largest 64-bit integer, like in entries."""
        return SessionTotals(
            tool_calls=_sum(tool.call_count for tool in self.tools),
            tool_failures=_sum(tool.fail_count for tool in self.tools),
            llm_interactions=_sum(llm.interaction_count for llm in self.llms),
            prompt_tokens=_sum(llm.prompt_tokens for llm in self.llms),
            completion_tokens=_sum(llm.completion_tokens for llm in self.llms),
            total_tokens=_sum(llm.total_tokens for llm in self.llms),
            cost=ExactSum([llm.cost for llm in self.llms]).value(),
            unknown_cost_count=_sum(llm.unknown_cost_count for llm in self.llms),
            dropped=_sum(self.dropped.values()),
            interrupted=_sum(tool.interrupted_count for tool in self.tools),
        )

    @property
    def current_phase(self) -> PhaseMetric | None:
        """The phase that was entered last; None if this phase has ended, or no phase was entered."""
        entered = [phase for phase in self.phases if phase.entered_at]
        last = max(entered, key=lambda phase: (phase.entered_at, phase.phase), default=None)
        if last is None or (last.ended_at and last.entered_at and last.ended_at >= last.entered_at):
            return None
        return last

    def tool(self, name: str) -> ToolMetric | None:
        """Return the entry of a tool; None without counted calls."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def model(self, name: str) -> ModelMetric | None:
        """Return the entry of a language model; None without counted interactions."""
        return next((model for model in self.models if model.model == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with the keys of the Go program. Times are RFC 3339.

        Raises:
            ValueError: A field has an invalid value; the message names the field.
        """
        return _write(SessionMetrics, self, "")

    @classmethod
    def from_json(cls, document: object) -> SessionMetrics:
        """Make metrics from a JSON object. Unknown keys are ignored; missing ones are zero, like in Go.

        Raises:
            ValueError: The object does not have this form; the message names the place.
        """
        return cls.of(read(document))

    @classmethod
    def of(cls, read: Mapping[str, Any]) -> SessionMetrics:
        """Return the metrics that `read` read. Not for users."""
        fields: dict[str, Any] = {
            name: value.entries() if isinstance(value, Columns) else value for name, value in read.items()
        }
        return cls(**fields)


Number = TypeVar("Number", int, float)

_LIST = re.compile(r"list\[([A-Z]\w+)\]")

ENTRIES: dict[str, type[Any]] = {
    f.name: globals()[found[1]]
    for f in dataclasses.fields(SessionMetrics)
    if (found := _LIST.fullmatch(str(f.type)))
}
"""The fields that are lists of entries, and their type."""


SINGLE: dict[str, type[Any]] = {"startup": StartupMetric}
"""The fields with a single value or None, and their type."""


def entry_to_json(entry: Any) -> dict[str, Any]:
    """Return the JSON object of one entry of the lists in `ENTRIES`."""
    return _write(type(entry), entry, "")


_RECORDED = tuple(name for name in (*ENTRIES, *SINGLE) if name != "sites")


def has_records(metrics: SessionMetrics | Mapping[str, Any]) -> bool:
    """Whether anything was ever recorded, in metrics or in a result of `read`."""
    if isinstance(metrics, SessionMetrics):
        return any(getattr(metrics, name) for name in _RECORDED)
    return any(metrics[name] for name in _RECORDED)


def format_time(time: datetime) -> str:
    """Format a time in RFC 3339 in UTC, which Go's time.Time can parse."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _quantile(
    durations: Histogram | None, q: float, least: int | None = None, greatest: int | None = None
) -> float | None:
    return (durations or Histogram()).quantile(q, least, greatest)


# --- JSON ---------------------------------------------------------------------------------------------


class Columns:
    """The entries of a list, as they are read: field by field, which takes a fraction of the time.

    Attributes:
        cls: The type of the entries.
        fields: The values of each field, for all entries in order, by the name of the field. Histograms are
            packed.
    """

    __slots__ = ("cls", "fields")

    def __init__(self, cls: type[Any], fields: dict[str, list[Any]]) -> None:
        self.cls = cls
        self.fields = fields

    def __bool__(self) -> bool:
        return any(self.fields.values())

    def entries(self) -> list[Any]:
        """Return the entries."""
        histograms = {f.name for f in _fields(self.cls) if f.form.is_packed}
        columns = [
            [value and unpack(value) for value in values] if name in histograms else values
            for name, values in self.fields.items()
        ]
        return list(map(self.cls, *columns))


def read(document: object) -> dict[str, Any]:
    """Read a JSON object as `SessionMetrics.from_json` does. Return its fields, with `Columns` for lists.

    Raises:
        ValueError: See `SessionMetrics.from_json`.
    """
    if not isinstance(document, dict):
        raise ValueError(f"the document is {_kind(document)}, not an object")  # noqa: TRY004  # of the input
    return _read_fields(SessionMetrics, document, "")


class _Form(NamedTuple):
    """The conversion of a type from and to JSON. Both functions take a value and its place, and check it.

    Attributes:
        read: Returns the value, from JSON or from a caller.
        write: Returns the JSON of a value.
        read_plain: Returns what `read` returns for each of many values if all of them are as this library
            usually writes them; None if one of them may be different.
        is_packed: Whether the values are histograms, which are packed in `Columns`.
    """

    read: Callable[[Any, str], Any]
    write: Callable[[Any, str], Any]
    read_plain: Callable[[list[Any]], list[Any] | None]
    is_packed: bool = False


class _Field(NamedTuple):
    """A field of a type in this module.

    Attributes:
        name: The name.
        form: The conversion from and to JSON.
        empty: The value that JSON omits; ... if JSON always has the field.
    """

    name: str
    form: _Form
    empty: Any


def _fields(cls: type[Any]) -> list[_Field]:
    """Return the fields of a type that JSON contains."""
    known = _FIELDS.get(cls)
    if known is None:
        if issubclass(cls, Value):
            # A program may leave a field as None, to be filled in later. JSON always has the value.
            spelled = {name: cls.__annotations__[name].removesuffix(" | None") for name in cls.__match_args__}
            types = [(name, spelled[name], _EMPTY.get(name, ...)) for name in cls.__match_args__]
        else:
            types = [(f.name, str(f.type), _empty(f)) for f in dataclasses.fields(cls) if f.name != "rest"]
        known = _FIELDS[cls] = [_Field(name, _form(spelled), empty) for name, spelled, empty in types]
    return known


_FIELDS: dict[type[Any], list[_Field]] = {}
_EMPTY = {"files": (), "error_type": ""}


def _empty(f: dataclasses.Field[Any]) -> Any:
    """Return the value of a field that JSON omits. A zero stays if None is the default: 0 ms is valid."""
    if not f.metadata.get("omitempty"):
        return ...
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _form(annotation: str) -> _Form:
    """Return the form of a field's type."""
    if entry := _LIST.fullmatch(annotation):
        cls = globals()[entry[1]]
        return _Form(
            lambda value, where: _read_columns(cls, _list(value), where),
            lambda value, where: [_write(cls, e, f"{where}[{i}].") for i, e in enumerate(_list(value))],
            _read_none,
        )
    name = annotation.removesuffix(" | None")
    if name not in _READERS:
        cls = globals()[name]
        form = _Form(
            lambda value, where: _read(cls, value, f"{where}."),
            lambda value, where: _write(cls, value, f"{where}."),
            _read_none,
        )
    else:
        read = _READERS[name]
        spell = _SPELLED.get(name, lambda value: value)
        read_plain = _PLAIN_READERS.get(name, _read_none)
        is_packed = name == "Histogram"
        form = _Form(lambda value, _: read(value), lambda value, _: spell(read(value)), read_plain, is_packed)
    return form if name == annotation else _or_none(form)


def _or_none(form: _Form) -> _Form:
    return _Form(
        lambda value, where: None if value is None else form.read(value, where),
        lambda value, where: None if value is None else form.write(value, where),
        form.read_plain,
        form.is_packed,
    )


def _read(cls: type[Any], given: Any, where: str) -> Any:
    """Make an object of a type from a JSON object."""
    return cls(**_read_fields(cls, given, where))


def _read_fields(cls: type[Any], given: Any, where: str) -> dict[str, Any]:
    """Read the fields of an object. A missing field that may be empty is empty."""
    if not isinstance(given, dict):
        raise ValueError(f"{where.rstrip('.')} is {_kind(given)}, not an object")  # noqa: TRY004  # of the input
    values = {}
    for f in _fields(cls):
        value = given.get(f.name)
        if value is None and f.empty is not ... and f.empty != []:  # a missing list is read as an empty one
            values[f.name] = copy(f.empty)
        else:
            values[f.name] = _in_place(f.form.read, value, f"{where}{f.name}")
    return values


def _read_columns(cls: type[Any], entries: list[Any], where: str) -> Columns:
    """Read the entries of a list."""
    if not entries:
        return Columns(cls, {f.name: [] for f in _fields(cls)})
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}[{i}] is {_kind(entry)}, not an object")  # noqa: TRY004  # of the input
    return Columns(cls, {f.name: _read_column(f, entries, where) for f in _fields(cls)})


def _read_column(f: _Field, entries: list[dict[str, Any]], where: str) -> list[Any]:
    """Read the values of one field."""
    read, name, empty = f.form.read, f.name, f.empty
    values = [entry.get(name) for entry in entries]
    plain = f.form.read_plain(values)
    if plain is not None:
        return plain
    if empty is not ... and all(value is None for value in values):  # often, and much faster
        return [copy(empty) for _ in values] if isinstance(empty, dict) else [empty] * len(values)
    column = [
        copy(empty) if value is None and empty is not ... else _in_place(read, value, f"{where}[{i}].{name}")
        for i, value in enumerate(values)
    ]
    return [value and pack(value) for value in column] if f.form.is_packed else column


def _write(cls: type[Any], given: Any, where: str) -> dict[str, Any]:
    """Return the JSON of an object, with each field checked. Empty fields that JSON may omit are left out."""
    if not isinstance(given, cls):
        raise ValueError(f"{where.rstrip('.')} is {_kind(given)}, not a {cls.__name__}")  # noqa: TRY004
    document = {}
    for f in _fields(cls):
        value = getattr(given, f.name)
        if f.empty is ... or value != f.empty:
            document[f.name] = _in_place(f.form.write, value, f"{where}{f.name}")
    return document


def _in_place(form: Callable[[Any, str], Any], value: object, place: str) -> Any:
    """Convert a value by a form. The message of an error names the place."""
    try:
        return form(value, place)
    except (TypeError, ValueError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(place) else f"{place} {text}") from None


def _kind(value: object) -> str:
    if value is None:
        return "missing or null"
    # Show only short values: foreign JSON may be deeply nested, or have numbers with a million digits.
    shown = f" {value!r:.60}" if isinstance(value, str | float) or _is_int64(value) else ""
    return f"{kind(value)}{shown}"


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and -INT64_MAX - 1 <= value <= INT64_MAX


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"is {_kind(value)}, not a string")
    value.encode()  # raises a UnicodeEncodeError, which is a ValueError, for a lone surrogate
    return str.__str__(value)


def _integer(value: object) -> int:
    number = 0 if value is None else as_int(value)
    if number is None or not _is_int64(number):
        raise TypeError(f"is {_kind(value)}, not an integer of 64 bits")
    return number


def _count(value: object) -> int:
    return _not_negative(_integer(value))


def _number(value: object) -> float:
    if value is None:
        return 0.0
    whole, number = as_int(value), as_float(value)
    if number is None or not math.isfinite(number) or not (whole is None or _is_int64(whole)):
        raise TypeError(f"is {_kind(value)}, not a finite number")
    return _not_negative(number)


def _not_negative(number: Number) -> Number:
    """Return a number. All are counts, durations or costs: a negative one would let a counter decrease."""
    if number < 0:
        raise ValueError(f"is negative: {number}")
    return number


def _flag(value: object) -> bool:
    flag = False if value is None else as_bool(value)
    if flag is None:
        raise TypeError(f"is {_kind(value)}, not true or false")
    return flag


def _time(value: object) -> datetime:
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise TypeError(f"is {_kind(value)}, not a time with its offset from UTC")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"is {_kind(value)}, out of range in UTC") from None


def _list(value: object) -> list[Any]:
    if not isinstance(value, list | None):  # a nil slice of Go is null
        raise TypeError(f"is {_kind(value)}, not a list")
    return value or []


def _counts(value: object) -> dict[str, int]:
    if not isinstance(value, dict | None):
        raise TypeError(f"is {_kind(value)}, not an object")
    return {_text(key): _count(count) for key, count in (value or {}).items()}


def _integers(value: object) -> list[int]:
    items = _list(value)
    return list(items) if _plain_integers(items) else [_integer(item) for item in items]


def _numbers(value: object) -> list[float]:
    items = _list(value)
    return list(items) if _plain_numbers(items) else [_number(item) for item in items]


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(item) for item in (value if isinstance(value, tuple) else _list(value)))


def _histogram(value: object) -> Histogram:
    return value if isinstance(value, Histogram) else Histogram.from_json(value)


def _read_none(_: list[Any]) -> None:
    """Return None: these values are always read one by one."""


def _plain_texts(values: list[Any]) -> list[str] | None:
    try:
        return values if set(map(type, values)) == {str} and "".join(values).encode() is not None else None
    except UnicodeEncodeError:  # a lone surrogate
        return None


def _plain_integers(values: list[Any]) -> list[int] | None:
    is_plain = set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= INT64_MAX
    return values if is_plain else None


def _plain_numbers(values: list[Any]) -> list[float] | None:
    is_plain = set(map(type, values)) == {float} and all(map(math.isfinite, values)) and min(values) >= 0
    return values if is_plain else None


def _plain_flags(values: list[Any]) -> list[bool] | None:
    return values if set(map(type, values)) == {bool} else None


_PLAIN_READERS: dict[str, Callable[[list[Any]], list[Any] | None]] = {
    "str": _plain_texts,
    "int": _plain_integers,
    "float": _plain_numbers,
    "bool": _plain_flags,
    "Histogram": packed.read_plain,
}
"""Readers of many values at once, which take a fraction of the time; see `_Form.read_plain`."""

_READERS: dict[str, Callable[[object], Any]] = {
    "str": _text,
    "int": _count,
    "float": _number,
    "bool": _flag,
    "datetime": _time,
    "dict[str, int]": _counts,
    "list[int]": _integers,
    "list[float]": _numbers,
    "tuple[str, ...]": _texts,
    "Histogram": _histogram,
}

_SPELLED: dict[str, Callable[[Any], Any]] = {
    "datetime": format_time,
    "tuple[str, ...]": list,
    "Histogram": Histogram.to_json,
}
