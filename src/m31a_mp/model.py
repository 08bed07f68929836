"""The metrics of a session: the types, and their JSON.

Types, keys and meaning are those of the `metrics` package of the Go program M31A, so that either reads
what the other wrote. What is ours alone comes as additional keys.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from m31a_mp.kinds.checks import INT64_MAX, as_bool, as_float, as_int, kind


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


@dataclass(slots=True)
class ToolMetric:
    """All calls of one tool."""

    name: str
    call_count: int = 0
    success_count: int = 0
    fail_count: int = 0
    total_duration_ms: int = 0
    avg_duration_ms: float = 0.0


@dataclass(slots=True)
class LLMMetric:
    """All language-model interactions of one phase."""

    phase: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost: float = 0.0
    interaction_count: int = 0


@dataclass(slots=True)
class PhaseMetric:
    """One workflow phase. Duration and success are those recorded last, not a sum."""

    phase: str
    duration_ms: int = 0
    transition_count: int = 0
    heal_trigger_count: int = 0
    bisect_trigger_count: int = 0
    success: bool = False


@dataclass(slots=True)
class CancellationMetric:
    """One cancellation of a phase. Its time is aware, in UTC."""

    phase: str
    reason: str
    timestamp: datetime


OPTIONAL = {"omitempty": True}
"""Marks a field that JSON leaves out where it is empty, as Go calls it."""


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
        cancellations: The latest 1,000 cancellations, by time.
        cancellation_count: How many there were.
    """

    session_id: str
    started_at: datetime = field(default_factory=_now)
    updated_at: datetime = field(default_factory=_now)
    tools: list[ToolMetric] = field(default_factory=list)
    llms: list[LLMMetric] = field(default_factory=list)
    phases: list[PhaseMetric] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    cancellations: list[CancellationMetric] = field(default_factory=list, metadata=OPTIONAL)
    cancellation_count: int = field(default=0, metadata=OPTIONAL)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with the keys of the Go program; times are RFC 3339.

        Raises:
            ValueError: A field holds what its type does not allow; says which.
        """
        document = _fields(SessionMetrics, asdict(self), "")
        for name, entry in ENTRIES.items():
            document[name] = [
                _spelled(entry, _fields(entry, e, f"{name}[{i}].")) for i, e in enumerate(document[name])
            ]
        return _spelled(SessionMetrics, document)

    @classmethod
    def from_json(cls, document: object) -> SessionMetrics:
        """Read a JSON object. Unknown keys are left out; missing ones are zero, as in Go.

        Raises:
            ValueError: It is not of that form; says where.
        """
        fields = _fields(cls, document, "")
        for name, entry in ENTRIES.items():
            fields[name] = [entry(**_fields(entry, e, f"{name}[{i}].")) for i, e in enumerate(fields[name])]
        return cls(**fields)


_LIST = re.compile(r"list\[(\w+)\]")

ENTRIES: dict[str, type[Any]] = {
    f.name: globals()[found[1]]
    for f in dataclasses.fields(SessionMetrics)
    if (found := _LIST.fullmatch(str(f.type)))
}
"""The fields that are lists, and the type of their entries."""


def has_records(metrics: SessionMetrics) -> bool:
    """Whether anything was ever recorded."""
    return any(getattr(metrics, name) for name in ENTRIES)


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC, as Go's time.Time reads it."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _spelled(cls: type[Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them: times are text, what is optional and empty is left out."""
    for f in dataclasses.fields(cls):
        if f.type == "datetime":
            fields[f.name] = format_time(fields[f.name])
        elif f.metadata.get("omitempty") and not fields[f.name]:
            del fields[f.name]
    return fields


def _fields(cls: type[Any], value: object, where: str) -> dict[str, Any]:
    """The fields of a dataclass from a JSON object (or from its own `asdict`), each checked."""
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.') or 'the document'} is {_kind(value)}, not an object")  # noqa: TRY004  # of the input, not of the caller
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        given = value.get(f.name)
        try:
            fields[f.name] = _READERS[str(f.type)](given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}{f.name} {error}") from None
    return fields


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


_READERS: dict[str, Callable[[object], Any]] = {
    "str": _text,
    "int": _integer,
    "float": _number,
    "bool": _flag,
    "datetime": _time,
    "dict[str, int]": _counts,
    **{f"list[{entry.__name__}]": _list for entry in ENTRIES.values()},
}
