"""The types for declarations of kinds of records: their fields, and their effects on tables."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from m31a_mp.kinds.fields import COUNT, NAME, PRICE, SHORT_NAME, Field
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.kinds.latest import Single
from m31a_mp.kinds.parts import Counts, Earliest, Ever, Exact, LastTime, Latest, Sum, Timed, TimedCalls
from m31a_mp.kinds.running import Running
from m31a_mp.kinds.tables import Table
from m31a_mp.kinds.timeline import Steps


class Always(NamedTuple):
    """Adds 1."""

    def of(self, values: Mapping[str, Any]) -> int:  # noqa: ARG002  # adds 1 for all values
        """Return the number that a record with these values adds."""
        return 1


class If(NamedTuple):
    """Adds 1 if a flag is set, or if it is not set."""

    flag: str
    wanted: bool = True

    def of(self, values: Mapping[str, Any]) -> int:
        """Return the number that a record with these values adds."""
        return int(values[self.flag] is self.wanted)


class Unknown(NamedTuple):
    """Adds 1 if a field is None."""

    field: str

    def of(self, values: Mapping[str, Any]) -> int:
        """Return the number that a record with these values adds."""
        return int(values[self.field] is None)


class Value(NamedTuple):
    """Adds the value of a field; nothing if the value is None."""

    field: str

    def of(self, values: Mapping[str, Any]) -> Any:
        """Return the value that a record with these values adds."""
        return values[self.field]


class Values(NamedTuple):
    """Sets the values of some fields. The latest record wins."""

    fields: tuple[str, ...]

    def of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values that a record with these values sets."""
        return tuple(values[name] for name in self.fields)


class When(NamedTuple):
    """Sets the time of the record."""

    def of(self, values: Mapping[str, Any]) -> None:
        """Return None: the time is not among the values."""


class Ended(NamedTuple):
    """Adds a call: its outcome and its duration."""

    success: str
    duration_ms: str

    def of(self, values: Mapping[str, Any]) -> tuple[bool, int]:
        """Return the outcome and the duration that a record with these values adds."""
        return values[self.success], values[self.duration_ms]


Effect = Always | Ended | If | Unknown | Value | Values | When


class Into(NamedTuple):
    """An addition to some parts of one entry in a table, or of one step in the timeline.

    Attributes:
        table: The table, or the timeline, whose entry is the step at the record's time.
        key: The field with the entry's name. If its value is None, nothing is added.
        adds: The effect on each part, by the name of the part.
    """

    table: Table | Steps
    key: str
    adds: Mapping[str, Effect]


class Ends(NamedTuple):
    """The end of a running call.

    Attributes:
        table: The running calls.
        call: The field with the call's id. If its value is None, no beginning was recorded.
    """

    table: Running
    call: str


class Within(NamedTuple):
    """A rule: some counts are parts of another count.

    Attributes:
        parts: The fields of the parts.
        whole: The field of the whole.
    """

    parts: tuple[str, ...]
    whole: str

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise ValueError if the sum of the parts exceeds the whole."""
        if sum(values[part] for part in self.parts) > values[self.whole]:
            raise ValueError(f"{' and '.join(self.parts)} are more than {self.whole}")


Whole = Happenings | Running | Single
"""The states that take the fields of a record unchanged."""

_NONE: Mapping[str, Any] = MappingProxyType({})


class Kind:
    """One kind of record.

    Attributes:
        event: The name of the kind: the method's name without `record_`.
        fields: The keys, in the order of the line and of the method's arguments.
        into: The tables, lists and other states that a record changes.
        documentation: The method's docstring without the arguments.
        about: The descriptions of the method's arguments, by name.
        command: The name of the command in `m31a-mp record`; empty if cli/record.py defines the command.
        example: An example of arguments for `m31a-mp record`.
        grouped: Fields that come in one argument, by its name. An object of the caller provides them.
        rules: Conditions on several fields together.
        only_failed: Fields that the method accepts only if `success` is false. The fold accepts them always,
            because earlier versions wrote them.
        usual: Optional fields that many records have together. The fold has a fast path for them.
    """

    def __init__(  # noqa: PLR0913  # most of them by name
        self,
        event: str,
        fields: Mapping[str, Field],
        into: tuple[Ends | Into | Whole, ...],
        documentation: str,
        about: Mapping[str, str] = _NONE,
        *,
        command: str = "",
        example: str = "",
        grouped: Mapping[str, tuple[str, ...]] = _NONE,
        rules: tuple[Within, ...] = (),
        only_failed: tuple[str, ...] = (),
        usual: tuple[str, ...] = (),
    ) -> None:
        """Declare a kind. Each part must accept its effect: a sum of floats would depend on the order.

        Raises:
            TypeError: The declaration is wrong; the message names the place.
        """
        self.event = event
        self.fields = fields
        self.into = into
        self.documentation = documentation
        self.about = about
        self.command = command
        self.example = example
        self.grouped = grouped
        self.rules = rules
        self.only_failed = only_failed
        self.usual = usual
        for state in into:
            if isinstance(state, Into) and isinstance(state.table, Table):
                if fields[state.key].type not in {NAME.type, SHORT_NAME.type}:
                    raise TypeError(f"{event}: {state.key} is not a name")
                for name, effect in state.adds.items():
                    self._check(name, state.table.parts[name], effect)

    def _check(self, name: str, part: object, effect: Effect) -> None:
        takes = _TAKES.get(type(part), ())
        given = self.fields[effect.field].type if isinstance(effect, Value) else type(effect)
        if given not in takes:
            raise TypeError(f"{self.event}: {name} does not take {effect}")

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all fields of a record, with defaults for omitted ones.

        Raises:
            KeyError: A required field is missing.
        """
        return {
            name: given.get(name, field.default) if field.is_optional else given[name]
            for name, field in self.fields.items()
        }


_TAKES: dict[type, tuple[object, ...]] = {
    Sum: (Always, If, Unknown, COUNT.type),
    Exact: (PRICE.type,),
    Latest: (Values,),
    LastTime: (When,),
    Earliest: (SHORT_NAME.type,),
    Ever: (If,),
    Timed: (COUNT.type,),
    TimedCalls: (Ended,),
    Counts: (SHORT_NAME.type,),
}
