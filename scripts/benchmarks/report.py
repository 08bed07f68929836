"""What came of a row: samples, ratios, targets; as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

OURS = "m31a_mp"

Sample = dict[str, Any]
Table = list[list[str]]


@dataclass
class Target:
    """What is to be reached: a value that is at most the limit."""

    what: str
    limit: float
    value: float | None  # None: not measured
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        return None if self.value is None else self.value <= self.limit

    def cells(self) -> list[str]:
        if self.value is None:
            return [self.what, "-", f"{self.limit:.3g}{self.unit}", "-", "not measured"]
        share = f"{self.value / self.limit:.2f}" if self.limit else "-"
        verdict = "reached" if self.reached else "MISSED"
        return [self.what, f"{self.value:.3g}{self.unit}", f"{self.limit:.3g}{self.unit}", share, verdict]


@dataclass
class Report:
    """One row, measured.

    Attributes:
        name: The row.
        work: What was done, in words.
        per: What times are divided by.
        samples: Of each contender, one per round.
        missing: The contenders that are not installed.
        table: How the samples are shown, the heads first.
        targets: What is to be reached.
        notes: What else there is to know.
    """

    name: str
    work: str
    per: str = "record"
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    table: Table = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def times(self, name: str, key: str = "wall") -> list[float]:
        """Seconds for each record, round by round."""
        return [sample[key] / sample["records"] for sample in self.samples.get(name, [])]

    def median(self, name: str, key: str) -> float | None:
        """Of something else that a contender's samples have."""
        samples = self.samples.get(name)
        return median(sample[key] for sample in samples) if samples else None

    def ratio(self, name: str, key: str = "wall", ours: str = OURS) -> float | None:
        """Our time over theirs: the median over the rounds, in each of which both had their turn."""
        pairs = list(zip(self.times(ours, key), self.times(name, key), strict=False))
        return median(mine / theirs for mine, theirs in pairs) if pairs and all(t for _, t in pairs) else None

    def worse_ratio(self, name: str, ours: str = OURS) -> float | None:
        """Of wall time or of CPU time, whichever is worse for us: other programs on the machine make the
        one wrong, waiting is not in the other.
        """
        return max(
            (r for key in ("wall", "cpu") if (r := self.ratio(name, key, ours)) is not None), default=None
        )

    def compare(self) -> None:
        """Make the usual table."""
        ratios = ("ours / theirs", "by CPU")
        self.table = [[f"per {self.per}", "how many", "wall", "of the rounds", "CPU", *ratios]]
        for name, samples in self.samples.items():
            walls, cpus = self.times(name), self.times(name, "cpu")
            spread = f"{duration(min(walls))} .. {duration(max(walls))}"
            shown = [f"{samples[0]['records']:,}", duration(median(walls)), spread, duration(median(cpus))]
            theirs = [] if name == OURS else [number(self.ratio(name)), number(self.ratio(name, "cpu"))]
            self.table.append([name, *shown, *theirs])

    def __str__(self) -> str:
        table = self.table + [[name, "not installed"] for name in self.missing]
        parts = [f"{self.name}: {self.work}", aligned(table), *(f"  - {note}" for note in self.notes)]
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Everything, medians included."""
        medians = {
            name: {
                "wall": median(self.times(name)),
                "cpu": median(self.times(name, "cpu")),
                "ratio": self.ratio(name),
                "ratio_cpu": self.ratio(name, "cpu"),
            }
            for name in self.samples
        }
        targets = [{**asdict(target), "reached": target.reached} for target in self.targets]
        return {**asdict(self), "medians": medians, "targets": targets}


def targets_of(reports: list[Report]) -> str:
    """All targets in one table."""
    heads = [["target", "", "measured", "at most", "of it", ""]]
    rows = [[report.name, *target.cells()] for report in reports for target in report.targets]
    return aligned(heads + rows, left=2)


def aligned(table: Table, left: int = 1) -> str:
    """Columns; all but the first `left` to the right."""
    columns = max(map(len, table))
    table = [row + [""] * (columns - len(row)) for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def number(value: float | None) -> str:
    """Three digits of it."""
    return "-" if value is None else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """With the unit that suits it."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
