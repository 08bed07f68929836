#!/usr/bin/env python3
"""Bring the metrics.json of a session up to date that its owner did not close, with every record left behind.

Does what `m31a-mp compact` does, and needs no click and no rich. The exit status is 0 when all is well; 1
when something was damaged and set aside, or could not be read and stays where it is; 2 when the program was
called wrongly; 3 when it could not be done: the owner lives, or metrics.json cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys

from m31a_mp import MetricsError, compact
from m31a_mp.cli import outcome
from m31a_mp.cli.naming import NOT_DONE


def complain(error: Exception) -> None:
    print(f"compact: {error}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("session", metavar="SESSION_DIR", help="the directory of the session")
    parser.add_argument(
        "--rebuild", action="store_true", help="set a damaged metrics.json aside, and count on from zero"
    )
    arguments = parser.parse_args()
    directory = os.path.abspath(arguments.session)
    try:
        done = compact(*os.path.split(directory), rebuild=arguments.rebuild)
    except (MetricsError, OSError, ValueError) as error:
        complain(error)
        return NOT_DONE
    print(*outcome.lines(directory, done), sep="\n")
    for reason in done.unreadable:
        complain(reason)
    return outcome.status(done)


if __name__ == "__main__":
    sys.exit(main())
