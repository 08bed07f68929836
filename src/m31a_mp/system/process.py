"""Identities of processes, checks whether a process is alive, and the end of this one.

A pid alone is ambiguous: pids are reused, and each container counts its own. The identity of a process is its
pid, its start, the boot and the pid namespace.
"""

from __future__ import annotations

import os
import sys
import time

from m31a_mp.system import files, fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LAST = -100
"""The priority of finalizers that multiprocessing runs when it has waited for its processes."""
_MICROSECONDS = 1_000_000
_MAX_PID = 2**31 - 1  # pid_t; to kill(2), 0 and less are groups of processes


class ProcessIdentity:
    """One process among all that ever ran on this machine.

    `started` is opaque and only compared: on Linux, the clock ticks from boot to the start of the process.
    The wall-clock time that psutil returns is not used, because it moves when the clock is set. Without
    /proc, `started` and `namespace` are 0 and `boot_id` is empty, which means unknown.
    """

    __slots__ = ("boot_id", "namespace", "pid", "started")

    def __init__(self, pid: int, started: int, boot_id: str, namespace: int) -> None:
        self.pid = pid
        self.started = started
        self.boot_id = boot_id
        self.namespace = namespace


_current: ProcessIdentity | None = None


def current() -> ProcessIdentity:
    """Return the identity of this process, also directly after a fork."""
    global _current  # noqa: PLW0603
    found = _current
    if found is None or found.pid != os.getpid():
        _current = found = _identity(os.getpid())
    return found


def _identity(pid: int) -> ProcessIdentity:
    return ProcessIdentity(pid, _started(pid), _boot_id(), _namespace())


def seen_alive(identity: ProcessIdentity) -> bool:
    """Whether the process is visibly running. A process in another pid namespace is never visible.

    An unknown part of an identity proves nothing: in doubt, the process is alive.
    """
    here = current()
    if _differ(identity.boot_id, here.boot_id) or _differ(identity.namespace, here.namespace):
        return False
    try:
        state, threads, started = _stat(identity.pid)
    except (FileNotFoundError, ProcessLookupError):
        return _is_there(identity.pid)  # perhaps only /proc is missing
    except (OSError, IndexError, ValueError):
        return True  # the process exists but cannot be inspected; assume that it is alive
    return not (_has_ended(state, threads) or _differ(started, identity.started))


def proven_dead(identity: ProcessIdentity) -> bool:
    """Whether the identity proves that the process is gone. False for one in another pid namespace.

    True for a process with another boot id: of an earlier boot, or of another machine. A container may have a
    boot id of its own, so the caller looks for other signs of life, too.
    """
    here = current()
    if _differ(identity.boot_id, here.boot_id):
        return True
    if not (identity.boot_id == here.boot_id != "" and identity.namespace == here.namespace != 0):
        return False
    try:
        if os.readlink("/proc/self") != str(here.pid):  # /proc belongs to another pid namespace
            return False
        state, threads, started = _stat(identity.pid)
    except (FileNotFoundError, ProcessLookupError):
        return not _is_there(identity.pid)
    except (OSError, IndexError, ValueError):
        return False
    return _has_ended(state, threads) or _differ(started, identity.started)


def _has_ended(state: str, threads: int) -> bool:
    """Whether a process has ended that /proc still shows. With other threads, only the main thread has."""
    return state in {"X", "Z"} and threads <= 1


def _is_there(pid: int) -> bool:
    """Whether a process with that pid exists; /proc may hide it."""
    if not 0 < pid <= _MAX_PID:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _differ(one: object, other: object) -> bool:
    """Whether both values are known and differ."""
    return bool(one and other) and one != other


def may_map(identity: ProcessIdentity, name: str, file: tuple[int, int]) -> bool:
    """Whether the process lives and may map a file. False for a process in another pid namespace.

    Args:
        identity: The process.
        name: The file's name, without directories.
        file: The file's device and inode. On some file systems, mappings show other values; the name
            decides there.
    """
    if not seen_alive(identity):
        return False
    try:
        mappings = files.read(f"/proc/{identity.pid}/maps")
    except OSError:
        return True  # the mappings cannot be read: in doubt, the process maps the file
    device = b"%02x:%02x" % (os.major(file[0]), os.minor(file[0]))
    # `7f00-7f10 rw-s 00000000 fe:00 131    /directory/name`; a removed file has ` (deleted)` after its name.
    for line in mappings.splitlines():
        fields = line.split(None, 5)
        if len(fields) > 5 and (  # noqa: PLR2004  # lines with fewer fields are not about files
            (fields[3], int(fields[4])) == (device, file[1]) or os.fsencode(name) in fields[5]
        ):
            return True
    return not mappings  # no mappings at all: a kernel thread, or a process that is ending


def describe(pid: int) -> str:
    """Describe the process for an error message: `pid 42 (python, stopped)`."""
    found = name_and_state(pid)
    return f"pid {pid} ({found[0]}, {found[1]})" if found else f"pid {pid}"


def name_and_state(pid: int) -> tuple[str, str] | None:
    """Return the name of the process and its state in a word; None if they are unknown."""
    import psutil

    try:
        process = psutil.Process(pid)
        name = " ".join(process.name().split())  # the name may contain line breaks
        return name, process.status()
    except (psutil.Error, OSError, ValueError):
        return None


def start_time(pid: int) -> str | None:
    """Return the start of the process for people: RFC 3339 in UTC; None if unknown."""
    started = _started(pid)
    if not started:
        return None
    if sys.platform == "linux":
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
        seconds = time.time() - age
    else:
        seconds = started / _MICROSECONDS
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))


def _started(pid: int) -> int:
    """Return the start of the process in opaque ticks; 0 if unknown."""
    try:
        return _stat(pid)[2]
    except (OSError, IndexError, ValueError):
        return 0 if sys.platform == "linux" else _started_elsewhere(pid)


def _stat(pid: int) -> tuple[str, int, int]:
    """Read from /proc the state of a process, in one letter, its number of threads, and its start in ticks.

    Raises:
        FileNotFoundError, ProcessLookupError: /proc does not show the process.
        OSError, IndexError, ValueError: The entry cannot be read.
    """
    stat = files.read(f"/proc/{pid}/stat")
    # The second field is the command in parentheses and may hold anything, spaces and ")" included.
    # What follows the last ")" starts at field 3; the threads are field 20, the start is field 22
    # (proc_pid_stat(5)).
    fields = stat.rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[17]), int(fields[19])


def _started_elsewhere(pid: int) -> int:
    """Return the start like `_started`, without /proc."""
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * _MICROSECONDS)
    except (psutil.Error, OSError, ValueError):
        return 0


def _boot_id() -> str:
    try:
        # Read bytes: decoding text may import an encoding, and a child that is forked during an import in
        # another thread would wait for that import forever.
        return files.read("/proc/sys/kernel/random/boot_id").strip().decode()
    except OSError:
        return ""  # not on Linux: only the locks, which a reboot clears, prove life there


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


@fork.after_in_child("process")
def _forget_parent() -> None:
    # A child may have the pid of an ancestor that is gone, or live in its own pid namespace.
    global _current  # noqa: PLW0603
    _current = None


def after_children(call: Callable[[], None]) -> None:
    """Make a call at the end of the program, when multiprocessing has waited for its processes.

    This is for `atexit`, which runs functions in reverse order: if multiprocessing registered its function
    earlier, it waits for its processes later, and they still record.
    """
    util = sys.modules.get("multiprocessing.util")
    if util and not util.is_exiting():
        util.Finalize(None, call, exitpriority=LAST)
    else:
        call()
