"""The id of a call under way: unique over all processes and time, and it says who makes the call.

    4242.81723.4026531836.5f0c(...)9e2.8c1f22d07a55e310.1f@host

That is the pid, the start of the process, its pid namespace, the boot, a random number of this run of the
program, and the number of the call; then the name of the machine, for people. A call that another program
began may have any other id: who makes it is not known then.
"""

from __future__ import annotations

_FIELDS = 6
_MAX_DIGITS = 18  # what is larger is no number of the kernel, and would not fit into metrics.json
_HOST_CHARACTERS = 64


class Caller:
    """The process that makes a call; see `ProcessIdentity`.

    Attributes:
        pid, started, namespace, boot_id: Its identity.
        host: The name of its machine.
    """

    __slots__ = ("boot_id", "host", "namespace", "pid", "started")

    def __init__(self, pid: int, started: int, namespace: int, boot_id: str, host: str) -> None:
        self.pid = pid
        self.started = started
        self.namespace = namespace
        self.boot_id = boot_id
        self.host = host

    def ids(self, run: str) -> tuple[str, str]:
        """What the ids of its calls have in common: what stands before their number, and behind it.

        Args:
            run: What no other program of the same process has: exec(2) leaves its identity as it is.
        """
        host = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "-" for c in self.host)
        before = f"{self.pid}.{self.started}.{self.namespace}.{self.boot_id}.{run}."
        return before, f"@{host[:_HOST_CHARACTERS]}"


def caller_of(call: str) -> Caller | None:
    """Who makes the call of an id; None if the id does not say it."""
    fields, _, host = call.partition("@")
    parts = fields.split(".")
    if len(parts) != _FIELDS or not all(map(_is_number, parts[:3])):
        return None
    pid, started, namespace = map(int, parts[:3])
    return Caller(pid, started, namespace, parts[3], host.partition(" ")[0])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def of_session(call: str, session_id: str) -> str:
    """The id of a call among the calls of several sessions, of which two may use the same id."""
    return f"{call} {session_id}"


def callers_part(call: str) -> str:
    """The part of an id that all calls of one run of a program share."""
    return call.partition("@")[0].rpartition(".")[0]
