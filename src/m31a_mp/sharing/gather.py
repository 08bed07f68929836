"""Gathering: read the latest state of each site, and add them up. Needs no lock and no owner."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from errno import ENOENT
from operator import attrgetter

from m31a_mp.errors import DamagedMetricsError, UnsupportedVersionError
from m31a_mp.kinds.checks import saturated
from m31a_mp.kinds.times import from_ns
from m31a_mp.metrics import file as metrics_file
from m31a_mp.metrics.totals import Totals
from m31a_mp.model import SessionMetrics, SiteMetric, has_records
from m31a_mp.session.paths import check_session_id
from m31a_mp.sharing.adding import Adding
from m31a_mp.sharing.address import check_url
from m31a_mp.sharing.counting import Part, counted
from m31a_mp.sharing.state import BadStateError, Header, State
from m31a_mp.sharing.store import open_store
from m31a_mp.system.log import warn

_SHOWN = attrgetter(*(field.name for field in fields(SiteMetric)))


def gather(session_id: str, url: str | os.PathLike[str]) -> SessionMetrics:
    """Add up the latest states of all sites that share a session.

    Args:
        session_id: The session's id, the same at all sites.
        url: The store that the sites share in: the URL of a Redis or Valkey server (`redis://`, `rediss://`,
            `unix://`, `valkey://`), `file:///DIRECTORY`, or the path of a directory.

    Returns:
        The metrics that one machine would have, costs to the last digit, with the sites in `sites`. The state
        of a site that cannot be used is not counted; `sites` says why, and the log has a warning.

    Raises:
        TypeError, ValueError: The id or the URL is not valid.
        FileNotFoundError: No site has shared the session there.
        StoreError: The store cannot be reached or refuses.
        ImportError: The URL names a server, and the package `redis` is not installed.
    """
    gathering = Gathering(session_id, url)
    try:
        return gathering.look()
    finally:
        gathering.close()


@dataclass(frozen=True, slots=True)
class Gathered:
    """The latest state of a site that was read.

    Attributes:
        header: The header.
        state: The state, as it came.
        totals: The totals of the site; None if the state cannot be used.
        shown: What `sites` says of the site.
        part: What the totals consist of.
    """

    header: Header
    state: State
    totals: Totals | None
    shown: SiteMetric
    part: Part


class Gathering:
    """The latest states of the sites of one session. A look reads only the states that are new."""

    def __init__(self, session_id: str, url: str | os.PathLike[str]) -> None:
        """See `gather`. Nothing is read yet."""
        self.session_id = check_session_id(session_id)
        self._store = open_store(check_url(url))
        self._known: dict[str, Gathered] = {}
        self._listed: dict[str, Header | str] = {}
        self._unread: dict[str, str] = {}
        self._told: set[str] = set()
        self._adding = Adding()
        self.own: Collection[str] = ()
        """The ids of the gathered session itself, which may be shared in the store, too."""

    @property
    def url(self) -> str:
        """The URL of the store, without a password."""
        return self._store.url

    @property
    def known(self) -> Mapping[str, Gathered]:
        """The latest state of each site, by its id."""
        return self._known

    def look(self) -> SessionMetrics:
        """Read what is new, and return the sum of the latest states.

        Raises:
            FileNotFoundError, StoreError: See `gather`.
        """
        self.read()
        return self.sum().to_metrics(self.session_id)

    def read(self) -> set[str]:
        """Read what is new. Return the sites that have a new state.

        A site that is not in the store any more keeps its latest state: nothing that was counted disappears.

        Raises:
            FileNotFoundError, StoreError: See `gather`.
        """
        headers = self._store.headers(self.session_id)
        # Most headers are those of the last look. A state that could not be read then is read again.
        listed = {
            site: header
            for site, header in headers.items()
            if (self._listed.get(site) is not header or site in self._unread) and isinstance(header, Header)
        }
        new = set()
        for site in listed.keys() & self._known.keys():
            self._renew(site, listed[site])
        changed = [site for site, header in listed.items() if self._is_news(site, header)]
        states = self._store.get(self.session_id, changed)
        unread = {site: why for site, why in headers.items() if isinstance(why, str)}
        unread |= dict.fromkeys(set(changed) - states.keys(), "its state is gone")
        for site, data in states.items():
            try:
                state = State.parse(data)
                if state.header.site != site:
                    raise BadStateError("it is the state of another site")
                if self.take(state):
                    new.add(site)
            except BadStateError as error:
                unread[site] = str(error)
        self._listed, self._unread = headers, unread  # at the end: a look that fails is made again as a whole
        if not self._known and not unread:
            reason = f"no site has shared session {self.session_id!r} there"
            raise FileNotFoundError(ENOENT, reason, self._store.url)
        return new

    def take(self, state: State) -> bool:
        """Take a state, if it is newer than the known one of its site. Return whether it is.

        Raises:
            BadStateError: It is newer, but cannot be used, and the known one can.
        """
        site = state.header.site
        is_new = self._is_news(site, state.header)
        if is_new:
            opened, known = _opened(state), self._known.get(site)
            if known and known.totals and not opened.totals:
                raise BadStateError(f"its latest state is {opened.shown.problem}; an older one is counted")
            self._known[site] = opened
        return is_new

    def close(self) -> None:
        """Close the connection to the store."""
        self._store.close()

    def _is_news(self, site: str, header: Header) -> bool:
        known = self._known.get(site)
        if known is None or known.header.number < header.number:
            return True
        # A state that could not be used may have been damaged on its way. Another share of it may be whole.
        return known.totals is None and known.header.number == header.number and known.header != header

    def _renew(self, site: str, header: Header) -> None:
        """Note the time of a later share of the known state."""
        known = self._known[site]
        if known.header.number == header.number:
            known.shown.shared_at, known.shown.has_ended = from_ns(header.time), header.has_ended

    def sum(self) -> Totals:
        """Return the sum of the latest states that were read."""
        chosen, problems = counted({site: g.part for site, g in self._known.items()}, self.own)
        sites, parts = {}, {}
        for site in sorted(chosen | problems.keys()):
            gathered = self._known[site]
            sites[site] = shown = SiteMetric(*_SHOWN(gathered.shown))
            if site in problems or site in self._unread:
                told = [shown.problem, self._unread.get(site, ""), *problems.get(site, ())]
                shown.problem = "; ".join(filter(None, told))
            if gathered.totals and site in chosen:
                parts[site] = gathered.totals
            else:
                shown.number = 0  # a sum of this sum must not take its records for contained
        for site in self._unread.keys() - sites.keys():
            problem = f"not counted: {self._unread[site]}"
            sites[site] = SiteMetric(site, "", 0, from_ns(0), problem=problem)
        whole = self._adding.sum(parts)
        whole.sites = sites
        gathered_parts = {site: part for site in parts if (part := self._known[site].part).gathered}
        whole.gatherers = set(gathered_parts).union(*(part.through for part in gathered_parts.values()))
        self._warn(sites)
        return whole

    def _warn(self, sites: Mapping[str, SiteMetric]) -> None:
        for site in sites.values():
            if site.problem and site.problem not in self._told:
                self._told.add(site.problem)
                warn("site %s of session %s: %s", site.id, self.session_id, site.problem)


def _opened(state: State) -> Gathered:
    """Read the metrics in a state."""
    header = state.header
    shown = SiteMetric(header.site, header.place.host, header.number, from_ns(header.time), header.has_ended)
    try:
        read, _, totals = metrics_file.parse(state.content(), f"the state of site {header.site}")
    except (BadStateError, DamagedMetricsError) as error:
        shown.problem = f"not counted: {_reason(error)}"
        return Gathered(header, state, None, shown, Part(header.number))
    shown.tool_calls = saturated(sum(read["tools"].fields["call_count"]))
    shown.llm_interactions = saturated(sum(read["llms"].fields["interaction_count"]))
    shown.records = totals.records
    shown.dropped, shown.rejected = saturated(sum(totals.dropped.values())), totals.rejected
    shown.sites = len(totals.sites)
    if troubled := sum(bool(site.problem) for site in totals.sites.values()):
        shown.problem = f"sites of it that have a problem: {troubled:,} of {len(totals.sites):,}"
    gathered = {site.id: site.number for site in totals.sites.values() if site.number}
    origins = totals.site.origins if totals.site else {}
    part = Part(header.number, gathered, origins, totals.gatherers, has_records(read))
    return Gathered(header, state, totals, shown, part)


def _reason(error: BadStateError | DamagedMetricsError) -> str:
    if isinstance(error, UnsupportedVersionError):
        return f"its metrics.json {error.reason}. Use a later release here"
    return error.reason if isinstance(error, DamagedMetricsError) else str(error)
