"""The id of a running call: unique among all processes and times, and contains the calling process.

    4242.81723.4026531836.5f0c(...)9e2.8c1f22d07a55e310.31@host

The parts are the pid, the start of the process, its pid namespace, the boot, a random number for this run of
the program, and the number of the call. The name of the machine, for people, follows. Another program may use
ids of any other form. The calling process is then unknown.
"""

from __future__ import annotations

_FIELDS = 6
_MAX_DIGITS = 18  # what is larger is no number of the kernel, and would not fit into metrics.json
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
    """Return the part of a call id that all calls of one run of a program share."""
    return call.partition("@")[0].rpartition(".")[0]
