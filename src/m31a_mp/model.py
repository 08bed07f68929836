"""The metrics of a session: the types, and their JSON.

Types, keys and meaning are those of the `metrics` package of the Go program M31A, so that either reads
what the other wrote. What is ours alone comes as additional keys.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any

from m31a_mp.kinds.checks import INT64_MAX, as_bool, as_float, as_int, kind, saturated
from m31a_mp.kinds.exact import ExactSum
from m31a_mp.kinds.histogram import Histogram
from m31a_mp.kinds.value import Value
from m31a_mp.plan import PlanOutcome


class WorkflowPhase(StrEnum):
    """The phases of M31A's workflow. Any other string names a phase of the user's own."""

    IDLE = "idle"
    INITIALIZE = "initialize"
    DISCUSS = "discuss"
    PLAN = "plan"
    EXECUTE = "execute"
    VERIFY = "verify"
    RUNTIME = "runtime"
    SHIP = "ship"


OPTIONAL = {"omitempty": True}
"""Marks a field that JSON leaves out where it has its default, as Go calls it."""


@dataclass(slots=True)
class ToolMetric:
    """All calls of one tool. Durations are in milliseconds.

    Attributes:
        name: The tool.
        call_count, success_count, fail_count: How many calls there were, and how they ended.
        total_duration_ms, avg_duration_ms: Their durations: the sum, and the mean.
        min_duration_ms, max_duration_ms: The shortest and the longest; None where they are not known.
        durations: The histogram of the durations; None where there is none.
        errors: Why calls failed: how many for each name of an error. At most 100 names; the rest is `other`.
        interrupted_count: Calls whose process died in them. They failed, and their durations are not known.
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
        """The duration that a part of the calls did not exceed, within 2.2 %.

        Args:
            q: Which part, from 0 to 1: 0.5 is the median.

        Returns:
            Milliseconds; None where no duration is known.

        Raises:
            ValueError: `q` is not from 0 to 1.
        """
        return _quantile(self.durations, q, self.min_duration_ms, self.max_duration_ms)


@dataclass(slots=True)
class LLMMetric:
    """All language-model interactions of one phase.

    Attributes:
        phase: The workflow phase.
        prompt_tokens, completion_tokens, total_tokens: Their tokens.
        cost: What they cost; at least that, if `unknown_cost_count` is not 0.
        interaction_count: How many there were.
        unknown_cost_count: How many of them had no known cost.
        prompt_hash: The first hash of a prompt that was recorded; empty if there was none.
        truncated_input: Whether the input of any was cut.
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


@dataclass(slots=True)
class ModelMetric:
    """All interactions with one language model.

    Attributes:
        model: Its name.
        interaction_count: How many there were.
        prompt_tokens, completion_tokens, total_tokens: Their tokens.
        cached_tokens, cache_write_tokens: Parts of the prompt's tokens: read from a cache, written to one.
        reasoning_tokens: A part of the completion's tokens.
        cost: What they cost; at least that, if `unknown_cost_count` is not 0.
        unknown_cost_count: How many of them had no known cost.
        total_duration_ms: How long they took, as far as it was recorded, in milliseconds.
        min_duration_ms, max_duration_ms: The shortest and the longest; None where they are not known.
        durations: The histogram of those durations; None where there is none.
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
        """The duration that a part of the interactions did not exceed. See `ToolMetric.quantile`."""
        return _quantile(self.durations, q, self.min_duration_ms, self.max_duration_ms)


@dataclass(slots=True)
class PhaseMetric:
    """One workflow phase. Duration and success are those recorded last, not a sum.

    Attributes:
        phase: The phase.
        duration_ms, success: How long it took, in milliseconds, and its outcome.
        transition_count: How often it was entered.
        heal_trigger_count, bisect_trigger_count: How often self-healing and bisecting were triggered.
        heal_success_count, heal_fail_count: How they ended: self-healing,
        bisect_success_count, bisect_fail_count: and bisecting.
        heal_duration_ms: How long self-healing took, in all.
        heal_loop_count: How often self-healing went in a loop.
        entered_at, ended_at: When it was last entered, and when its duration was last recorded: aware times
            in UTC, or None.
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


@dataclass(slots=True)
class EditStrategyMetric:
    """How often one strategy of editing was used."""

    strategy: str
    count: int = 0


@dataclass(slots=True)
class StartupMetric:
    """The latest start of the program, in milliseconds: in all, and its parts."""

    duration_ms: int = 0
    config_load_ms: int = 0
    provider_ms: int = 0
    tui_ms: int = 0


@dataclass(slots=True)
class CompletionMetric:
    """One completion of a phase. It failed if it neither succeeded nor timed out. Its time is in UTC."""

    phase: str
    success: bool
    failure: bool
    timeout: bool
    timestamp: datetime


@dataclass(slots=True)
class CancellationMetric:
    """One cancellation of a phase. Its time is aware, in UTC."""

    phase: str
    reason: str
    timestamp: datetime


@dataclass(slots=True)
class RunningCall:
    """A tool call under way.

    Attributes:
        name: The tool.
        started_at: When it began; aware, in UTC.
        pid: The process that makes it; 0 if that is not known.
        host: The machine of that process; empty if it is not known.
    """

    name: str
    started_at: datetime
    pid: int = field(default=0, metadata=OPTIONAL)
    host: str = field(default="", metadata=OPTIONAL)


@dataclass(slots=True)
class Timeline:
    """What happened when: columns with a value for each step of time in which anything happened.

    Attributes:
        step_seconds: The width of each step: a power of two of seconds.
        starts: When each step begins, in seconds since the epoch, which the steps are aligned to.
        tool_calls, failures: Calls of tools, and those of them that failed.
        interactions, tokens, costs: Uses of language models, their tokens in all, and what they cost.
        unknown_costs: How many of them had no known cost.
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
        """Refuse what is no timeline.

        Raises:
            ValueError: The width is no power of two, the starts are not in order, a column has another length
                than they have, or a value is negative.
        """
        if self.step_seconds < 1 or self.step_seconds & (self.step_seconds - 1):
            raise ValueError(f"step_seconds is {self.step_seconds}, not a power of two")
        for name in self.columns():
            if len(getattr(self, name)) != len(self.starts):
                raise ValueError(f"{name} has not as many values as there are starts")
            if min(getattr(self, name), default=0) < 0:
                raise ValueError(f"{name} has a negative value")
        if any(after <= before for before, after in pairwise(self.starts)):
            raise ValueError("starts are not in order")

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names of the columns behind `starts`."""
        return tuple(f.name for f in dataclasses.fields(cls))[2:]


@dataclass(frozen=True, slots=True)
class SessionTotals:
    """The sums over all entries of a session. A cost is at least that, if `unknown_cost_count` is not 0."""

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


@dataclass(slots=True)
class SessionMetrics:
    """The metrics of a session; entries stand in the order in which they were first recorded.

    Attributes:
        session_id: The session's id.
        started_at: When its first owner opened it, or the time of its first record if that is earlier or if
            nobody ever owned it. Aware, in UTC.
        updated_at: The time of its latest record; `started_at` if it has none. Aware, in UTC.
        tools: One entry for each tool.
        llms: One entry for each phase with language-model use.
        phases: One entry for each phase.
        dropped: Records that could not be kept, by reason: `no_space`, `io_error`, or
            `backlog` by earlier releases.
        rejected: Pieces of damaged or invalid input set aside in `journal.rejected.ndjson`.
        models: One entry for each language model that was named.
        edit_strategies: One entry for each strategy of editing.
        plan_outcomes, completions, cancellations: The latest 1,000 of each, by time.
        plan_outcome_count, completion_count, cancellation_count: How many there were.
        startup: The latest start of the program; None if none was recorded.
        timeline: What happened when; None if nothing did.
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
    rest: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    """Not for users: what is not shown, so that `merge` is exact; None where this library did not make it."""

    @property
    def totals(self) -> SessionTotals:
        """The sums over all entries; as in these, integers stop at the largest of 64 bits."""
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
        """The phase that was entered last; None if it has ended, or no phase was entered."""
        entered = [phase for phase in self.phases if phase.entered_at]
        last = max(entered, key=lambda phase: (phase.entered_at, phase.phase), default=None)
        if last is None or (last.ended_at and last.entered_at and last.ended_at >= last.entered_at):
            return None
        return last

    def tool(self, name: str) -> ToolMetric | None:
        """The entry of a tool; None if no call of it is counted."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def model(self, name: str) -> ModelMetric | None:
        """The entry of a language model; None if no use of it is counted."""
        return next((model for model in self.models if model.model == name), None)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object with the keys of the Go program; times are RFC 3339.

        Raises:
            ValueError: A field holds what its type does not allow; says which.
        """
        return _write(SessionMetrics, self, "")

    @classmethod
    def from_json(cls, document: object) -> SessionMetrics:
        """From a JSON object. Unknown keys are left out; missing ones are zero, as in Go.

        Raises:
            ValueError: It is not of that form; says where.
        """
        if not isinstance(document, dict):
            raise ValueError(f"the document is {_kind(document)}, not an object")  # noqa: TRY004  # of the input
        metrics: SessionMetrics = _read(cls, document, "")
        return metrics


_LIST = re.compile(r"list\[([A-Z]\w+)\]")

ENTRIES: dict[str, type[Any]] = {
    f.name: globals()[found[1]]
    for f in dataclasses.fields(SessionMetrics)
    if (found := _LIST.fullmatch(str(f.type)))
}
"""The fields that are lists of entries, and their type."""


SINGLE: dict[str, type[Any]] = {"startup": StartupMetric}
"""The fields of which there is one at most, and their type."""


def has_records(metrics: SessionMetrics) -> bool:
    """Whether anything was ever recorded."""
    return any(getattr(metrics, name) for name in (*ENTRIES, *SINGLE))


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC, as Go's time.Time reads it."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _quantile(
    durations: Histogram | None, q: float, least: int | None = None, greatest: int | None = None
) -> float | None:
    return (durations or Histogram()).quantile(q, least, greatest)


# --- JSON ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """What a type looks like in JSON. Both take a value and its place, and raise if it is none of the type.

    Attributes:
        read: The value, from JSON or from a caller.
        write: JSON, from a value.
    """

    read: Callable[[Any, str], Any]
    write: Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a type in this module.

    Attributes:
        name: Its name.
        form: What it looks like.
        empty: The value that is left out; ... where none is.
    """

    name: str
    form: _Form
    empty: Any


def _fields(cls: type[Any]) -> list[_Field]:
    """The fields of a type that JSON has."""
    known = _FIELDS.get(cls)
    if known is None:
        if issubclass(cls, Value):
            # What the program may leave to be filled in is there in JSON.
            spelled = {name: cls.__annotations__[name].removesuffix(" | None") for name in cls.__match_args__}
            types = [(name, spelled[name], _EMPTY.get(name, ...)) for name in cls.__match_args__]
        else:
            types = [(f.name, str(f.type), _empty(f)) for f in dataclasses.fields(cls) if f.name != "rest"]
        known = _FIELDS[cls] = [_Field(name, _form(spelled), empty) for name, spelled, empty in types]
    return known


_FIELDS: dict[type[Any], list[_Field]] = {}
_EMPTY = {"files": (), "error_type": ""}


def _empty(f: dataclasses.Field[Any]) -> Any:
    """What JSON leaves out of a field. A zero that may also be None stays: 0 ms is a duration."""
    if not f.metadata.get("omitempty"):
        return ...
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _form(annotation: str) -> _Form:
    """The form of a type of a field."""
    if entry := _LIST.fullmatch(annotation):
        cls = globals()[entry[1]]
        return _Form(
            lambda value, where: [_read(cls, e, f"{where}[{i}].") for i, e in enumerate(_list(value))],
            lambda value, where: [_write(cls, e, f"{where}[{i}].") for i, e in enumerate(_list(value))],
        )
    name = annotation.removesuffix(" | None")
    if name not in _READERS:
        cls = globals()[name]
        form = _Form(
            lambda value, where: _read(cls, value, f"{where}."),
            lambda value, where: _write(cls, value, f"{where}."),
        )
    else:
        read = _READERS[name]
        spell = _SPELLED.get(name, lambda value: value)
        form = _Form(lambda value, _: read(value), lambda value, _: spell(read(value)))
    return form if name == annotation else _or_none(form)


def _or_none(form: _Form) -> _Form:
    return _Form(
        lambda value, where: None if value is None else form.read(value, where),
        lambda value, where: None if value is None else form.write(value, where),
    )


def _read(cls: type[Any], given: Any, where: str) -> Any:
    """An object of a type from a JSON object. A missing field that may be empty is empty."""
    if not isinstance(given, dict):
        raise ValueError(f"{where.rstrip('.')} is {_kind(given)}, not an object")  # noqa: TRY004  # of the input
    values = {}
    for f in _fields(cls):
        value = given.get(f.name)
        if value is None and f.empty is not ...:
            values[f.name] = copy(f.empty)
        else:
            values[f.name] = _in_place(f.form.read, value, f"{where}{f.name}")
    return cls(**values)


def _write(cls: type[Any], given: Any, where: str) -> dict[str, Any]:
    """The JSON of an object of a type, each field checked. What may be empty and is so is left out."""
    if not isinstance(given, cls):
        raise ValueError(f"{where.rstrip('.')} is {_kind(given)}, not a {cls.__name__}")  # noqa: TRY004
    document = {}
    for f in _fields(cls):
        value = getattr(given, f.name)
        if f.empty is ... or value != f.empty:
            document[f.name] = _in_place(f.form.write, value, f"{where}{f.name}")
    return document


def _in_place(form: Callable[[Any, str], Any], value: object, place: str) -> Any:
    """A value in its form; the error says where it stands."""
    try:
        return form(value, place)
    except (TypeError, ValueError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(place) else f"{place} {text}") from None


def _kind(value: object) -> str:
    if value is None:
        return "missing or null"
    # Of what another program wrote: it may be nested without end, or have a million digits.
    shown = f" {value!r:.60}" if isinstance(value, str | float) or _is_int64(value) else ""
    return f"{kind(value)}{shown}"


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and -INT64_MAX - 1 <= value <= INT64_MAX


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"is {_kind(value)}, not a string")
    value.encode()  # a lone surrogate is a UnicodeEncodeError, and that a ValueError
    return str.__str__(value)


def _integer(value: object) -> int:
    number = 0 if value is None else as_int(value)
    if number is None or not _is_int64(number):
        raise TypeError(f"is {_kind(value)}, not an integer of 64 bits")
    return number


def _number(value: object) -> float:
    if value is None:
        return 0.0
    whole, number = as_int(value), as_float(value)
    if number is None or not math.isfinite(number) or not (whole is None or _is_int64(whole)):
        raise TypeError(f"is {_kind(value)}, not a finite number")
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
    return {_text(key): _integer(count) for key, count in (value or {}).items()}


def _integers(value: object) -> list[int]:
    items = _list(value)
    if set(map(type, items)) <= {int} and (not items or (_is_int64(min(items)) and _is_int64(max(items)))):
        return list(items)
    return [_integer(item) for item in items]


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(item) for item in (value if isinstance(value, tuple) else _list(value)))


def _histogram(value: object) -> Histogram:
    return value if isinstance(value, Histogram) else Histogram.from_json(value)


_READERS: dict[str, Callable[[object], Any]] = {
    "str": _text,
    "int": _integer,
    "float": _number,
    "bool": _flag,
    "datetime": _time,
    "dict[str, int]": _counts,
    "list[int]": _integers,
    "list[float]": lambda value: [_number(item) for item in _list(value)],
    "tuple[str, ...]": _texts,
    "Histogram": _histogram,
}

_SPELLED: dict[str, Callable[[Any], Any]] = {
    "datetime": format_time,
    "tuple[str, ...]": list,
    "Histogram": Histogram.to_json,
}
