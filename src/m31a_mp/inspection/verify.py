"""The store checks itself."""

from __future__ import annotations

import os
from dataclasses import dataclass

from m31a_mp.errors import DamagedMetricsError
from m31a_mp.inspection.snapshot import fold_everything
from m31a_mp.metrics import rejected
from m31a_mp.session.paths import Session


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a session that is not as it should be.

    Attributes:
        file: The file, from the session's directory.
        offset: Where in the file, in bytes.
        reason: What is wrong.
    """

    file: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, byte {self.offset}: {self.reason}"


def verify(sessions_dir: str | os.PathLike[str], session_id: str) -> list[Finding]:
    """Read everything that a session has on disk, and change nothing.

    What a crash leaves (a torn tail, a sealed journal, the segments of the dead) is no finding: the next
    compaction takes it in. Damage is one, and so is what was set aside earlier, for as long as
    `journal.rejected.ndjson` has it. An append in progress is none either: where something seems to be wrong
    in the journal, it is looked at again under its lock. If that cannot be had for 5 seconds, the finding
    says that it is not certain.

    Args:
        sessions_dir: The directory of the sessions.
        session_id: The session's id.

    Returns:
        What was found; empty when all is well.

    Raises:
        FileNotFoundError: There is no such session.
        OSError: A file could not be read.
    """
    session = Session.named(session_id, sessions_dir)
    session.must_be_there()
    findings = [
        Finding(item.file, item.offset, f"set aside: {item.reason}")
        for item in rejected.read(session.rejected)
    ]
    known = {(finding.file, finding.offset) for finding in findings}
    try:
        fold = fold_everything(session)
    except DamagedMetricsError as error:
        findings.append(Finding(session.name_of(session.metrics), 0, f"it cannot be used: {error.reason}"))
        fold = fold_everything(session, from_zero=True)
    return findings + [
        Finding(item.file, item.offset, item.reason)
        for item in fold.rejected
        if (item.file, item.offset) not in known
    ]
