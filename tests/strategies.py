"""Records of every kind, what they must add up to, and a process that is killed on their way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import orjson
from hypothesis import strategies as st

from m31a_mp import Recorder, SessionMetrics, Usage
from m31a_mp.journal.append import Journal
from m31a_mp.journal.batch import Batch
from m31a_mp.segments.drain import drain
from m31a_mp.segments.reader import list_segments
from m31a_mp.session.paths import Session
from m31a_mp.system import files
from workers import locked

INT64_MAX = 2**63 - 1

_KEYS = {
    "tool_call": ("name", "success", "duration_ms"),
    "llm_interaction": ("phase", "usage", "cost"),
    "phase_transition": ("phase",),
    "phase_duration": ("phase", "duration_ms", "success"),
    "heal_trigger": ("phase",),
    "bisect_trigger": ("phase",),
}


@dataclass(frozen=True)
class Record:
    """One call of a `record_*` method."""

    event: str
    arguments: tuple[Any, ...]

    def perform(self, recorder: Recorder) -> None:
        getattr(recorder, f"record_{self.event}")(*self.arguments)

    def fields(self) -> dict[str, Any]:
        """The arguments by the keys that they have in a line."""
        fields = dict(zip(_KEYS[self.event], self.arguments, strict=True))
        usage = fields.pop("usage", None)
        if usage is not None:
            fields["prompt_tokens"] = usage.prompt_tokens
            fields["completion_tokens"] = usage.completion_tokens
            fields["total_tokens"] = usage.total_tokens
        return fields

    def line(self, time: int) -> bytes:
        """As any other program would write it."""
        return orjson.dumps({"event": self.event, "time": time, **self.fields()}) + b"\n"


Entries = dict[str, list[dict[str, Any]]]


def expected(records: Iterable[tuple[int, Record]]) -> Entries:
    """What records of these times must add up to, as in `metrics.json`; no two have the same time."""
    entries: dict[str, dict[str, dict[str, Any]]] = {"tools": {}, "llms": {}, "phases": {}}
    costs: dict[str, Fraction] = {}
    for _, record in sorted(records, key=lambda item: item[0]):
        values = record.fields()
        if record.event == "tool_call":
            new: dict[str, Any] = dict.fromkeys(
                ("call_count", "success_count", "fail_count", "total_duration_ms"), 0
            )
            entry = entries["tools"].setdefault(values["name"], {"name": values["name"], **new})
            entry["call_count"] += 1
            entry["success_count" if values["success"] else "fail_count"] += 1
            entry["total_duration_ms"] = min(entry["total_duration_ms"] + values["duration_ms"], INT64_MAX)
            entry["avg_duration_ms"] = entry["total_duration_ms"] / entry["call_count"]
            continue
        phase = values["phase"]
        if record.event == "llm_interaction":
            tokens = ("prompt_tokens", "completion_tokens", "total_tokens")
            new = dict.fromkeys((*tokens, "interaction_count"), 0)
            entry = entries["llms"].setdefault(phase, {"phase": phase, **new})
            for key in tokens:
                entry[key] = min(entry[key] + values[key], INT64_MAX)
            entry["interaction_count"] += 1
            costs[phase] = costs.get(phase, Fraction()) + Fraction(values["cost"])
            entry["cost"] = float(costs[phase])
            continue
        new = dict.fromkeys(
            ("duration_ms", "transition_count", "heal_trigger_count", "bisect_trigger_count"), 0
        )
        entry = entries["phases"].setdefault(phase, {"phase": phase, **new, "success": False})
        if record.event == "phase_duration":
            entry |= {"duration_ms": values["duration_ms"], "success": values["success"]}
        else:
            counter = record.event if record.event.endswith("_trigger") else "transition"
            entry[f"{counter.removeprefix('phase_')}_count"] += 1
    return {table: list(found.values()) for table, found in entries.items()}


def entries(metrics: SessionMetrics) -> Entries:
    """The entries of metrics, to compare with what was `expected`."""
    document = metrics.to_json()
    return {table: document[table] for table in ("tools", "llms", "phases")}


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


def records_of(
    names: st.SearchStrategy[str], counts: st.SearchStrategy[int] = counts
) -> st.SearchStrategy[Record]:
    """A record of any kind with such names and numbers."""
    usages = st.builds(Usage, counts, counts, counts)
    return st.one_of(
        st.builds(Record, st.just("tool_call"), st.tuples(names, st.booleans(), counts)),
        st.builds(Record, st.just("llm_interaction"), st.tuples(names, usages, costs)),
        st.builds(Record, st.just("phase_duration"), st.tuples(names, counts, st.booleans())),
        st.builds(
            Record,
            st.sampled_from(["phase_transition", "heal_trigger", "bisect_trigger"]),
            st.tuples(names),
        ),
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
