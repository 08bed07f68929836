"""The library's log: silent unless the program uses logging. Losses then go to stderr."""

from __future__ import annotations

import os
import sys
from select import POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    Hear = Callable[[str, tuple[object, ...]], None]

# The warnings that the command line knows by their formats, to tell them in words of its own.
DROPPED = "records are being dropped in %s: %s"
NOT_FLUSHED = "the last flush of session %s failed: %s"
NOT_SHARED = "session %s is not shared with other machines: %s. Recording goes on, and so do attempts"

_WARNING = 30  # logging.WARNING
_STDERR = 2
# The longest write into a writable pipe that does not wait for its reader (PIPE_BUF).
_LINE_BYTES = 4096

# The losses that were reported on stderr: the message and the session's directory.
_told: set[tuple[str, object]] = set()

# Those that get the warnings instead of `logging`; the last one does.
_listeners: list[Hear] = []


class listening:  # noqa: N801  # used like a function
    """In this block, a function gets the warnings instead of `logging`: the format, and its arguments.

    The command line uses this, because the import of `logging` takes a fifth of the time that Python takes to
    start.
    """

    __slots__ = ("_hear",)

    def __init__(self, hear: Hear) -> None:
        self._hear = hear

    def __enter__(self) -> None:
        _listeners.append(self._hear)

    def __exit__(self, *_: object) -> None:
        _listeners.remove(self._hear)


def logger() -> logging.Logger | None:
    """Return the library's logger; None if the program has no handler for it."""
    found = _logger()
    return found if found and found.hasHandlers() else None


def warn(message: str, *arguments: object) -> bool:
    """Log a warning. Return whether a listener or a handler received it."""
    found = logger()
    try:
        if _listeners:
            _listeners[-1](message, arguments)
        elif found:
            found.warning(message, *arguments)
        else:
            return False
    except Exception:  # noqa: S110  # a handler of the program failed; recording must not raise
        pass
    return True


def warn_of_loss(message: str, directory: str, *arguments: object) -> bool:
    """Log a warning about a loss. Without configured logging, write it to stderr, once.

    Args:
        message: The message in the format of `logging`.
        directory: The session's directory, the first argument of the message.
        arguments: The other arguments.

    Returns:
        Whether the warning was reported, or the program does not want warnings.
    """
    if warn(message, directory, *arguments):
        return True
    found = _logger()
    told = (message, directory)
    if told in _told or (found and not found.isEnabledFor(_WARNING)):
        return True
    _told.add(told)  # add first: a signal handler may record, and would report the loss again
    if _tell(message % (directory, *arguments)):
        return True
    _told.discard(told)
    return False


def shown(text: str) -> str:
    """Escape foreign text for a terminal: one line, without control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason_of(error: object) -> str:
    """Return the message of an error, or a reason, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _logger() -> logging.Logger | None:
    """Return the logger; None if the program has not imported `logging`, and so has no handler.

    The import would take a fifth of the time that Python takes to start.
    """
    module = sys.modules.get("logging")
    if module is None or not hasattr(module, "captureWarnings"):  # the last name: the import may be running
        return None
    found: logging.Logger = module.getLogger("m31a_mp")
    return found


def _tell(text: str) -> bool:
    """Write a line to stderr if that is possible at once. Never raises, and never waits for a reader.

    `sys.stderr` is not used: it raises in a signal handler that interrupted another write to `sys.stderr`.
    """
    try:
        # If the program closed its stderr, another file may have the number. Files that Python opens are not
        # inheritable; stderr is.
        if sys.stderr is None or sys.stderr.closed or not os.get_inheritable(_STDERR):
            return False
        waiting = poll()
        waiting.register(_STDERR, POLLOUT)
        # Do not write without a reader either: SIGPIPE could end a program that does not ignore the signal.
        if waiting.poll(0) != [(_STDERR, POLLOUT)]:
            return False
        line = shown(f"m31a_mp: {text}")
        os.write(_STDERR, line.encode()[: _LINE_BYTES - 1] + b"\n")
    except Exception:
        return False
    return True
