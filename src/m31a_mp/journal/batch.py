"""The bytes of a journal.

It is a text file of lines. A line is a record, which any program may append on its own under
`flock journal.lock`, or the header of a batch, which says what the lines after it are:

    {"batch":"5e1f0c2ad1b2a3c4","first":1,"count":2,"bytes":190,"crc32":"0badcafe"}
    {"event":"tool_call","time":1795388400123456789,"name":"bash","success":true,"duration_ms":12}
    {"event":"phase_transition","time":1795388400123459000,"phase":"plan"}

`batch` is the writer's id, `first` the number of its first record in the batch, `bytes` the length of the
lines. `dropped`, where it stands, is what the writer had to drop so far, by reason. `crc32` covers the
header up to its own key, then the lines. Writer and number tell a batch that comes again for as long as the
writer is known: one of ours while it has a segment, one of another program until its batch is merged.

Torn and damaged are two things. A *torn* batch or line ends before its time, because its writer died or
the power failed: that is normal. What is whole of it counts, and is not counted again when it comes
again, from the segment that still has it. A *damaged* batch is complete and wrong: it is set aside, whole.

An append first makes the file longer, then fills it. So a torn batch is as long as it should be, its end
being NUL bytes, and what others append after it cannot be taken for a part of it.
"""

from __future__ import annotations

import zlib

MAX_LINE_BYTES = 64 * 1024
MAX_BATCH_BYTES = 4 * 1024 * 1024
"""No batch is longer than this, for no segment is."""
DROP_REASONS = ("no_space", "io_error", "backlog")
"""Why a record could not be kept. `backlog` is told by earlier releases only."""
# So much at a time stays in the processor's cache.
_PART_BYTES = 64 * 1024


def count_lines(text: bytes | memoryview) -> int:
    """How often a newline stands there; in half the time of `text.count()`."""
    parts = (bytes(text[start : start + _PART_BYTES]) for start in range(0, len(text), _PART_BYTES))
    return sum(len(part) - len(part.replace(b"\n", b"")) for part in parts)


class Batch:
    """Consecutive records of one writer.

    Attributes:
        writer: The writer's id.
        first: The number of its first record in the batch; a writer counts from 1.
        records: The lines, each with its newline.
        dropped: How many records the writer dropped so far, by reason.
        offset: Where its records start in the file that it was read from.
    """

    __slots__ = ("_count", "dropped", "first", "offset", "records", "writer")

    def __init__(
        self,
        writer: str,
        first: int,
        records: bytes | memoryview,
        dropped: dict[str, int] | None = None,
        offset: int = 0,
    ) -> None:
        self.writer = writer
        self.first = first
        self.records = records
        self.dropped = dropped or {}
        self.offset = offset
        self._count: int | None = None

    @property
    def count(self) -> int:
        """How many records it has."""
        if self._count is None:
            self._count = count_lines(self.records)
        return self._count

    def header(self) -> bytes:
        """The line that stands before its records in the journal."""
        counts = ",".join(f'"{reason}":{count}' for reason, count in self.dropped.items())
        dropped = b',"dropped":{%b}' % counts.encode() if counts else b""
        header = b'{"batch":"%b","first":%d,"count":%d,"bytes":%d%b' % (
            self.writer.encode(), self.first, self.count, len(self.records), dropped,
        )  # fmt: skip
        crc = zlib.crc32(self.records, zlib.crc32(header))
        return b'%b,"crc32":"%08x"}\n' % (header, crc)
