"""Calls under way: begun, and not ended. What begins and ends is paired in whatever order it arrives.

The end of a call may be read before its beginning, for they may have gone through different writers and
batches. The beginning was stored before the end was; so it comes at the latest with what is drained next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m31a_mp.kinds.call import caller_of, of_session
from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.kinds.parts import Restoring, integer
from m31a_mp.kinds.state import State
from m31a_mp.kinds.times import from_ns
from m31a_mp.model import RunningCall, SessionMetrics

MAX_RUNNING = 1_000_000
"""How many calls may be under way, and how many ends may wait for their beginning."""
MAX_RUNNING_BYTES = 128 * 1024 * 1024
"""How many bytes the calls under way may take in JSON, and how many the ends: `metrics.json` has names
twice, and no more than 512 MiB."""
_ESCAPED = 6  # bytes that a character takes in JSON at most


class Running:
    """The declaration of the calls under way.

    Attributes:
        name: The key in `metrics.json`, which is the field of `SessionMetrics`.
        fields: The fields of the record of a beginning.
    """

    def __init__(self, name: str, *fields: str) -> None:
        self.name = name
        self.fields = fields

    def new(self) -> CallsUnderWay:
        """No call is under way."""
        return CallsUnderWay(self)


class CallsUnderWay(State):
    """The calls under way.

    Attributes:
        first: The time of the first beginning of all, in ns; INT64_MAX while there was none.
        calls: When each began, in ns, and its tool, by its id.
    """

    def __init__(self, table: Running) -> None:
        self.table = table
        self.first = INT64_MAX
        self.calls: dict[str, tuple[int, str]] = {}
        self._bytes = 0
        # Calls whose end was read, and not their beginning: since the last `forget_ended`, and before.
        self._ended: set[str] = set()
        self._ended_before: set[str] = set()
        self._ended_bytes = 0

    def __len__(self) -> int:
        return len(self.calls)

    def add(self, time: int, name: str, call: str) -> None:
        """Note that a call began.

        Raises:
            ValueError: There are too many.
        """
        if not self._has_ended(call):
            self.check_room(name, call)
            self._begin(time, name, call)

    def check_room(self, name: str, call: str) -> None:
        """Raise ValueError if one more call would be too many."""
        if len(self.calls) >= MAX_RUNNING or self._bytes + _size(name, call) > MAX_RUNNING_BYTES:
            raise ValueError(f"there are {len(self.calls)} calls that have not ended, and no room for more")

    def end(self, call: str) -> None:
        """Note that a call ended. Of too many that wait for their beginning the rest is not noted."""
        if call in self.calls:
            self.take(call)
        elif len(self._ended) < MAX_RUNNING and self._ended_bytes + len(call) <= MAX_RUNNING_BYTES:
            self._ended.add(call)
            self._ended_bytes += len(call)

    def take(self, call: str) -> tuple[int, str]:
        """Take a call from those under way; returns when it began, and its tool."""
        time, name = self.calls.pop(call)
        self._bytes -= _size(name, call)
        return time, name

    def forget_ended(self) -> None:
        """Forget the ends that had waited before all was drained: their beginnings were dropped."""
        self._ended_before, self._ended = self._ended, set()
        self._ended_bytes = sum(map(len, self._ended_before))

    def qualify(self, session_id: str) -> None:
        """Tell the calls from those of other sessions, which may use the same ids."""
        self.calls = {of_session(call, session_id): begun for call, begun in self.calls.items()}
        self._ended, self._ended_before = (
            {of_session(call, session_id) for call in ended} for ended in (self._ended, self._ended_before)
        )

    def _begin(self, time: int, name: str, call: str) -> None:
        if call in self.calls:  # begun twice, it is the same call
            time, name = min((time, name), self.take(call))
        self.calls[call] = (time, name)
        self._bytes += _size(name, call)

    def _has_ended(self, call: str) -> bool:
        """Whether the end of a call waits for its beginning; it waits no more."""
        for ended in (self._ended, self._ended_before):
            if call in ended:
                ended.discard(call)
                return True
        return False

    def begun(self) -> Iterator[int]:
        """When the first call began, if any did."""
        return iter([self.first] if self.first < INT64_MAX else [])

    def merge(self, other: CallsUnderWay) -> None:
        """Add the calls of another state."""
        self.first = min(self.first, other.first)
        for call in other._ended | other._ended_before:
            self.end(call)
        for call, (time, name) in other.calls.items():
            if not self._has_ended(call):
                self._begin(time, name, call)

    def shown(self) -> dict[str, Any]:
        """The calls as a field of `SessionMetrics`, the longest first."""
        in_order = sorted((time, name, call) for call, (time, name) in self.calls.items())
        return {self.table.name: [_shown(*begun) for begun in in_order]}

    def kept(self) -> dict[str, Any] | None:
        """The checkpoint's part: all of it, for what is shown has no ids."""
        if self.first == INT64_MAX and not self._ended and not self._ended_before:
            return None
        ended = sorted(self._ended | self._ended_before)
        return {"first": self.first, "calls": self.calls, "ended": ended}

    def restore(self, metrics: SessionMetrics, kept: Mapping[str, Any], at: Restoring) -> None:  # noqa: ARG002
        """Add what was kept. Without that nobody knows which calls they are, and they are left out."""
        first = integer(kept.get("first", INT64_MAX))
        self.first = first if first == INT64_MAX else at.time(first)
        for call, (time, name) in kept.get("calls", {}).items():
            self._begin(at.time(time), str(name), call)
        # They were read before what is drained next.
        self._ended_before = set(map(str, kept.get("ended", [])))


def _size(name: str, call: str) -> int:
    return _ESCAPED * len(name) + len(call)


def _shown(time: int, name: str, call: str) -> RunningCall:
    caller = caller_of(call)
    who = (caller.pid, caller.host) if caller else ()
    return RunningCall(name, from_ns(time), *who)
