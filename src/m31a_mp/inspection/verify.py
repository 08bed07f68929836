"""Verify: check all files of a session."""

from __future__ import annotations

import os
from dataclasses import dataclass

from m31a_mp.errors import DamagedMetricsError
from m31a_mp.inspection.snapshot import fold_everything
from m31a_mp.inspection.unshared import unshared
from m31a_mp.metrics import rejected
from m31a_mp.model import format_time
from m31a_mp.session.paths import Session


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect in the files of a session.

    Attributes:
        file: The path of the file, relative to the session's directory.
        offset: Bytes before the defect in the file.
        reason: A description of the defect.
    """

    file: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, byte {self.offset}: {self.reason}"


def verify(sessions_dir: str | os.PathLike[str], session_id: str) -> list[Finding]:
    """Read all files of a session, and change nothing.

    Traces of a crash (a torn tail, a sealed journal, segments of dead processes) are no findings, because the
    next compaction merges them. Findings are damage, earlier rejected input as long as it is in
    `journal.rejected.ndjson`, and a state that could not be shared with other machines. A running append is
    no finding: if the journal seems damaged, it is read again under its lock. If the lock is not free for 5
    seconds, the finding says that it is not certain.

    Args:
        sessions_dir: The directory of the sessions.
        session_id: The session's id.

    Returns:
        The findings; empty if all files are sound.

    Raises:
        FileNotFoundError: The session does not exist.
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
    findings += [
        Finding(item.file, item.offset, item.reason)
        for item in fold.rejected
        if (item.file, item.offset) not in known
    ]
    for told in unshared(session, fold.totals.site):
        reason = f"the session has not been shared since {format_time(told.since)}: {told.reason}"
        findings.append(Finding(session.name_of(told.note), 0, reason))
    return findings
