#!/usr/bin/env python3
"""Bring the metrics.json of a session up to date that its owner did not close, with every record left behind.

The exit status is 0 when all is well, 1 when something was damaged and set aside, 2 when not all could be
done: the owner lives, metrics.json cannot be used, or records could not be read and stay where they are.
"""

from __future__ import annotations

import argparse
import os
import sys

from m31a_mp import Compaction, MetricsError, compact


def report(directory: str, compaction: Compaction) -> None:
    print(f"{directory}: records recovered: {compaction.records}")
    for item in compaction.rejected:
        print(f"set aside: {item.file}, byte {item.offset}: {item.reason}")
    if compaction.rejected:
        print(f"what was set aside is in {os.path.join(directory, 'journal.rejected.ndjson')}")


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
        compaction = compact(*os.path.split(directory), rebuild=arguments.rebuild)
    except (MetricsError, OSError, ValueError) as error:
        complain(error)
        return 2
    report(directory, compaction)
    for reason in compaction.unreadable:
        complain(reason)
    if compaction.unreadable:
        return 2
    return 1 if compaction.rejected else 0


if __name__ == "__main__":
    sys.exit(main())
