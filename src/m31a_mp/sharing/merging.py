"""Merging a session without an owner, by a process that shares it."""

from __future__ import annotations

from m31a_mp.errors import GatheredSessionError, SessionOwnedError
from m31a_mp.metrics.compactor import compact_session
from m31a_mp.metrics.file import Published
from m31a_mp.session.lease import owning, still_owned
from m31a_mp.session.paths import Session
from m31a_mp.system import files


class Merging:
    """Merges a session while it has no owner. The lease is taken only for moments: an owner may come."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._published: Published | None = None

    def merge(self, *, anew: bool = False) -> None:
        """Merge what is new, unless the session has an owner. With `anew`, publish in any case.

        Raises:
            MetricsError, OSError: See `compact`. The records stay where they are.
        """
        session, known = self._session, None if anew else self._published
        self._published = None
        try:
            session.make()
            merged = files.operation(
                lambda: owning(
                    session,
                    lambda: compact_session(session, lambda: still_owned(session), known=known),
                    timeout=0.0,
                )
            )
            self._published = merged.published
        except (GatheredSessionError, SessionOwnedError):
            pass  # nothing is to be merged here, or the owner merges
