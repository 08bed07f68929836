"""Sharing: bring `metrics.json` of a session to a store whenever it was published anew.

A thread of its own does it, and holds no lock of the session. A store that hangs or is gone holds up nothing
but this thread. A forked child has neither the thread nor a connection.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import orjson

from m31a_mp.errors import MetricsError
from m31a_mp.kinds import json
from m31a_mp.metrics.file import MAX_BYTES, read_site
from m31a_mp.metrics.note import note_path, read_note, write_note
from m31a_mp.metrics.site import Place, Site
from m31a_mp.session.paths import Session
from m31a_mp.sharing.state import RENEW_SECONDS, Header, State
from m31a_mp.sharing.store import Store, open_store
from m31a_mp.system import files
from m31a_mp.system.log import NOT_SHARED, reason_of, warn

_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 60.0


class Sharing:
    """The state of a session, and the store to share it in. One thread at a time may use an object.

    Attributes:
        url: The URL of the store, without a password.
        is_refused: Whether the store has a state of this site that is not older. The next publication then
            gets a greater number, or becomes a new site: see `following`.
    """

    def __init__(self, session: Session, store: Store) -> None:
        self.url = store.url
        self._session = session
        self._store = store
        self._shared: tuple[int, int, int] | None = None  # the file that was shared last
        self._put: dict[str, int] = {}  # the numbers of the last states of a site that this object shared
        self._note = note_path(session, store.url)
        self._site: Site | None = None  # that of the state that is shared, or could not be
        self.is_refused = False
        self._is_tidy = False

    def share(self, *, again: bool = False, has_ended: bool = False) -> None:
        """Share `metrics.json` if it was replaced since the last call. Note the outcome beside it.

        Args:
            again: Whether to share the file also if it did not change.
            has_ended: Whether the session's owner stops now.

        Raises:
            MetricsError: The file cannot be shared, or the store refuses; the message says why.
            OSError: The file cannot be read.
        """
        try:
            self._share(again=again, has_ended=has_ended)
        except Exception as error:
            self._note_failure(reason_of(error), is_ended=has_ended)
            raise

    def _share(self, *, again: bool, has_ended: bool) -> None:
        try:
            file = _signature(self._session.metrics)
            if file == self._shared and not again:
                return
            content = files.read_private(self._session.metrics, MAX_BYTES)
        except FileNotFoundError:
            return  # nothing was published yet
        site = self._site = _site_in(content, self._session.metrics)
        state = State.of(site, content, has_ended=has_ended)
        if not self._put:
            self._note_attempt()
        there = self._store.put(self._session.id, state)
        if there and self._is_outdated(site, there):
            self._share(again=True, has_ended=has_ended)
            return
        self.is_refused = there is not None
        if there:
            note = read_note(self._note)
            note.pop("number", None)  # the store has that state no more
            self._write_note(note | {"refused": self._refusal(site, there)})
            raise MetricsError(
                f"{self._store.url} has another state of this site, number {there.number} from "
                f"{there.place.host}: metrics.json was restored from a copy, or its directory was copied. "
                "The next merge repairs that",
                self._session.metrics,
            )
        self._put = {site.id: site.number}
        self._shared = file
        note = {"site": site.id, "number": site.number, "shared_at": state.header.time}
        self._write_note(note, is_ended=has_ended)

    def _is_outdated(self, site: Site, there: Header) -> bool:
        """Whether `metrics.json` was published anew, and another process shared that meanwhile."""
        path = self._session.metrics
        latest = _site_in(files.read_private(path, MAX_BYTES), path)
        return latest.id == site.id and latest.number > site.number and latest.number >= there.number

    def _refusal(self, site: Site, there: Header) -> dict[str, Any]:
        """Describe a refusal for `following`.

        The state there is either of this directory, before `metrics.json` was restored from a copy: then the
        numbers go on above it. Or it is of a copy of this directory, which is alive: then this one becomes a
        new site, which contains the states up to `last`.
        """
        refusal: dict[str, Any] = {"site": site.id, "number": there.number}
        if site.id in self._put or not there.place.is_same(Place.of(self._session)):
            refusal["last"] = self._put.get(site.id, site.number - 1)
        return refusal

    def _note_attempt(self) -> None:
        """Note the time of the first attempt: a store may hang from then on."""
        note = read_note(self._note)
        if not note.keys() & {"shared_at", "trying_since"}:
            self._write_note(note | {"trying_since": time.time_ns()})

    def _note_failure(self, reason: str, *, is_ended: bool) -> None:
        """Note why the state is not shared, unless another process has shared it in the same store."""
        note, site = read_note(self._note), self._site
        shared = note.get("number")
        if site and note.get("site") == site.id and type(shared) is int and shared >= site.number:
            return
        note = {"failing_since": time.time_ns()} | note | {"reason": reason}
        self._write_note(note, is_ended=is_ended)

    def _write_note(self, note: Mapping[str, Any], *, is_ended: bool = False) -> None:
        with suppress(OSError):  # without a note, less can be told
            write_note(self._note, {**note, "to": self._store.url}, is_ended=is_ended)
            if not self._is_tidy:
                files.delete_handed_out(self._note)
                self._is_tidy = True

    def close(self) -> None:
        """Close the connection to the store."""
        with suppress(Exception):
            self._store.close()


def _signature(path: str) -> tuple[int, int, int]:
    status = os.lstat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _site_in(content: bytes, path: str) -> Site:
    try:
        site = read_site(json.parse(content))
    except orjson.JSONDecodeError:
        raise MetricsError(f"{path} is damaged, and not shared", path) from None
    if site is None:
        raise MetricsError(f"{path} does not say of which site it is; the next merge adds that", path)
    return site


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the thread is asked for.

    Attributes:
        answer: Takes the reason why the state was not shared, empty if it was; None if nobody waits for it.
        has_ended: Whether the session's owner stops now.
    """

    answer: SimpleQueue[str] | None = None
    has_ended: bool = False


_NEWS = _Wish()
_END = _Wish()


class Sharer:
    """Shares a session from a daemon thread, after each `wake`. The thread ends with this object."""

    def __init__(self, session: Session, url: str) -> None:
        """Start the thread.

        Raises:
            ValueError, ImportError: See `open_store`.
            RuntimeError: The system refuses another thread.
        """
        # Finalizers and signal handlers may put into a SimpleQueue at any point.
        self._wishes: SimpleQueue[_Wish] = SimpleQueue()
        self._sharing = Sharing(session, open_store(url))
        self.url = self._sharing.url
        self._pid = os.getpid()
        self._is_over = False
        arguments = (session, self._sharing, self._wishes)
        threading.Thread(target=_repeat, args=arguments, name="m31a_mp share", daemon=True).start()

    @property
    def is_refused(self) -> bool:
        """See `Sharing`."""
        return self._sharing.is_refused

    def wake(self) -> None:
        """Have `metrics.json` shared soon, if it was replaced. Does nothing in a forked child."""
        if os.getpid() == self._pid:
            self._wishes.put(_NEWS)

    def share_now(self, deadline: float, *, has_ended: bool = False) -> str:
        """Have `metrics.json` shared now, and wait for it.

        Args:
            deadline: The latest end of the wait, by `time.monotonic()`.
            has_ended: Whether the session's owner stops now.

        Returns:
            Why it was not shared; empty if it was, or in a forked child.
        """
        if os.getpid() != self._pid or self._is_over:
            return ""
        wish = _Wish(SimpleQueue(), has_ended=has_ended)
        self._wishes.put(wish)
        try:
            return wish.answer.get(timeout=max(0.0, deadline - time.monotonic())) if wish.answer else ""
        except Empty:
            return f"{self.url} does not answer in time"

    def end(self) -> None:
        """End the thread, without a wait. A second call is harmless."""
        self._is_over = True
        self._wishes.put(_END)

    def __del__(self) -> None:
        self._wishes.put(_END)


def _repeat(session: Session, sharing: Sharing, wishes: SimpleQueue[_Wish]) -> None:
    failures, due = 0, time.monotonic()
    while (wish := _next(wishes, due)) is not _END:
        if wish is _NEWS and failures and not sharing.is_refused:
            continue  # the next attempt is due later
        reason = ""
        try:
            sharing.share(again=wish is not _NEWS, has_ended=bool(wish and wish.has_ended))
            failures = 0
        except Exception as error:
            reason, failures = reason_of(error), failures + 1
            if failures == 1:
                warn(NOT_SHARED, session.id, reason)
        due = time.monotonic() + _pause(failures)
        if wish and wish.answer:
            wish.answer.put(reason)
    sharing.close()


def _next(wishes: SimpleQueue[_Wish], due: float) -> _Wish | None:
    """Wait for a wish until a time is due. Return None if it came without one."""
    try:
        return wishes.get(timeout=max(0.0, due - time.monotonic()))
    except Empty:
        return None


def _pause(failures: int) -> float:
    """Return the seconds to the next share, at random, so that many sites do not share at the same moment."""
    longest = RENEW_SECONDS
    if failures:
        longest = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
