"""Run one command like a shell does, and record the call even if the runner is killed.

    caller  ->  runner  ->  keeper  ->  command

The runner is the process that the caller knows. The keeper is its forked child, which waits for the command
and records the call, so that a `kill -9` of the runner at any moment does not lose the record. Streams are
inherited. All three are in one process group: each gets the terminal's signals, and the command decides for
all. Signals that are sent only to the runner are forwarded.
"""

from __future__ import annotations

import os
import signal
import time
from errno import ENOEXEC

from m31a_mp.cli import SIGNAL_BASE
from m31a_mp.errors import MetricsError
from m31a_mp.recorder import Recorder
from m31a_mp.system.calls import new_call
from m31a_mp.timing import error_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CANNOT_EXECUTE = 126
NOT_FOUND = 127
INTERRUPTED = -int(signal.SIGINT)
"""The status of a command that SIGINT ended."""

_HANDED_ON = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)
_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_AWAITED = _HANDED_ON | _STOPS | {signal.SIGCHLD}

# The signals that Python ignores. A command expects them to end it.
_RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]


class BlockedSignals:
    """Blocks signals from its construction on. They are polled, and interrupt nothing."""

    def __init__(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent may leave it ignored: no status would come
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)

    @staticmethod
    def ended_by() -> int | None:
        """Return the first pending signal that would have ended this process; None without one."""
        while received := signal.sigtimedwait(_HANDED_ON, 0):
            if signal.getsignal(received.si_signo) is not signal.SIG_IGN:
                return received.si_signo
        return None


def run_recorded(  # noqa: PLR0913  # all of them by name
    recorder: Recorder,
    command: list[str],
    *,
    tool: str,
    phase: str | None,
    held: BlockedSignals,
    complain: Callable[[str], None],
    recorded: Callable[[Exception | None], None],
    meanwhile: Callable[[], object],
) -> int:
    """Run a command and record the call; with a phase, also its beginning, duration and outcome.

    Args:
        recorder: The recorder. If it is the session's owner and this process is killed, the keeper merges
            the session instead.
        command: The command and its arguments.
        tool: The name of the recorded call.
        phase: The phase that the command carries out; None without one.
        held: The signals that this process has blocked.
        complain: Called with a message if the command fails to run.
        recorded: Called in the keeper when the call is recorded, with the first exception of a record, or
            None.
        meanwhile: Called while the command runs. Signals wait for its end. It must not raise.

    Returns:
        The exit status in the convention of shells; `INTERRUPTED` if SIGINT ended the command, see `end_as`.

    Raises:
        OSError: The system refuses another process. Nothing was run.
    """
    runner = os.getpid()
    keeper = os.fork()
    if not keeper:
        status = CANNOT_EXECUTE
        try:
            records = _Records()
            if phase is not None:
                records.make(recorder.record_phase_transition, phase)
            call = new_call()
            records.make(recorder.record_tool_started, tool, call)
            started = time.monotonic_ns()
            ended = _keep(command, {**os.environ, **recorder.env()}, runner, held, complain)
            status = _as_told(ended)
            duration_ms = (time.monotonic_ns() - started) // 1_000_000
            success, error = status == 0, error_of(ended)
            records.make(recorder.record_tool_call, tool, success, duration_ms, error, call)
            if phase is not None:
                records.make(recorder.record_phase_duration, phase, duration_ms, success)
            records.make(recorder.bring_out)
            recorded(records.error)
            if os.getppid() != runner:
                _merge_instead(recorder)
        except BaseException as error:
            complain(f"{command[0]}: {error!r}")
        finally:
            os._exit(end_as(status))
    meanwhile()
    status = _wait(keeper)
    # SIGINT is blocked in the keeper: the keeper ends by SIGINT only if its command did.
    if status < 0 and status != INTERRUPTED:
        waiter = f"the process that waits for {command[0]}"
        complain(f"{waiter} was killed: the call counts as interrupted, if it was not over")
    return _as_told(status)


def end_as(status: int) -> int:
    """End this process by SIGINT, if its command ended by SIGINT.

    A shell ends its script at Ctrl-C only if the running program died of SIGINT, too.

    Args:
        status: The result of `run_recorded`.

    Returns:
        The exit status in the convention of shells, if the process did not end.
    """
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)
    return _as_shell(status)


class _Records:
    """The records of a call. A failing record must not change the command's status.

    Attributes:
        error: The first exception of a record; None without one.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def make(self, record: Callable[..., None], *arguments: object) -> None:
        """Make a record."""
        try:
            record(*arguments)
        except Exception as error:
            self.error = self.error or error


def owns(recorder: Recorder) -> bool:
    """Whether the recorder is a collector, which this module does not import: most sessions have an owner."""
    return type(recorder) is not Recorder


def _merge_instead(recorder: Recorder) -> None:
    recorder.stop()  # in a forked child, this only releases the child's own segments
    if owns(recorder) and recorder.directory:
        from m31a_mp.metrics.compactor import compact

        try:
            compact(*os.path.split(recorder.directory))
        except (MetricsError, OSError):
            pass  # the next owner merges the session


def _keep(
    command: list[str],
    environment: Mapping[str, str],
    runner: int,
    held: BlockedSignals,
    complain: Callable[[str], None],
) -> int:
    """Run the command. Return its exit status, or the negative number of the signal that ended it."""
    try:
        return _wait(_start(command, environment, held), runner)
    except OSError as error:
        reason = "Is a directory" if os.path.isdir(command[0]) else error.strerror
        meant = (
            f"; the session is named by an option: --session {command[0]}" if command[1:2] == ["--"] else ""
        )
        complain(f"{command[0]}: {reason}{meant}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE


def _start(command: list[str], environment: Mapping[str, str], held: BlockedSignals) -> int:
    try:
        return os.posix_spawnp(command[0], command, environment, setsigmask=held.before, setsigdef=_RESTORED)
    except OSError as error:
        if error.errno != ENOEXEC:
            raise
    import shutil

    # A script without a `#!` line is run by a shell, like execvp(3) does.
    script = ["/bin/sh", shutil.which(command[0]) or command[0], *command[1:]]
    return os.posix_spawn(script[0], script, environment, setsigmask=held.before, setsigdef=_RESTORED)


def _wait(pid: int, sender: int | None = None) -> int:
    """Wait for a child, forward signals meanwhile, and stop when the child is stopped.

    Args:
        pid: The child.
        sender: The process whose signals are forwarded; None: all processes. The keeper forwards only the
            runner's: a signal to all processes of a name or group would otherwise arrive twice.

    Returns:
        The exit status, or the negative number of the signal that ended the child.
    """
    while True:
        received = signal.sigwaitinfo(_AWAITED)
        if received.si_signo != signal.SIGCHLD:
            # Do not forward the terminal's signals: the child gets them, too. They come from the kernel,
            # whose codes are above 0 (sigaction(2)).
            if received.si_code <= 0 and sender in (None, received.si_pid):
                _send(pid, received.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if not ended:
            continue
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        if os.WSTOPSIG(status) in _STOPS:  # not SIGSTOP, which was sent only to the child on purpose
            _stop_too(pid)


def _stop_too(pid: int) -> None:
    """Stop like at Ctrl-Z, so that the shell takes the terminal back; later continue with the child."""
    signal.raise_signal(signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})  # the process stops here
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    _send(pid, signal.SIGCONT)


def _send(pid: int, signal_number: int) -> None:
    try:
        os.kill(pid, signal_number)
    except OSError:
        pass  # the process may run as another user, like sudo


def _as_told(status: int) -> int:
    """Return the status for `run_recorded`: that of shells, except for `INTERRUPTED`."""
    return status if status == INTERRUPTED else _as_shell(status)


def _as_shell(status: int) -> int:
    return SIGNAL_BASE - status if status < 0 else status
