"""The library's log: silent unless the program listens, but for losses, which are told on stderr then."""

from __future__ import annotations

import os
import sys
from select import POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

_WARNING = 30  # logging.WARNING
_STDERR = 2
# A write of at most so much into a pipe that has room for any does not wait for its reader (PIPE_BUF).
_LINE_BYTES = 4096

# The losses that were told on stderr: the message and the session's directory.
_told: set[tuple[str, object]] = set()


def logger() -> logging.Logger | None:
    """The library's logger, or None where the program has no handler that could hear it."""
    found = _logger()
    return found if found and found.hasHandlers() else None


def warn(message: str, *arguments: object) -> bool:
    """Log a warning; returns whether anybody can have heard it."""
    found = logger()
    if found:
        try:
            found.warning(message, *arguments)
        except Exception:
            return True  # a handler of the program raised it; a record must not
    return found is not None


def warn_of_loss(message: str, directory: str, *arguments: object) -> bool:
    """Log a warning that something is lost; where no logging is configured, tell it on stderr, once.

    Args:
        message: The message, as `logging` takes it.
        directory: The session's directory, its first argument.
        arguments: Its other arguments.

    Returns:
        Whether the warning was told, or is not wanted.
    """
    if warn(message, directory, *arguments):
        return True
    found = _logger()
    told = (message, directory)
    if told in _told or (found and not found.isEnabledFor(_WARNING)):
        return True
    _told.add(told)  # before: a signal handler may record, too
    if _tell(message % (directory, *arguments)):
        return True
    _told.discard(told)
    return False


def shown(text: str) -> str:
    """Text of others, fit for a terminal: in one line, and nothing in it that would steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _logger() -> logging.Logger | None:
    """None where the program has not imported `logging`: then it has no handler.

    A worker that records once need not import it then, which takes a fifth of Python's own start.
    """
    module = sys.modules.get("logging")
    if module is None or not hasattr(module, "captureWarnings"):  # its last name: it may be half imported
        return None
    found: logging.Logger = module.getLogger("m31a_mp")
    return found


def _tell(text: str) -> bool:
    """Write a line to stderr if that can be done at once. Never raises, and never waits for a reader.

    Not by `sys.stderr`, which raises in a signal handler that interrupted another write to it.
    """
    try:
        # Where the program closed its stderr, another file may have the number. Python makes files that no
        # child inherits; a stderr is inherited.
        if sys.stderr is None or sys.stderr.closed or not os.get_inheritable(_STDERR):
            return False
        waiting = poll()
        waiting.register(_STDERR, POLLOUT)
        # Nor where nobody reads it any more: the SIGPIPE could end a program that does not ignore it.
        if waiting.poll(0) != [(_STDERR, POLLOUT)]:
            return False
        line = shown(f"m31a_mp: {text}")
        os.write(_STDERR, line.encode()[: _LINE_BYTES - 1] + b"\n")
    except Exception:
        return False
    return True
