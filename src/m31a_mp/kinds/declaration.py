"""What a declaration of a kind of record is made of: its fields, and what it adds to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m31a_mp.kinds.fields import COUNT, NAME, PRICE, SHORT_NAME, Field
from m31a_mp.kinds.happenings import Happenings
from m31a_mp.kinds.latest import Single
from m31a_mp.kinds.parts import Counts, Earliest, Ever, Exact, LastTime, Latest, Sum, Timed, TimedCalls
from m31a_mp.kinds.running import Running
from m31a_mp.kinds.tables import Table
from m31a_mp.kinds.timeline import Steps


@dataclass(frozen=True)
class Always:
    """Adds 1."""

    def of(self, values: Mapping[str, Any]) -> int:  # noqa: ARG002  # whatever they are
        """What a record of these values adds."""
        return 1


@dataclass(frozen=True)
class If:
    """Adds 1 where a flag is set; or where it is not."""

    flag: str
    wanted: bool = True

    def of(self, values: Mapping[str, Any]) -> int:
        """What a record of these values adds."""
        return int(values[self.flag] is self.wanted)


@dataclass(frozen=True)
class Unknown:
    """Adds 1 where a field is None."""

    field: str

    def of(self, values: Mapping[str, Any]) -> int:
        """What a record of these values adds."""
        return int(values[self.field] is None)


@dataclass(frozen=True)
class Value:
    """Adds the value of a field; nothing where that is None."""

    field: str

    def of(self, values: Mapping[str, Any]) -> Any:
        """What a record of these values adds."""
        return values[self.field]


@dataclass(frozen=True)
class Values:
    """Gives the values of some fields, of which the latest ones stay."""

    fields: tuple[str, ...]

    def of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a record of these values gives."""
        return tuple(values[name] for name in self.fields)


@dataclass(frozen=True)
class When:
    """Gives the time of the record."""

    def of(self, values: Mapping[str, Any]) -> None:
        """Nothing: the time is not among the values."""


@dataclass(frozen=True)
class Ended:
    """Adds a call: whether it succeeded, and how long it took."""

    success: str
    duration_ms: str

    def of(self, values: Mapping[str, Any]) -> tuple[bool, int]:
        """What a record of these values adds."""
        return values[self.success], values[self.duration_ms]


Effect = Always | Ended | If | Unknown | Value | Values | When


@dataclass(frozen=True)
class Into:
    """A table that a kind of record adds to, or the timeline: to each of some parts of an entry.

    Attributes:
        table: The table; or the timeline, where the entry is the step of the record's time.
        key: The field of the record that has the entry's name; where it is None, nothing is added.
        adds: What it adds, by part.
    """

    table: Table | Steps
    key: str
    adds: Mapping[str, Effect]


@dataclass(frozen=True)
class Ends:
    """The end of a call under way.

    Attributes:
        table: The calls.
        call: The field of the record that has the call's id; where it is None, the call was not begun.
    """

    table: Running
    call: str


@dataclass(frozen=True)
class Within:
    """A rule: some counts are parts of another one.

    Attributes:
        parts: The fields of the parts.
        whole: The field of the whole.
    """

    parts: tuple[str, ...]
    whole: str

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise ValueError if the parts are more than the whole."""
        if sum(values[part] for part in self.parts) > values[self.whole]:
            raise ValueError(f"{' and '.join(self.parts)} are more than {self.whole}")


Whole = Happenings | Running | Single
"""What takes the fields of a record as they are."""


@dataclass(frozen=True)
class Kind:
    """One kind of record.

    Attributes:
        event: Its name: that of the method without `record_`.
        fields: Its keys, in the order of its line and of the method's arguments.
        into: What it adds to.
        documentation: The method's docstring without its arguments.
        about: What the method's arguments are, by name.
        command: The name of its command in `m31a-mp record`; empty where cli/record.py has another one.
        example: What may stand behind `m31a-mp record`.
        grouped: Fields that come in one argument, by its name: an object spells them.
        rules: What must be true of its fields together.
        only_failed: Fields that the method takes only where `success` is false. The fold takes them anyhow:
            earlier versions wrote them.
        usual: Optional fields that many records have all at once, for which the fold has a quick way.
    """

    event: str
    fields: Mapping[str, Field]
    into: tuple[Ends | Into | Whole, ...]
    documentation: str
    about: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    example: str = ""
    grouped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rules: tuple[Within, ...] = ()
    only_failed: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an addition that its part does not take: a float in a plain sum would show the order.

        Raises:
            TypeError: The declaration is wrong; says where.
        """
        for into in self.into:
            if isinstance(into, Into) and isinstance(into.table, Table):
                if self.fields[into.key].type not in {NAME.type, SHORT_NAME.type}:
                    raise TypeError(f"{self.event}: {into.key} is no name")
                for name, effect in into.adds.items():
                    self._check(name, into.table.parts[name], effect)

    def _check(self, name: str, part: object, effect: Effect) -> None:
        takes = _TAKES.get(type(part), ())
        given = self.fields[effect.field].type if isinstance(effect, Value) else type(effect)
        if given not in takes:
            raise TypeError(f"{self.event}: {name} does not take {effect}")

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All fields of a record, of which those that were left out have their default.

        Raises:
            KeyError: One is missing that may not be.
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
