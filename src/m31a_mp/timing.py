"""Measure a block, a function or a command for the user, with a monotonic clock."""

from __future__ import annotations

from contextvars import ContextVar
from sys import _getframe
from time import monotonic_ns

from m31a_mp.kinds import checks
from m31a_mp.system import fork
from m31a_mp.system.calls import new_call
from m31a_mp.system.fork import mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from subprocess import CompletedProcess
    from types import TracebackType
    from typing import Any, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


class Measured:
    """The measurement of one block.

    Attributes:
        success: Set this to False if the block fails without an exception.
        error: Set this to a short name of a failure; the block has then failed. By default, the name of the
            class of an exception.
    """

    __slots__ = ("_error", "_started", "_success", "call", "entered_by", "generation", "is_left")

    def __init__(self, entered_by: int = 0, call: str = "", generation: int = 0) -> None:
        """Start the measurement. Not for users.

        Args:
            entered_by: The `id` of the frame that contains the block.
            call: The id of the call.
            generation: The generation of the process that enters the block.
        """
        self.call = call
        self.entered_by = entered_by
        self.generation = generation
        self.is_left = False
        self._success = True
        self._error: str | None = None
        self._started = monotonic_ns()

    @property
    def success(self) -> bool:
        return self._success

    @success.setter
    def success(self, success: bool) -> None:
        # Check here: an error at the end of the block could hide an exception that leaves the block.
        self._success = checks.check_bool("success", success)

    @property
    def error(self) -> str | None:
        return self._error

    @error.setter
    def error(self, error: str | None) -> None:
        self._error = None if error is None else checks.check_short_name("error", error)

    def outcome(self, raised: type[BaseException] | None) -> tuple[bool, int, str | None]:
        """Return the success, the milliseconds so far, and the error. Not for users.

        Args:
            raised: The class of the exception that leaves the block.
        """
        error = self._error
        if raised and error is None:
            error = _short(raised.__name__)
        return self._success and error is None, (monotonic_ns() - self._started) // 1_000_000, error


# The blocks of all stopwatches in this context (task, thread) that are not left yet, newest last. All share
# one variable, because a context keeps each variable alive for as long as it lives.
_entered: ContextVar[tuple[Measured, ...]] = ContextVar("m31a_mp_entered", default=())
# With more than `_FEW` blocks, those that were left in other contexts are removed. At most `_MOST` are kept.
_FEW = 8
_MOST = 64


class Stopwatch:
    """Measures the block of a `with` or an `async with`, and records the block in whatever way it ends.

    A stopwatch can be entered again, also by other threads, tasks and generators, and while it is entered.
    Each block is measured by itself. A block may end in another thread or context than it began.
    """

    __slots__ = ("_enter", "_leave", "_name", "_under_way")

    def __init__(
        self,
        name: str,
        enter: Callable[[str, str], None],
        leave: Callable[[str, bool, int, str | None, str], None],
    ) -> None:
        """Make a stopwatch. Not for users.

        Args:
            name: The name of the tool or the phase.
            enter: Called at the beginning of a block with the name and the id of the call.
            leave: Called at the end of a block with the name, success, milliseconds, error, and the id.
        """
        self._name = name
        self._leave = leave
        self._enter = enter
        self._under_way: dict[Measured, None] = {}

    def __enter__(self, depth: int = 1) -> Measured:
        if not mark[0]:
            fork.came_through()
        generation = fork.generation  # read first: a signal handler may fork in here, and return in the child
        call = new_call()
        try:
            self._enter(self._name, call)
            measured = Measured(id(_getframe(depth)), call, generation)
            self._under_way[measured] = None
        except BaseException as error:
            # A signal handler raised. Record an end: a call that has begun would otherwise stay running.
            if generation == fork.generation:
                self._leave(self._name, False, 0, _short(type(error).__name__), call)
            raise
        entered = _entered.get()
        if entered and (len(entered) > _FEW or entered[-1].is_left):
            # Some blocks may have been left in another context, or are never left.
            entered = tuple(block for block in entered if not block.is_left)[-_MOST:] if entered[1:] else ()
        _entered.set((*entered, measured) if entered else (measured,))
        return measured

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        depth: int = 1,
    ) -> None:
        frame, entered = id(_getframe(depth)), _entered.get()
        measured = entered[-1] if entered else None
        if measured and measured.entered_by == frame and self._take(measured):
            if len(entered) > 1:  # otherwise the next block of this context takes its place: the usual case
                _entered.set(entered[:-1])
        else:
            measured = self._find(frame)
            _entered.set(tuple(block for block in entered if block is not measured))
        measured.is_left = True
        if not mark[0]:
            fork.came_through()
        # A child that was forked in the block leaves the end to its parent.
        if measured.generation == fork.generation:
            success, duration_ms, error = measured.outcome(exc_type)
            self._leave(self._name, success, duration_ms, error, measured.call)

    # Not coroutine functions: the calling frame would not be the user's.
    def __aenter__(self) -> Coroutine[Any, Any, Measured]:
        return _returning(self.__enter__(2))

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        self.__exit__(exc_type, exc, traceback, 2)
        return _returning(None)

    def _find(self, frame: int) -> Measured:
        """Remove the block that is being left from the running ones, and return it."""
        while self._under_way:
            for measured in self._candidates(frame):
                if self._take(measured):
                    return measured
        raise RuntimeError("a measured block was left more often than it was entered")

    def _take(self, measured: Measured) -> bool:
        """Remove a block. Return False if another thread, which left a block too, was faster."""
        return self._under_way.pop(measured, False) is None

    def _candidates(self, frame: int) -> Iterator[Measured]:
        """Yield the running blocks, the likeliest first.

        A `with` enters and leaves its block in the same frame, in whatever context this frame runs. Only the
        frame distinguishes generators that one thread runs in turns. A block without a `with`, for instance
        of an `ExitStack`, is the newest of its context. If it was entered in another context, it may be
        mistaken for another block; each block is still recorded once.
        """
        here = [measured for measured in reversed(_entered.get()) if measured in self._under_way]
        yield from (measured for measured in here if measured.entered_by == frame)
        anywhere = list(self._under_way)[::-1]
        yield from (measured for measured in anywhere if measured.entered_by == frame)
        yield from here
        yield from anywhere


async def _returning(result: R) -> R:
    return result


def measuring(stopwatch: Callable[[], Stopwatch], function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function or a coroutine function, so that each call is measured.

    Raises:
        TypeError: The object is not a function, or is a generator function, which returns before it runs.
    """
    import functools
    import inspect

    if not callable(function) or isinstance(function, type | staticmethod):
        raise TypeError(
            f"a tool is a function, not a {type(function).__name__}; decorate the function itself"
        )
    bodies = (function, type(function).__call__)
    if any(inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body) for body in bodies):
        raise TypeError(
            "a generator runs when its consumer asks, so that the time of its call says nothing; "
            "use `with recorder.tool_call(...)` inside of it, or around the loop that consumes it"
        )
    if any(inspect.iscoroutinefunction(body) for body in bodies):

        @functools.wraps(function)
        async def coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            with stopwatch():
                return await function(*args, **kwargs)  # type: ignore[misc]  # checked above

        return coroutine  # type: ignore[return-value]  # R is the coroutine that it returns

    @functools.wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        with stopwatch():
            return function(*args, **kwargs)

    return measured


def run(
    stopwatch: Stopwatch, command: Any, environment: dict[str, Any], options: dict[str, Any]
) -> CompletedProcess[Any]:
    """Run a command with `subprocess.run`. A status other than 0 is a failure, too."""
    import subprocess

    with stopwatch as call:
        try:
            completed = subprocess.run(command, env=environment, **options)  # noqa: PLW1510, S603  # the caller decides
        except subprocess.CalledProcessError as error:
            call.error = error_of(error.returncode)
            raise
        except subprocess.TimeoutExpired:
            call.error = "timeout"
            raise
        call.success = completed.returncode == 0
        call.error = error_of(completed.returncode)
    return completed


def error_of(status: int) -> str | None:
    """Return the name of the error that ended a command: `exit 1`, `SIGKILL`; None for a success.

    Args:
        status: The exit status, or the negative number of the signal that ended the command.
    """
    if status >= 0:
        return f"exit {status}" if status else None
    import signal

    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _short(name: str) -> str:
    """Make a valid error name from any class name: an exception here would hide the user's exception."""
    whole = name.encode(errors="replace")
    return whole[: checks.MAX_SHORT_NAME_BYTES].decode(errors="ignore") or "exception"
