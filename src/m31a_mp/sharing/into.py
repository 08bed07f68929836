"""A gathered session on disk: `metrics.json` of the whole, and in `sites/` each site's state as it came."""

from __future__ import annotations

import os
from contextlib import suppress

from m31a_mp.errors import MetricsError
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics.beginning import identity
from m31a_mp.metrics.totals import Totals
from m31a_mp.segments.reader import list_segments
from m31a_mp.session.lease import owning
from m31a_mp.session.paths import Session
from m31a_mp.sharing.gather import Gathering
from m31a_mp.sharing.state import BadStateError, State
from m31a_mp.system import files

_SUFFIX = ".state"


class GatheredSession:
    """A session directory into which the states of sites are gathered. It can be shared in turn."""

    def __init__(self, session: Session, gathering: Gathering) -> None:
        """Take in the states that are there. The directory is made by the first update that finds a site.

        Raises:
            MetricsError: The directory has a session of its own.
            SessionOwnedError: The session has a living owner.
            OSError: The directory could not be read.
        """
        self._session = session
        self._gathering = gathering
        self._directory = f"{session.root}/sites"
        self._published: tuple[int, ...] | None = None
        self._new: set[str] = set()  # sites whose new states were read, and are not published yet
        if session.is_there():
            owning(session, self._open)

    def update(self) -> bool:
        """Read what is new in the store, and publish the sum, durably. Return whether anything was new.

        Several gatherers may publish in one directory. Each takes in what the others found.

        Raises:
            FileNotFoundError: No site has shared the session, ever.
            MetricsError, OSError: The store cannot be read, or the directory cannot be made or written.
        """
        self._new |= self._gathering.read()
        if not self._new and self._published == identity(self._session):
            return False
        is_news = bool(self._new)
        # Not before: without a site there is no session, and an empty directory would look like one.
        self._session.make()
        files.make_directory(self._directory)
        owning(self._session, self._publish)
        return is_news

    def _open(self) -> None:
        self._check()
        self._take_in()

    def _take_in(self) -> None:
        for path in files.find(self._directory, "", _SUFFIX):
            with suppress(BadStateError), open(path, "rb") as stream:
                self._gathering.take(State.parse(stream.read()))

    def _check(self) -> Totals | None:
        session = self._session
        before = metrics_file.read_totals(session)
        if (
            (before and not before.sites)
            or os.path.lexists(session.journal)
            or any(list_segments(session.segments))
        ):
            message = f"{session.root} has records of its own; gather into another directory"
            raise MetricsError(message, session.root)
        return before

    def _publish(self) -> None:
        before = self._check()
        if self._published != (found := identity(self._session)):
            self._take_in()  # another gatherer published, perhaps newer states
            if self._published and found and not self._new:
                self._published = found
                return
        for site in sorted(self._new):
            # The states first: after a crash in between, the next run finds them and publishes their sum.
            files.replace(f"{self._directory}/{site}{_SUFFIX}", self._gathering.known[site].state.data())
        if before and before.site:
            # What is shared from here is not gathered here again.
            self._gathering.own = {before.site.id, *before.site.origins}
        totals = self._gathering.sum()
        totals.site = before.site if before else None
        files.sync_parents(self._session.root)
        self._published = metrics_file.publish(self._session, totals).identity
        self._new = set()
