"""What measures for the user: a block, a function, a command. Its clock is monotonic."""

from __future__ import annotations

from time import monotonic_ns

from m31a_mp import checks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import CompletedProcess
    from types import TracebackType
    from typing import Any, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


class Measured:
    """What is being measured in one block.

    Attributes:
        success: Set it to False where something failed and no exception tells it.
    """

    __slots__ = ("_started", "_success")

    def __init__(self) -> None:
        self._success = True
        self._started = monotonic_ns()

    @property
    def success(self) -> bool:
        return self._success

    @success.setter
    def success(self, success: bool) -> None:
        # Here, where it is set: at the end of the block the error could hide one that leaves the block.
        self._success = checks.check_bool("success", success)

    def milliseconds(self) -> int:
        return (monotonic_ns() - self._started) // 1_000_000


class Stopwatch:
    """Measures the block of a `with` or an `async with`, and records it whichever way the block is left.

    It can be kept and entered again, also by other threads and tasks, and while it is entered.
    """

    __slots__ = ("_enter", "_leave", "_under_way")

    def __init__(self, leave: Callable[[bool, int], None], enter: Callable[[], None] | None = None) -> None:
        """Not for users: `leave` takes the success and the milliseconds."""
        self._leave = leave
        self._enter = enter
        self._under_way: list[Measured] = []

    def __enter__(self) -> Measured:
        if self._enter:
            self._enter()
        measured = Measured()
        self._under_way.append(measured)
        return measured

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Whose it is does not matter: of blocks that are left in another order than they were entered, the
        # sum of the durations is the same.
        measured = self._under_way.pop()
        self._leave(measured.success and exc_type is None, measured.milliseconds())

    async def __aenter__(self) -> Measured:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)


def measuring(stopwatch: Callable[[], Stopwatch], function: Callable[P, R]) -> Callable[P, R]:
    """A function, or a coroutine function, that does the same and is measured, each call by itself.

    Raises:
        TypeError: It is no function, or one of a generator: that has not done anything when it returns.
    """
    import functools  # late, as inspect, which takes longer than all that is imported here  # noqa: PLC0415
    import inspect  # noqa: PLC0415

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
    import subprocess  # late: most processes run none  # noqa: PLC0415

    with stopwatch as call:
        completed = subprocess.run(command, env=environment, **options)  # noqa: PLW1510, S603  # as the caller says
        call.success = completed.returncode == 0
    return completed
