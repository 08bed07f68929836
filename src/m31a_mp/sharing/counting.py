"""Which of the latest states are counted. No two of them may contain the same records.

A state contains others if it is gathered from them, or if its directory is a copy of theirs. Of two gathered
sessions with the same sites, for instance of two gatherers of one store, one is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Part:
    """What the latest state of a site consists of.

    Attributes:
        number: The number of the state.
        gathered: The sites that it was gathered from, and the number of the state of each; empty if it is
            not gathered.
        origins: Sites whose directory was copied or moved here, and the number of the last state of each that
            is contained.
        through: The gathered sessions among the sites below `gathered`.
        has_records: Whether the state has records.
    """

    number: int
    gathered: Mapping[str, int] = field(default_factory=dict)
    origins: Mapping[str, int] = field(default_factory=dict)
    through: Collection[str] = ()
    has_records: bool = False


def counted(parts: Mapping[str, Part], own: Collection[str] = ()) -> tuple[set[str], dict[str, list[str]]]:
    """Choose the states that are counted.

    Args:
        parts: The latest states, by site.
        own: The ids of the gathered session that asks. What is shared from there is not gathered there again.

    Returns:
        The sites whose states are counted, and problems by site. A site that is in neither is left out
        without a loss: what it has is counted in others.
    """
    problems: dict[str, list[str]] = {}
    left = {}
    for site, part in parts.items():
        if any(other in part.gathered or other in part.through for other in own):
            problems[site] = ["not counted: it was gathered from the session that gathers here, in a circle"]
        elif site not in own:
            left[site] = part
    holding = [site for site, part in left.items() if part.gathered]
    for site in sorted(holding, key=lambda site: (len(left[site].gathered), site)):
        if _has_all(left, left[site].gathered):
            del left[site]  # its sites are here themselves, and as new
    left = _without_contained(left, problems)
    with_records = {site for site, part in parts.items() if part.has_records}
    return _without_overlaps(left, with_records, problems), problems


def _has_all(left: Mapping[str, Part], numbers: Mapping[str, int]) -> bool:
    return all(site in left and left[site].number >= number for site, number in numbers.items())


def _contained(part: Part) -> Iterable[tuple[str, int]]:
    yield from part.gathered.items()
    yield from part.origins.items()


def _without_contained(left: Mapping[str, Part], problems: dict[str, list[str]]) -> dict[str, Part]:
    """Leave out the states that one other state contains as a whole: gathered, copied, or moved there."""
    containing: dict[str, dict[str, int]] = {}
    for other, part in left.items():
        if not (part.gathered or part.origins):
            continue
        for site, last in _contained(part):
            if site != other and site in left:
                containing.setdefault(site, {})[other] = last
    for site, others in containing.items():
        if all(last < left[site].number for last in others.values()):
            problems[site] = [
                f"site {other} contains its states up to number {last}: they are counted twice"
                for other, last in others.items()
            ]
    return {site: part for site, part in left.items() if site not in containing or site in problems}


def _without_overlaps(
    left: Mapping[str, Part], with_records: set[str], problems: dict[str, list[str]]
) -> set[str]:
    """Leave out gathered sessions all of whose sites are in another one. Tell of all other overlaps."""
    holders: dict[str, str] = {}
    holding = {site for site, part in left.items() if part.gathered or part.origins}
    kept = left.keys() - holding

    # The one with the most sites first; of those with the same, the one with the newest states.
    def rank(site: str) -> tuple[int, int, str]:
        gathered = left[site].gathered
        return len(gathered), sum(gathered.values()), site

    for site in sorted(holding, key=rank, reverse=True):
        part = left[site]
        shared = {
            inner: other
            for inner, _ in _contained(part)
            # Copies of a directory without records, which are harmless, look like other copies.
            if inner not in left
            and (other := holders.get(inner))
            and (inner in with_records or part.gathered or left[other].gathered)
        }
        if part.gathered and any(
            part.gathered.keys() <= left[other].gathered.keys() for other in set(shared.values())
        ):
            continue
        for inner, other in shared.items():
            text = f"site {inner} is contained in site {{}}, too: it is counted twice"
            problems.setdefault(site, []).append(text.format(other))
            problems.setdefault(other, []).append(text.format(site))
        for inner, _ in _contained(part):
            holders.setdefault(inner, site)
        kept.add(site)
    return kept
