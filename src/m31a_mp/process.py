"""Who a process is, and whether it was seen alive.

A pid alone lies: it is reused, and another container counts its own. A process is its pid, the moment it
started, the boot and the pid namespace.
"""

from __future__ import annotations

import os


class ProcessIdentity:
    """One process among all that ever ran on this machine.

    `started` is opaque and only compared: on Linux the clock ticks from boot to the start of the process.
    The start as wall-clock time, which psutil gives, would not do: it moves when the clock is set.
    """

    __slots__ = ("boot_id", "namespace", "pid", "started")

    def __init__(self, pid: int, started: int, boot_id: str, namespace: int) -> None:
        self.pid = pid
        self.started = started
        self.boot_id = boot_id
        self.namespace = namespace


_current: ProcessIdentity | None = None


def current() -> ProcessIdentity:
    """Who this process is, also right after a fork."""
    global _current  # noqa: PLW0603
    found = _current
    if found is None or found.pid != os.getpid():
        _current = found = _identity(os.getpid())
    return found


def _identity(pid: int) -> ProcessIdentity:
    return ProcessIdentity(pid, _started(pid), _boot_id(), _namespace())


def seen_alive(identity: ProcessIdentity) -> bool:
    """Whether that process can be seen running from here; one in another pid namespace cannot."""
    import psutil  # late: a worker that only records never needs it  # noqa: PLC0415

    here = current()
    if (identity.boot_id, identity.namespace) != (here.boot_id, here.namespace):
        return False
    if not psutil.pid_exists(identity.pid):
        return False
    try:
        if psutil.Process(identity.pid).status() == psutil.STATUS_ZOMBIE:
            return False
        return _started(identity.pid) == identity.started
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, OSError):
        return True  # somebody is there who does not show himself: doubt means alive


def describe(pid: int) -> str:
    """The process in words for an error message: `pid 42 (python, stopped)`."""
    found = name_and_state(pid)
    return f"pid {pid} ({found[0]}, {found[1]})" if found else f"pid {pid}"


def name_and_state(pid: int) -> tuple[str, str] | None:
    """What the process is called and what it does, in a word each; None if it cannot be told."""
    import psutil  # noqa: PLC0415

    try:
        process = psutil.Process(pid)
        name = " ".join(process.name().split())  # a process may call itself anything
        return name, process.status()
    except psutil.Error:
        return None


def start_time(pid: int) -> str:
    """When the process started, for people: RFC 3339 in UTC."""
    from datetime import UTC, datetime  # noqa: PLC0415

    import psutil  # noqa: PLC0415

    return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC).isoformat(timespec="seconds")


def _started(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except FileNotFoundError:
        import psutil  # noqa: PLC0415

        return int(psutil.Process(pid).create_time() * 1_000_000)
    # The second field is the command in parentheses and may hold anything, spaces and ")" included.
    # What follows the last ")" starts at field 3; the start is field 22 (proc_pid_stat(5)).
    return int(stat.rpartition(b")")[2].split()[19])


def _boot_id() -> str:
    try:
        # Bytes: another encoding than UTF-8 is imported at its first use, and a fork while another thread is
        # in that import would leave the child waiting for it for ever.
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().strip().decode()
    except OSError:
        return ""  # no such file off Linux; the locks that a reboot clears then decide alone


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _after_fork_in_child() -> None:
    # A child may carry the pid of an ancestor that is gone, and may live in a namespace of its own.
    global _current  # noqa: PLW0603
    _current = None


os.register_at_fork(after_in_child=_after_fork_in_child)
