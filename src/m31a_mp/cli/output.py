"""The file that a command writes, as its option `-o` names it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from m31a_mp.cli.naming import TroubleError, path_word

STDOUT = "-"
"""The name of stdout."""


def checked(output: str) -> str:
    """Return the path of the file to write. A link leads to the file that is replaced.

    Raises:
        TroubleError: There is something else than a file. The rename would replace a device or a pipe, too.
    """
    path = os.path.realpath(output)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return path  # writing tells what is wrong
    if output and stat.S_ISREG(mode):
        return path
    what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
    raise TroubleError(f"{output or repr(output)} is {what}", "name a file: -o FILE; or stdout: -o -")


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Report an error of the block, which writes a file, with its path and with what helps."""
    try:
        yield
    except OSError as error:
        directory = os.path.dirname(path)
        if os.path.isdir(directory):
            hint = "write it elsewhere: -o FILE"
        else:
            hint = f"make the directory first: mkdir -p {path_word(directory)}"
        raise TroubleError(f"{path} cannot be written: {error.strerror or error}", hint) from None
