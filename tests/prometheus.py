"""What Prometheus reads: the samples of a scrape, by two parsers, and the real programs where they are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as in_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

PROMTOOL = shutil.which("promtool")
PROMETHEUS = shutil.which("prometheus")

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""The values of samples, by their names and labels."""


def series(families: Iterable[Any]) -> Series:
    """The samples of families, none of which is there twice."""
    found: Series = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def texts_of(collector: Any) -> tuple[str, str]:
    """What a registry with this collector prints, in both formats; the state of sessions is the same."""

    families = list(collector.collect())

    class Once:
        def collect(self) -> Iterable[Any]:
            return families

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry).decode(), in_openmetrics(registry).decode()


def collected(collector: Any) -> Series:
    """The samples of a collector, as both formats and both parsers agree."""
    text, openmetrics = texts_of(collector)
    found = series(parse_openmetrics(openmetrics))
    assert series(parse_text(text)) == found
    return found


def value(found: Series, name: str, **labels: str) -> float | None:
    """The value of one series; None if it is not there."""
    return found.get((f"m31a_{name}", frozenset(labels.items())))


def values(found: Series, name: str) -> dict[tuple[str, ...], float]:
    """The values of all series of that name, by the values of their labels, in the order of the labels."""
    return {
        tuple(text for _, text in sorted(labels)): number
        for (of, labels), number in found.items()
        if of == f"m31a_{name}"
    }


def checked_by_promtool(text: bytes) -> str:
    """What `promtool check metrics` finds; empty if all is well."""
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode() or ("" if done.returncode == 0 else "failed")
