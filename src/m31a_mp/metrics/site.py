"""A site: a session's directory on one machine, as other machines know it.

The checkpoint names the site, and numbers the publications of `metrics.json`. Both are in the file before
anything is shared, so that a number is not used for two states, whichever owner publishes next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from m31a_mp.kinds import json
from m31a_mp.kinds.parts import integer
from m31a_mp.session.paths import Session
from m31a_mp.system import files, process

_ID = re.compile(r"[0-9a-f]{32}")
_NOTE_BYTES = 64 * 1024
# A directory that moved more often than this may count twice; without a limit, metrics.json could grow.
_MAX_ORIGINS = 1000
_FIRST = 1


def new_id() -> str:
    """Return the id of a new site."""
    return os.urandom(16).hex()


def is_id(value: object) -> bool:
    """Whether a value is the id of a site."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def check_id(value: object) -> str:
    """Return the id of a site, if it is one. An id is a part of file names in a store."""
    if not isinstance(value, str) or not is_id(value):
        raise ValueError(f"{value!r:.80} is not the id of a site")
    return value


class Place(NamedTuple):
    """Where a session's directory lies.

    Attributes:
        inode: The inode of the directory, which a copy does not keep.
        boot: The boot id of the machine; empty if unknown.
        host: The machine's name.
    """

    inode: int
    boot: str
    host: str

    @classmethod
    def of(cls, session: Session) -> Place:
        """Return the place of a session, as this process sees it."""
        return cls(os.lstat(session.root).st_ino, process.current().boot_id, os.uname().nodename)

    @classmethod
    def restored(cls, kept: Mapping[str, Any]) -> Place:
        """Return the place in a JSON object."""
        return cls(integer(kept["inode"]), str(kept["boot"]), str(kept["host"]))

    def kept(self) -> dict[str, Any]:
        """Return the place as a JSON object."""
        return {"inode": self.inode, "boot": self.boot, "host": self.host}

    def is_same(self, other: Place) -> bool:
        """Whether both are the same directory, as far as can be told.

        A copy has another inode. A clone of a whole disk has not: there, boot and name of the machine differ.
        A reboot changes only the boot, and containers that share a directory have only different names.
        """
        return self.inode == other.inode and (self.boot == other.boot or self.host == other.host)


class Site(NamedTuple):
    """A site, and the number of a state of it.

    Attributes:
        id: The id: random, 32 hexadecimal digits.
        number: The number of this publication. A state with a greater number contains this one.
        place: Where the directory lay when the state was published.
        origins: Sites whose directory was copied or moved here: the number of the last state of each that
            this one contains.
    """

    id: str
    number: int
    place: Place
    origins: Mapping[str, int] = MappingProxyType({})

    def kept(self) -> dict[str, Any]:
        """Return the site as a JSON object."""
        return {"id": self.id, "number": self.number, **self.place.kept(), "origins": dict(self.origins)}

    @classmethod
    def restored(cls, kept: Mapping[str, Any]) -> Site:
        """Return the site in a JSON object.

        Raises:
            KeyError, TypeError, ValueError: The object is not a site.
        """
        number = integer(kept["number"])
        if number < _FIRST:
            raise ValueError(f"a state has number {number}")
        origins = {check_id(site): integer(last) for site, last in kept["origins"].items()}
        return cls(check_id(kept["id"]), number, Place.restored(kept), origins)

    def copied_to(self, place: Place, last: int) -> Site:
        """Return a new site, which contains all states of this one up to number `last`."""
        origins = {**self.origins, self.id: last}
        return Site(new_id(), _FIRST, place, dict(list(origins.items())[-_MAX_ORIGINS:]))


def following(before: Site | None, session: Session) -> Site:
    """Return the site and the number of the next publication.

    Args:
        before: Those of the publication that is replaced; None if it has none.
        session: The session.
    """
    here = Place.of(session)
    if before is None:
        return Site(new_id(), _FIRST, here)
    if not here.is_same(before.place):
        return before.copied_to(here, before.number)
    number = before.number + 1
    refused = read_note(session).get("refused")
    if isinstance(refused, dict) and refused.get("site") == before.id:
        there, last = refused.get("number"), refused.get("last")
        if type(there) is int and there >= number:
            if type(last) is int:
                return before.copied_to(here, last)
            number = there + 1
    return Site(before.id, number, here, before.origins)


# --- What the sharing process notes beside metrics.json ----------------------------------------------


def note_path(session: Session) -> str:
    """Return the path of the note on sharing."""
    return f"{session.root}/sharing.json"


def read_note(session: Session) -> dict[str, Any]:
    """Read the note on sharing; empty without one. It is only told, and never decides what is counted."""
    try:
        note = json.parse(files.read_private(note_path(session), _NOTE_BYTES))
    except (OSError, orjson.JSONDecodeError):
        return {}
    return note if isinstance(note, dict) else {}
