"""What an exploration reached, how often, and what it never did: as lines for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pawl.exploration import Totals

WIDTH = 110


def as_json(totals: Totals, seconds: float, seed: int, violation: str) -> dict[str, Any]:
    """The whole result."""
    features, events = declared()
    return {
        "seed": seed,
        "seconds": round(seconds, 3),
        "workloads": totals.workloads,
        "schedules": totals.schedules,
        "deliveries": totals.deliveries,
        "confirmed": totals.confirmed,
        "drawn": {name: totals.drawn[name] for name in features},
        "reached": {name: totals.reached[name] for name in events},
        "violation": violation or None,
    }


def lines(totals: Totals) -> Iterator[str]:
    """For people: in how many schedules of a hundred."""
    features, events = declared()
    yield from _paragraph("drawn (% of schedules): ", _shares(totals.drawn, features, totals.schedules))
    yield from _paragraph("reached: ", _shares(totals.reached, events, totals.schedules + totals.confirmed))
    never = [name for name in features if not totals.drawn[name]] + [
        name for name in events if not totals.reached[name]
    ]
    yield from _paragraph("never: ", never or ["nothing that is declared"])


def declared() -> tuple[list[str], list[str]]:
    """Names of all features and of all events."""
    from pawl.testing.reached import EVENTS
    from pawl.testing.workload import all_labels

    return all_labels(), list(EVENTS)


def _shares(counts: Counter[str], names: Iterable[str], whole: int) -> list[str]:
    return [f"{name} {100 * counts[name] / max(whole, 1):.2g}" for name in names if counts[name]]


def _paragraph(title: str, parts: Iterable[str]) -> Iterator[str]:
    line = title
    for part in parts:
        if len(line) + len(part) > WIDTH:
            yield line.rstrip()
            line = "  "
        line += f"{part}, "
    yield line.rstrip(", ")
