"""The id of a running call: unique among all processes and times, and contains the calling process.

    4242.81723.4026531836.5f0c(...)9e2.8c1f22d07a55e310.1f@host

The parts are the pid, the start of the process, its pid namespace, the boot, a random number for this run of
the program, and the number of the call. The name of the machine, for people, follows. Another program may use
ids of any other form. The calling process is then unknown.
"""

from __future__ import annotations

_FIELDS = 6
_HOST_CHARACTERS = 64


class Caller:
    """The process that makes a call; see `ProcessIdentity`.

    Attributes:
        pid, started, namespace, boot_id: The identity of the process.
        host: The name of the machine.
    """

    __slots__ = ("boot_id", "host", "namespace", "pid", "started")

    def __init__(self, pid: int, started: int, namespace: int, boot_id: str, host: str) -> None:
        self.pid = pid
        self.started = started
        self.namespace = namespace
        self.boot_id = boot_id
        self.host = host

    def ids(self, run: str) -> tuple[str, str]:
        """Return the common prefix and suffix of the ids of its calls, around the number.

        Args:
            run: An id that is unique to this run of a program: exec(2) does not change a process identity.
        """
        host = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "-" for c in self.host)
        before = f"{self.pid}.{self.started}.{self.namespace}.{self.boot_id}.{run}."
        return before, f"@{host[:_HOST_CHARACTERS]}"


def caller_of(call: str) -> Caller | None:
    """Parse the calling process from a call id; None if the id has another form."""
    fields, _, host = call.partition("@")
    parts = fields.split(".")
    numbers = parts[:3]
    if len(parts) != _FIELDS or not all(part.isascii() and part.isdigit() for part in numbers):
        return None
    pid, started, namespace = map(int, numbers)
    return Caller(pid, started, namespace, parts[3], host)


def callers_part(call: str) -> str:
    """Return the part of a call id that all calls of one run of a program share."""
    return call.partition("@")[0].rpartition(".")[0]
