"""What a command shows: a session, a file of metrics, or a session that was gathered from sites."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from m31a_mp.cli import tables
from m31a_mp.cli.entries import Choice
from m31a_mp.inspection.status import Status
from m31a_mp.model import SessionMetrics


class Found(NamedTuple):
    """Metrics, and where they come from.

    Attributes:
        name: The session's directory, the path of a file, or the id of a gathered session.
        metrics: The metrics.
        status: The status of a session; None otherwise.
        store: The URL of the store, without a password; empty unless the session was gathered.
    """

    name: str
    metrics: SessionMetrics
    status: Status | None = None
    store: str = ""

    @property
    def directory(self) -> str:
        """The session's directory, the same for a session and its metrics.json."""
        return self.name if self.store else os.path.realpath(self.name).removesuffix("/metrics.json")

    @property
    def label(self) -> str:
        """A short name for tables of several sessions."""
        return self.name if self.store else os.path.relpath(self.name)

    def json(self) -> dict[str, Any]:
        """Return the JSON form."""
        if self.status:
            return tables.status_json(self.status)
        return tables.file_json(self.name, self.metrics) | ({"store": self.store} if self.store else {})

    def view(self, choice: Choice) -> tables.View:
        """Return the tables."""
        if self.status:
            return tables.status_view(self.status, choice)
        if self.store:
            return tables.gathered_view(self.name, self.store, self.metrics, choice)
        return tables.file_view(self.name, self.metrics, choice)
