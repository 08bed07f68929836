"""The sessions of a directory that run, from look to look, and their numbers.

A session that is at rest is read once, and again when its files change. Everything is read like
`m31a-mp show` reads it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from weakref import ref

from m31a_mp.errors import MetricsError
from m31a_mp.exports.numbers import Numbers, Shown
from m31a_mp.inspection.snapshot import Looks
from m31a_mp.inspection.status import live_writers, owner_of, sessions_in
from m31a_mp.metrics.fold import Fold
from m31a_mp.model import SessionMetrics, has_records
from m31a_mp.session.paths import Session
from m31a_mp.system.flock import locks
from m31a_mp.system.log import warn

KEPT_SECONDS = 300.0
"""How long an ended session is still shown by name. Prometheus forgets a series after the same time."""

# A file system may give the same time to changes that are so close together.
_SAME_TIME_NS = 10**9

Stamp = tuple[tuple[int, int, int], ...]


class Condition(StrEnum):
    """What a look found of a session."""

    RUNNING = "running"
    ENDED = "ended"
    MISSING = "missing"
    UNREADABLE = "unreadable"


@dataclass(slots=True)
class Seen:
    """A session, as the latest look that could read it found it. Times are seconds since the epoch.

    Attributes:
        name: The session's id.
        numbers: Its counters and histograms.
        started: The session's start.
        last_record: The time of its last record; None without records.
        calls: The number of running calls of each tool.
        writers: The number of living writers.
        condition: What the latest look found.
        inode: The directory. Another one of the same name is another session.
        stamp: The state of the files of a session at rest; None if it has to be read again. A running session
            is at rest if it has no writers: only its owner can go.
        looks: The looks at a running session, each of which reads only what is new.
        news: The fold from which the numbers are, and what it had; None if they are to be made again.
        ended: When a look first found that the session ended, by `time.monotonic()`; None while it runs.
    """

    name: str
    numbers: Numbers
    started: float
    last_record: float | None
    calls: Counter[str]
    writers: int = 0
    condition: Condition = Condition.ENDED
    inode: int = 0
    stamp: Stamp | None = None
    looks: Looks | None = None
    news: tuple[ref[Fold], tuple[int, ...]] | None = None
    ended: float | None = None

    @classmethod
    def of(cls, metrics: SessionMetrics, shown: Shown) -> Seen:
        """Return what the metrics of a session say. `shown` returns the name under which a name counts."""
        return cls(
            metrics.session_id,
            Numbers.of(metrics, shown),
            metrics.started_at.timestamp(),
            metrics.updated_at.timestamp() if has_records(metrics) else None,
            Counter(shown("tool", call.name) for call in metrics.running),
        )

    def is_continued_by(self, other: Seen) -> bool:
        """Whether the other is the same session later. A session that was begun anew started later."""
        return self.inode == other.inode and other.started <= self.started


class Sessions:
    """The sessions of a directory, from look to look. Calls of `look` must not overlap.

    Without names, a session counts from the look that found it running, or from the first look after it was
    made. It stays after its end.

    Attributes:
        seen: The sessions that could be read at any look, by name.
        first_started: The earliest start of all sessions that are or were there; None without any.
        conditions: How many sessions the latest look found in which condition.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        names: Iterable[str] | None,
        shown: Callable[[str, str, str], str],
    ) -> None:
        """Look into a directory, at the sessions of these names, or at all that run.

        Args:
            directory: The directory of the sessions.
            names: The ids of the sessions; None: all that run.
            shown: Returns for a session, a label and a name the name under which it counts. Numbers of other
                names are not kept.

        Raises:
            ValueError: A name is not a valid session id.
        """
        self._shown = shown
        self._locks: dict[str, list[int]] = {}
        self._directory = os.path.abspath(directory)
        self._named = None if names is None else [Session.named(name, directory) for name in names]
        # The sessions that were at rest at the first look, and still are: directory, and state of the files.
        self._old: dict[str, tuple[int, Stamp | None]] = {}
        self._is_first = True
        self._unreadable: set[str] = set()
        self.seen: dict[str, Seen] = {}
        self._gone = Numbers()
        self._at_rest: Numbers | None = None  # what sessions add up to that do not run; None if it changed
        self.first_started: float | None = None
        self.conditions: Counter[Condition] = Counter()

    def look(self) -> None:
        """Look at the sessions now.

        Raises:
            OSError: The directory cannot be listed.
        """
        sessions = sessions_in(self._directory) if self._named is None else self._named
        self.conditions = Counter()
        self._locks = locks()
        for session in sessions:
            if condition := self._visit(session):
                self.conditions[condition] += 1
        names = {session.id for session in sessions}
        for name in self.seen.keys() - names:
            self._forget(name)
        self._old = {name: old for name, old in self._old.items() if name in names}
        self._is_first = False

    def total(self) -> Numbers:
        """Return the sum over all sessions that are or were there."""
        if self._at_rest is None:
            self._at_rest = Numbers()
            self._at_rest.add(self._gone)
            for seen in self.seen.values():
                if seen.condition is not Condition.RUNNING:
                    self._at_rest.add(seen.numbers)
        total = Numbers()
        total.add(self._at_rest)
        for seen in self.seen.values():
            if seen.condition is Condition.RUNNING:
                total.add(seen.numbers)
        return total

    def shown_by_name(self) -> list[Seen]:
        """Return the sessions to show by name: those that run, or ended lately, or were asked for."""
        shown = [seen for seen in self.seen.values() if seen.condition is not Condition.UNREADABLE]
        if self._named is not None:
            return shown
        since = time.monotonic() - KEPT_SECONDS
        return [seen for seen in shown if seen.ended is None or seen.ended > since]

    def present(self) -> list[Seen]:
        """Return the sessions that run, or were asked for."""
        return [
            seen
            for seen in self.seen.values()
            if seen.condition is Condition.RUNNING or (self._named and seen.condition is Condition.ENDED)
        ]

    def _visit(self, session: Session) -> Condition | None:
        """Look at a session, and return its condition; None if it is none of those to look at."""
        stamp = _stamp(session)
        seen = self.seen.get(session.id)
        try:
            if seen and stamp and seen.stamp == stamp and self._is_owned_as_before(session, seen):
                return seen.condition
            inode = os.stat(session.root).st_ino
            if not seen and self._named is None and self._is_of_before(session, inode, stamp):
                return None
            looks = seen.looks if seen and seen.looks and seen.inode == inode else Looks(session)
            now = self._read(session, looks, seen)
        except FileNotFoundError:
            self._forget(session.id)
            return None if self._named is None else Condition.MISSING
        except (MetricsError, OSError) as error:
            self._tell(session, error)
            if seen:
                self._doubt(seen)
            return Condition.UNREADABLE
        self._unreadable.discard(session.id)
        now.inode = inode
        # A running call may turn out to be interrupted, which no file shows. Nor does a writer's store.
        now.stamp = None if now.calls or now.writers else stamp
        if now.condition is Condition.RUNNING:
            now.looks, now.ended = looks, None
        else:
            now.looks, now.ended = None, seen.ended if seen and seen.ended else time.monotonic()
        if seen and not seen.is_continued_by(now):
            self._forget(session.id)
        elif seen and seen.numbers is not now.numbers:
            # `metrics.json` was restored from a copy, say: what was counted stays counted.
            self._keep(seen.numbers.beyond(now.numbers))
        self._note(now)
        self.first_started = min(now.started, self.first_started or now.started)
        return now.condition

    def _is_owned_as_before(self, session: Session, seen: Seen) -> bool:
        """Whether a session that had an owner still has one. A new owner changes a file."""
        return seen.condition is not Condition.RUNNING or owner_of(session, self._locks) is not None

    def _read(self, session: Session, looks: Looks, seen: Seen | None) -> Seen:
        """Read a session. Numbers are made anew only if there is anything new in it.

        Raises:
            MetricsError, OSError: It cannot be read.
        """
        session.must_be_there()
        writers = live_writers(session, looks)
        is_running = bool(writers) or owner_of(session, self._locks) is not None

        def read(fold: Fold) -> Seen:
            news = ref(fold), fold.news
            if seen and seen.news == news:
                return replace(seen)
            made = Seen.of(fold.totals.to_metrics(session.id), partial(self._shown, session.id))
            made.news = news
            return made

        now = looks.look(read)
        now.writers = len(writers)
        now.condition = Condition.RUNNING if is_running else Condition.ENDED
        return now

    def _note(self, now: Seen) -> None:
        before = self.seen.get(now.name)
        if now.condition is not Condition.RUNNING or (before and before.condition is not Condition.RUNNING):
            self._at_rest = None
        self.seen[now.name] = now

    def _doubt(self, seen: Seen) -> None:
        """Note that a session cannot be read now. Its last numbers stay in the sum."""
        seen.condition, seen.stamp = Condition.UNREADABLE, None
        self._at_rest = None

    def _is_of_before(self, session: Session, inode: int, stamp: Stamp | None) -> bool:
        """Whether the session was at rest at the first look, and still is."""
        known_inode, known_stamp = self._old.pop(session.id, (None, None))
        if not self._is_first and known_inode != inode:
            return False
        if stamp is None or stamp != known_stamp:
            self._old[session.id] = inode, None  # it is as old also if this look fails
            session.must_be_there()  # raises for lack of a permission, which would hide who records
            if owner_of(session, self._locks) or live_writers(session):
                del self._old[session.id]
                return False
        self._old[session.id] = inode, stamp
        return True

    def _forget(self, name: str) -> None:
        """Keep only the numbers of a session that is not there any more."""
        self._old.pop(name, None)
        self._unreadable.discard(name)
        if seen := self.seen.pop(name, None):
            self._at_rest = None
            self._keep(seen.numbers)

    def _keep(self, numbers: Numbers) -> None:
        """Keep numbers in the sum that no session has any more."""
        if numbers != Numbers():
            self._gone.add(numbers)
            self._at_rest = None

    def _tell(self, session: Session, error: Exception) -> None:
        if session.id not in self._unreadable:
            self._unreadable.add(session.id)
            warn("session %s cannot be read: %s", session.id, error)


def _stamp(session: Session) -> Stamp | None:
    """Return what changes when anybody records into a session or owns it; None if it changed just now."""
    now = time.time_ns()
    stamp = []
    for path in (session.root, session.segments, session.journal, session.owner_lock, session.metrics):
        try:
            found = os.stat(path)
        except OSError:
            stamp.append((0, 0, 0))
            continue
        if now - found.st_mtime_ns < _SAME_TIME_NS:
            return None  # the next change may have the same time
        stamp.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(stamp)
