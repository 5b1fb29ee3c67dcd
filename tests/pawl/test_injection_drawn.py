"""An exception at any line of whatever server is drawn, also of one that loses steps, files and pages meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk, Strategy
from pawl.testing.injection import INJECTED, Place, inject, places_of
from pawl.testing.workload import Workload

KINDS: dict[str, dict[str, Any]] = {
    "replicas": {"replicas": 2, "prefillers": 0},
    "apart": {"replicas": 1, "prefillers": 1, "host_pages": 8},
    "several apart": {"replicas": 2, "prefillers": 2, "host_pages": 8},
    "scaled": {"replicas": 1, "prefillers": 0, "max_replicas": 3},
    "tiers": {"replicas": 1, "prefillers": 0, "host_pages": 6, "storage_pages": 12},
    "drafts": {"replicas": 1, "prefillers": 0, "speculate": "ngram"},
    "any": {},
}
SEEDS = range(24)
PLACES_OF_EACH = 14


def walk(seed: int, randomly: bool, _: int) -> Strategy:
    return RandomWalk(seed, fault_rate=0.02) if randomly else Fair()


def tried_first(places: Sequence[Place], tried: Counter[tuple[str, str, int]], chance: random.Random) -> list[Place]:
    """Some of them: lines that were not tried before go first."""
    shuffled = chance.sample(places, len(places))
    shuffled.sort(key=lambda place: tried[place[:3]])
    tried.update(place[:3] for place in shuffled[:PLACES_OF_EACH])
    return shuffled[:PLACES_OF_EACH]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_in_any_drawn_server_ends_at_most_one_request(kind: str) -> None:
    tried, wrong = Counter[tuple[str, str, int]](), list[str]()
    for seed in SEEDS:
        chance = random.Random(f"{kind}/{seed}")
        asked = Workload.random(seed, rank_hosts=1, **KINDS[kind])  # a host that dies ends its engine
        if asked.closing is not None:
            continue
        faults = Faults(strike=chance.choice((0, 2)))
        strategy = partial(walk, seed, chance.random() < 0.6 or faults.strike > 0)
        for place in tried_first(places_of(asked, strategy, faults), tried, chance):
            hit, raised = chance.choice((1, place.hits, chance.randint(1, place.hits))), chance.choice(INJECTED)
            error = inject(asked, place, hit, raised, strategy, faults).error
            if error is not None:
                wrong.append(f"{seed}, {place}, hit {hit}: {error}")
    assert wrong == []
