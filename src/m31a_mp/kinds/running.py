"""Running calls: calls that have begun and not ended. Beginnings and ends may arrive in any order.

The end of a call may be read before its beginning, because both may pass through different writers and
batches. The beginning was stored first, so that the next drain brings it at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from m31a_mp.kinds.call import caller_of, of_session
from m31a_mp.kinds.checks import INT64_MAX
from m31a_mp.kinds.parts import Restoring, integer
from m31a_mp.kinds.state import State
from m31a_mp.kinds.times import from_ns
from m31a_mp.model import RunningCall, entry_to_json

MAX_RUNNING = 1_000_000
"""The most running calls, and the most ends that wait for their beginnings."""
MAX_RUNNING_BYTES = 128 * 1024 * 1024
"""The most bytes that running calls take in JSON, and that ends take. `metrics.json` has each name twice, and
is not read if it has more than 512 MiB."""
_ESCAPED = 6  # the most bytes of one character in JSON


class Running:
    """The declaration of the running calls.

    Attributes:
        name: The key in `metrics.json`, which is the field of `SessionMetrics`.
        fields: The fields of the record of a beginning.
    """

    def __init__(self, name: str, *fields: str) -> None:
        self.name = name
        self.fields = fields

    def new(self) -> CallsUnderWay:
        """Return the state without running calls."""
        return CallsUnderWay(self)


class CallsUnderWay(State):
    """The running calls.

    Attributes:
        first: The time of the first beginning of any call, in ns; INT64_MAX without one.
        calls: The beginning of each call, in ns, and its tool, by the id of the call.
    """

    def __init__(self, table: Running) -> None:
        self.table = table
        self.first = INT64_MAX
        self.calls: dict[str, tuple[int, str]] = {}
        self._bytes = 0
        # Calls whose end was read without their beginning: since the last `forget_ended`, and before it.
        self._ended: set[str] = set()
        self._ended_before: set[str] = set()
        self._ended_bytes = 0
        # The beginnings as the last `encoded` found them, and their JSON.
        self._encoded: dict[str, tuple[tuple[int, str], orjson.Fragment]] = {}

    def __len__(self) -> int:
        return len(self.calls)

    def add(self, time: int, name: str, call: str) -> None:
        """Note that a call began.

        Raises:
            ValueError: There are too many running calls.
        """
        if (self._ended or self._ended_before) and self._has_ended(call):
            return
        calls = self.calls
        size = self._bytes + _ESCAPED * len(name) + len(call)
        if call in calls or len(calls) >= MAX_RUNNING or size > MAX_RUNNING_BYTES:  # a second one, or no room
            self.check_room(name, call)
            self._begin(time, name, call)
        else:
            calls[call] = (time, name)
            self._bytes = size

    def check_room(self, name: str, call: str) -> None:
        """Raise ValueError if one more call would be too many."""
        if len(self.calls) >= MAX_RUNNING or self._bytes + _size(name, call) > MAX_RUNNING_BYTES:
            raise ValueError(f"there are {len(self.calls)} calls that have not ended, and no room for more")

    def end(self, call: str) -> None:
        """Note that a call ended. An end without a beginning is ignored if too many wait already."""
        begun = self.calls.pop(call, None)
        if begun:
            self._bytes -= _ESCAPED * len(begun[1]) + len(call)
        elif len(self._ended) < MAX_RUNNING and self._ended_bytes + len(call) <= MAX_RUNNING_BYTES:
            self._ended.add(call)
            self._ended_bytes += len(call)

    def take(self, call: str) -> tuple[int, str]:
        """Remove a running call. Return the time of its beginning, in ns, and its tool."""
        time, name = self.calls.pop(call)
        self._bytes -= _size(name, call)
        return time, name

    def forget_ended(self) -> None:
        """Forget the ends that waited before the last complete drain: their beginnings were dropped."""
        self._ended_before, self._ended = self._ended, set()
        self._ended_bytes = sum(map(len, self._ended_before))

    def qualify(self, session_id: str) -> None:
        """Mark the calls as those of one session: calls of other sessions may have the same ids."""
        self.calls = {of_session(call, session_id): begun for call, begun in self.calls.items()}
        self._ended, self._ended_before = (
            {of_session(call, session_id) for call in ended} for ended in (self._ended, self._ended_before)
        )

    def _begin(self, time: int, name: str, call: str) -> None:
        if call in self.calls:  # a second beginning is of the same call
            time, name = min((time, name), self.take(call))
        self.calls[call] = (time, name)
        self._bytes += _size(name, call)

    def _has_ended(self, call: str) -> bool:
        """Return whether the end of the call waits for its beginning. The end waits no longer."""
        for ended in (self._ended, self._ended_before):
            if call in ended:
                ended.discard(call)
                self._ended_bytes -= len(call)
                return True
        return False

    def begun(self) -> Iterator[int]:
        """Return the time of the first beginning, if any."""
        return iter([self.first] if self.first < INT64_MAX else [])

    def merge(self, *others: CallsUnderWay) -> None:
        """Add the calls of other states."""
        for other in others:
            self.first = min(self.first, other.first)
            for call in other._ended | other._ended_before:
                self.end(call)
            for call, (time, name) in other.calls.items():
                if not self._has_ended(call):
                    self._begin(time, name, call)

    def shown(self) -> dict[str, Any]:
        """Return the calls as a field of `SessionMetrics`, longest first."""
        return {self.table.name: [_shown(*begun) for begun in self._in_order()]}

    def encoded(self, encode: Callable[[dict[str, Any]], orjson.Fragment]) -> list[orjson.Fragment]:
        """Return the JSON of the calls, longest first. A call is encoded once: many may run for long.

        Args:
            encode: Returns the JSON of a call in its list.
        """
        known, self._encoded = self._encoded, {}
        for time, name, call in self._in_order():
            begun, shown = known.get(call, (None, None))
            if shown is None or begun != (time, name):
                shown = encode(entry_to_json(_shown(time, name, call)))
            self._encoded[call] = (time, name), shown
        return [shown for _, shown in self._encoded.values()]

    def _in_order(self) -> list[tuple[int, str, str]]:
        return sorted((time, name, call) for call, (time, name) in self.calls.items())

    def kept(self) -> dict[str, Any] | None:
        """Return the checkpoint's part: the whole state, because the shown calls have no ids."""
        if self.first == INT64_MAX and not self._ended and not self._ended_before:
            return None
        ended = sorted(self._ended | self._ended_before)
        return {"first": self.first, "calls": dict(self.calls), "ended": ended}

    def restore(self, read: Mapping[str, Any], kept: Mapping[str, Any], at: Restoring) -> None:  # noqa: ARG002
        """Add the calls of the checkpoint. Without one, the shown calls have no ids and are left out."""
        first = integer(kept.get("first", INT64_MAX))
        self.first = first if first == INT64_MAX else at.time(first)
        for call, (time, name) in kept.get("calls", {}).items():
            self._begin(at.time(time), str(name), call)
        # These ends were read before the next drain.
        self._ended_before = set(map(str, kept.get("ended", [])))
        self._ended_bytes = sum(map(len, self._ended_before))


def _size(name: str, call: str) -> int:
    return _ESCAPED * len(name) + len(call)


def _shown(time: int, name: str, call: str) -> RunningCall:
    caller = caller_of(call)
    who = (caller.pid, caller.host) if caller else ()
    return RunningCall(name, from_ns(time), *who)
