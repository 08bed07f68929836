"""The outcome of one task of a plan. A worker needs only this module to record one."""

from __future__ import annotations

from m31a_mp.kinds.checks import check_bool, check_files, check_int, check_name, check_text, kind, quoted
from m31a_mp.kinds.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

MAX_OUTCOME_BYTES = 60_000
"""The most bytes of an outcome in its line. A line of a journal has at most 64 KiB."""


class PlanOutcome(Value):
    """The outcome of one task of a plan. Immutable, and compared by value.

    The values are checked when the outcome is recorded.

    Attributes:
        task_id: The task: a name of 1 to 4096 bytes of UTF-8.
        action: The action of the task; at most 4096 bytes.
        description: A description of the action for people; at most 4096 bytes.
        success: Whether the task succeeded.
        duration_ms: The duration in milliseconds: from 0 to 2**63 - 1, like the other counts.
        heals_used: The number of uses of self-healing.
        tool_calls: The number of tool calls.
        files: The files of the task: at most 1,000, of 1 to 4096 bytes each.
        error_type: The kind of the failure; empty for a success; at most 4096 bytes.
        timestamp: The time of the outcome, aware; None: the time of the record.
    """

    __slots__ = (
        "action",
        "description",
        "duration_ms",
        "error_type",
        "files",
        "heals_used",
        "success",
        "task_id",
        "timestamp",
        "tool_calls",
    )
    __match_args__ = (
        "task_id",
        "action",
        "description",
        "success",
        "duration_ms",
        "heals_used",
        "tool_calls",
        "files",
        "error_type",
        "timestamp",
    )

    task_id: str
    action: str
    description: str
    success: bool
    duration_ms: int
    heals_used: int
    tool_calls: int
    files: tuple[str, ...]
    error_type: str
    timestamp: datetime | None

    def __init__(  # noqa: PLR0913, PLR0917  # one for each field
        self,
        task_id: str,
        action: str,
        description: str,
        success: bool,
        duration_ms: int,
        heals_used: int = 0,
        tool_calls: int = 0,
        files: Iterable[str] = (),
        error_type: str = "",
        timestamp: datetime | None = None,
    ) -> None:
        # Keep other types unchanged: recording refuses them. A str would become a tuple of its letters here.
        named = tuple(files) if hasattr(files, "__iter__") and not isinstance(files, str) else files
        self._set(
            task_id,
            action,
            description,
            success,
            duration_ms,
            heals_used,
            tool_calls,
            named,
            error_type,
            timestamp,
        )

    def members(self) -> str:
        """Return the fields encoded for a record's line. Not for users.

        Raises:
            TypeError: A value has a wrong type; the message names the field.
            ValueError: A value is out of range, or all values together are too long.
        """
        texts: dict[str, str] = {
            "task_id": quoted(check_name("task_id", self.task_id)),
            "action": quoted(check_text("action", self.action)),
            "description": quoted(check_text("description", self.description)),
            "success": "true" if check_bool("success", self.success) else "false",
            "duration_ms": str(check_int("duration_ms", self.duration_ms)),
            "heals_used": str(check_int("heals_used", self.heals_used)),
            "tool_calls": str(check_int("tool_calls", self.tool_calls)),
        }
        if files := check_files("files", self.files):
            texts["files"] = f"[{','.join(map(quoted, files))}]"
        if error_type := check_text("error_type", self.error_type):
            texts["error_type"] = quoted(error_type)
        members = "".join(f',"{name}":{text}' for name, text in texts.items())
        size = len(members.encode())
        if size > MAX_OUTCOME_BYTES:
            raise ValueError(f"the outcome takes {size} bytes in its line; at most {MAX_OUTCOME_BYTES} fit")
        return members

    def time(self) -> int:
        """Return the timestamp in nanoseconds since the epoch; 0 if there is none. Not for users.

        Raises:
            TypeError: The timestamp is not an aware time.
            ValueError: The timestamp is before the epoch.
        """
        if self.timestamp is None:
            return 0
        from datetime import UTC, datetime, timedelta

        if not isinstance(self.timestamp, datetime) or self.timestamp.utcoffset() is None:
            given = kind(self.timestamp)
            raise TypeError(f"timestamp must be a datetime with its offset from UTC, not {given}")
        since = self.timestamp - datetime(1970, 1, 1, tzinfo=UTC)
        return check_int("timestamp", since // timedelta(microseconds=1) * 1000)


def check_outcome(outcome: object) -> None:
    """Raise TypeError if the object is not a `PlanOutcome`."""
    if not isinstance(outcome, PlanOutcome):
        raise TypeError(f"outcome must be a PlanOutcome, not {kind(outcome)}")
