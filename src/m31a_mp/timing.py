"""What measures for the user: a block, a function, a command. Its clock is monotonic."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from time import monotonic_ns

from m31a_mp.kinds import checks
from m31a_mp.system import fork
from m31a_mp.system.calls import new_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from subprocess import CompletedProcess
    from types import FrameType, TracebackType
    from typing import Any, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


class Measured:
    """What is being measured in one block.

    Attributes:
        success: Set it to False where something failed and no exception tells it.
        error: Set it to a short name that says why; then it has failed. Of an exception it is the class's.
    """

    __slots__ = ("_error", "_started", "_success", "call", "entered_by", "generation", "is_left")

    def __init__(self, entered_by: int = 0, call: str = "", generation: int = 0) -> None:
        """Not for users.

        Args:
            entered_by: The id of the frame whose block it is.
            call: The id of the call.
            generation: That of the process that enters the block.
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
        # Here, where it is set: at the end of the block the error could hide one that leaves the block.
        self._success = checks.check_bool("success", success)

    @property
    def error(self) -> str | None:
        return self._error

    @error.setter
    def error(self, error: str | None) -> None:
        self._error = None if error is None else checks.check_short_name("error", error)

    def milliseconds(self) -> int:
        return (monotonic_ns() - self._started) // 1_000_000


# The blocks of this context (task, thread) that are not left yet, of all stopwatches, the newest last. One
# variable for all of them: a context would keep each stopwatch's own for as long as it lives.
_entered: ContextVar[tuple[Measured, ...]] = ContextVar("m31a_mp_entered", default=())
# More than so many are looked through for those that were left elsewhere, and more than so many not kept.
_FEW = 8
_MOST = 64


class Stopwatch:
    """Measures the block of a `with` or an `async with`, and records it whichever way the block is left.

    It can be kept and entered again, also by other threads, tasks and generators, and while it is entered:
    each block is measured by itself. A block may be left in another thread or context than it was entered.
    """

    __slots__ = ("_enter", "_leave", "_under_way")

    def __init__(
        self, enter: Callable[[str], None], leave: Callable[[bool, int, str | None, str], None]
    ) -> None:
        """Not for users.

        Args:
            enter: Takes the id of the call, when a block is entered.
            leave: Takes the success, the milliseconds, why it failed, and the id of the call.
        """
        self._leave = leave
        self._enter = enter
        self._under_way: dict[Measured, None] = {}

    def __enter__(self) -> Measured:
        return self._begin(sys._getframe().f_back)  # noqa: SLF001  # as in `_candidates`

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(sys._getframe().f_back, exc_type)  # noqa: SLF001

    # No coroutine functions: their frame would be the caller's no more.
    def __aenter__(self) -> Coroutine[Any, Any, Measured]:
        return _returning(self._begin(sys._getframe().f_back))  # noqa: SLF001

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        self._end(sys._getframe().f_back, exc_type)  # noqa: SLF001
        return _returning(None)

    def _begin(self, frame: FrameType | None) -> Measured:
        generation = fork.generation  # asked before: a signal handler may fork in the middle, and return
        call = new_call()
        try:
            self._enter(call)
            measured = Measured(id(frame), call, generation)
            self._under_way[measured] = None
        except BaseException as error:
            # A signal handler raised it. The call has begun, perhaps, and must not be under way for ever.
            if generation == fork.generation:
                self._leave(False, 0, _short(type(error).__name__), call)
            raise
        entered = _entered.get()
        if entered and (len(entered) > _FEW or entered[-1].is_left):
            # Some may have been left in another context, or never will be.
            entered = tuple(block for block in entered if not block.is_left)[-_MOST:]
        _entered.set((*entered, measured))
        return measured

    def _end(self, frame: FrameType | None, exc_type: type[BaseException] | None) -> None:
        entered = _entered.get()
        measured = entered[-1] if entered else None
        if measured and measured.entered_by == id(frame) and self._take(measured):
            _entered.set(entered[:-1])  # nearly always
        else:
            measured = self._find(id(frame))
            _entered.set(tuple(block for block in entered if block is not measured))
        measured.is_left = True
        error = measured.error
        if exc_type and error is None:
            error = _short(exc_type.__name__)
        fork.settle()
        if (
            measured.generation == fork.generation
        ):  # a child that was forked in the block leaves it to its parent
            self._leave(measured.success and error is None, measured.milliseconds(), error, measured.call)

    def _find(self, frame: int) -> Measured:
        """Take the block that is being left out of those under way."""
        while self._under_way:
            for measured in self._candidates(frame):
                if self._take(measured):
                    return measured
        raise RuntimeError("a measured block was left more often than it was entered")

    def _take(self, measured: Measured) -> bool:
        """Whether it was under way: a thread to which it was the second choice may have been faster."""
        return self._under_way.pop(measured, False) is None

    def _candidates(self, frame: int) -> Iterator[Measured]:
        """The blocks under way, the likeliest first.

        A `with` enters and leaves its block in the same frame, in whatever context that frame is run: only
        this tells generators apart that one thread runs in turns. A block without a `with`, as an `ExitStack`
        has it, is the newest one of its context. If it was entered in another context, it may be taken for
        another's; each is recorded once.
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
    """A function, or a coroutine function, that does the same and is measured, each call by itself.

    Raises:
        TypeError: It is no function, or one of a generator: that has not done anything when it returns.
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
                return await function(*args, **kwargs)  # type: ignore[misc]  # as was just asked

        return coroutine  # type: ignore[return-value]  # R is the coroutine that it returns

    @functools.wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        with stopwatch():
            return function(*args, **kwargs)

    return measured


def run(
    stopwatch: Stopwatch, command: Any, environment: dict[str, Any], options: dict[str, Any]
) -> CompletedProcess[Any]:
    """Run a command as `subprocess.run` does; a status other than 0 is a failure, too."""
    import subprocess

    with stopwatch as call:
        try:
            completed = subprocess.run(command, env=environment, **options)  # noqa: PLW1510, S603  # as the caller says
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
    """The name of the error that a command ended with: `exit 1`, `SIGKILL`; None if it succeeded.

    Args:
        status: Its exit status, or minus the number of the signal that ended it.
    """
    if status >= 0:
        return f"exit {status}" if status else None
    import signal

    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _short(name: str) -> str:
    """A name of an error from one that may be anything, for an error here would hide the other one."""
    whole = name.encode(errors="replace")
    return whole[: checks.MAX_SHORT_NAME_BYTES].decode(errors="ignore") or "exception"
