"""Who a process is, and whether it was seen alive.

A pid alone lies: it is reused, and another container counts its own. A process is its pid, the moment it
started, the boot and the pid namespace.
"""

from __future__ import annotations

import os
import sys

from m31a_mp.system import files, fork


class ProcessIdentity:
    """One process among all that ever ran on this machine.

    `started` is opaque and only compared: on Linux the clock ticks from boot to the start of the process.
    The start as wall-clock time, which psutil gives, would not do: it moves when the clock is set. Without
    /proc, `started` and `namespace` are 0 and `boot_id` is empty: not known.
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
    """Whether that process can be seen running from here; one in another pid namespace cannot.

    A part of an identity that is not known proves nothing: doubt means alive.
    """
    import psutil

    here = current()
    if _differ(identity.boot_id, here.boot_id) or _differ(identity.namespace, here.namespace):
        return False
    if not psutil.pid_exists(identity.pid):
        return False
    try:
        if psutil.Process(identity.pid).status() == psutil.STATUS_ZOMBIE:
            return False
    except psutil.NoSuchProcess:
        return bool(psutil.pid_exists(identity.pid))  # it is there: then there is no /proc to look at
    except (psutil.Error, OSError, ValueError):
        return True  # it does not show itself
    return not _differ(_started(identity.pid), identity.started)


def proven_dead(identity: ProcessIdentity) -> bool:
    """Whether that process is gone, by all that its identity tells. One of another pid namespace is not.

    A process of an earlier boot is gone, and so is one of another machine, of which the boot is another. A
    container may have a boot id of its own: so the caller asks for other signs of life, too.
    """
    here = current()
    if _differ(identity.boot_id, here.boot_id):
        return True
    if not (identity.boot_id == here.boot_id != "" and identity.namespace == here.namespace != 0):
        return False
    try:
        if os.readlink("/proc/self") != str(here.pid):  # it is that of another pid namespace
            return False
        state, threads, started = _stat(identity.pid)
    except (FileNotFoundError, ProcessLookupError):
        return not _is_there(identity.pid)
    except (OSError, IndexError, ValueError):
        return False
    # Where other threads go on, only the main thread has ended.
    return (state in {"X", "Z"} and threads <= 1) or _differ(started, identity.started)


def _is_there(pid: int) -> bool:
    """Whether there is a process of that pid, which /proc may hide."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _differ(one: object, other: object) -> bool:
    """Whether both are known, and not the same."""
    return bool(one and other) and one != other


def may_map(identity: ProcessIdentity, name: str, file: tuple[int, int]) -> bool:
    """Whether that process lives and may map a file. One in another pid namespace is not seen alive.

    Args:
        identity: The process.
        name: The file's name, without directories.
        file: Its device and inode. Some file systems list mappings with others: there the name counts.
    """
    if not seen_alive(identity):
        return False
    try:
        mappings = files.read(f"/proc/{identity.pid}/maps")
    except OSError:
        return True  # it does not show them: doubt means yes
    device = b"%02x:%02x" % (os.major(file[0]), os.minor(file[0]))
    # `7f00-7f10 rw-s 00000000 fe:00 131    /directory/name`; a removed file has ` (deleted)` after its name.
    for line in mappings.splitlines():
        fields = line.split(None, 5)
        if len(fields) > 5 and (  # noqa: PLR2004  # the others are no files
            (fields[3], int(fields[4])) == (device, file[1]) or os.fsencode(name) in fields[5]
        ):
            return True
    return not mappings  # a kernel thread, or a process that ends, has none


def describe(pid: int) -> str:
    """The process in words for an error message: `pid 42 (python, stopped)`."""
    found = name_and_state(pid)
    return f"pid {pid} ({found[0]}, {found[1]})" if found else f"pid {pid}"


def name_and_state(pid: int) -> tuple[str, str] | None:
    """What the process is called and what it does, in a word each; None if it cannot be told."""
    import psutil

    try:
        process = psutil.Process(pid)
        name = " ".join(process.name().split())  # a process may call itself anything
        return name, process.status()
    except (psutil.Error, OSError, ValueError):
        return None


def start_time(pid: int) -> str | None:
    """When the process started, for people: RFC 3339 in UTC; None if it cannot be told."""
    from datetime import UTC, datetime

    import psutil

    try:
        started = psutil.Process(pid).create_time()
    except (psutil.Error, OSError, ValueError):
        return None
    return datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")


def _started(pid: int) -> int:
    """When the process started, in ticks of its own; 0 if it cannot be told."""
    try:
        return _stat(pid)[2]
    except (OSError, IndexError, ValueError):
        return 0 if sys.platform == "linux" else _started_elsewhere(pid)


def _stat(pid: int) -> tuple[str, int, int]:
    """What /proc says of a process: its state in one letter, how many threads it has, and when it started.

    Raises:
        FileNotFoundError, ProcessLookupError: It does not show such a process.
        OSError, IndexError, ValueError: It does not say.
    """
    stat = files.read(f"/proc/{pid}/stat")
    # The second field is the command in parentheses and may hold anything, spaces and ")" included.
    # What follows the last ")" starts at field 3; the threads are field 20, the start is field 22
    # (proc_pid_stat(5)).
    fields = stat.rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[17]), int(fields[19])


def _started_elsewhere(pid: int) -> int:
    """As `_started`, where there is no /proc."""
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 1_000_000)
    except (psutil.Error, OSError, ValueError):
        return 0


def _boot_id() -> str:
    try:
        # Bytes: another encoding than UTF-8 is imported at its first use, and a fork while another thread is
        # in that import would leave the child waiting for it for ever.
        return files.read("/proc/sys/kernel/random/boot_id").strip().decode()
    except OSError:
        return ""  # no such file off Linux; the locks that a reboot clears then decide alone


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


@fork.after_in_child("process")
def _forget_parent() -> None:
    # A child may carry the pid of an ancestor that is gone, and may live in a namespace of its own.
    global _current  # noqa: PLW0603
    _current = None
