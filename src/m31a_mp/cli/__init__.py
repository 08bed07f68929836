"""The command line `m31a-mp`, one file per command. It needs the extra `cli`: click and rich.

    main  ->  quick    ->  recording, running, showing    a plain `record`, `run` or `show`: no click
          ->  program  ->  the command's module           everything else; those three end in the same modules

Scripts start a process for each record, so that what a plain `record` or `run` imports is next to nothing.
People wait for `show`, which imports rich only for a terminal.
"""

from __future__ import annotations

import gc
import sys

CANNOT_START = 125
"""The exit status if nothing could be started: an extra is missing, or `run` could not run its command."""

SIGNAL_BASE = 128
"""A program that signal N ended has the exit status 128+N."""

_NEEDED = {"click": "click>=8.1.8", "rich": "rich>=13.7"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments after the program's name; by default those of this process.

    Returns:
        The exit status; `m31a-mp --help` lists them.
    """
    if arguments is not None:
        return _main(arguments)
    # The garbage collector would look through all that is imported: during the imports for a tenth of their
    # time, and when the process ends for a quarter of Python's start. `program.start` enables it again.
    gc.disable()
    status = _main(sys.argv[1:])
    gc.freeze()
    return status


def _main(words: list[str]) -> int:
    if missing := [name for name in _NEEDED if not _is_installed(name)]:
        return _tell_missing(missing)
    from m31a_mp.cli.quick import understood

    call = understood(words)
    if call is None:
        from m31a_mp.cli.program import start  # imports click

        return start(words)
    try:
        return call()
    except BaseException as error:
        from m31a_mp.cli.program import failed

        return failed(error, words)


def _tell_missing(missing: list[str]) -> int:
    import shlex

    verb = "is" if len(missing) == 1 else "are"
    needed = shlex.join([sys.executable, "-m", "pip", "install", *(_NEEDED[name] for name in missing)])
    print(  # noqa: T201  # click is perhaps not installed
        f"m31a-mp: {' and '.join(missing)} {verb} not installed\nhint: {needed}",
        file=sys.stderr,
    )
    return CANNOT_START


def _is_installed(name: str) -> bool:
    """Whether a package can be found. To import click takes longer than to start Python."""
    try:
        return any(finder.find_spec(name, None) for finder in sys.meta_path)
    except ImportError:
        return False
