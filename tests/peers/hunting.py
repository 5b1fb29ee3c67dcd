"""Planted defects of other people's schedulers are looked for, one after the other.

    python -m tests.peers.hunting vllm | nano-vllm | mini-sglang [NAME…]

prints a table. It runs where the peer is installed: see docs/subjects.md.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from typing import NamedTuple

from pawl.testing.subject.exploring import explore_subject, shrunk
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.search import SCHEDULES_EACH, STRATEGIES
from pawl.testing.subject.workload import Workload
from tests.mutants.mutant import Edit, EditFails, Group, Mutant, planted

SECONDS = 30.0
"""For each defect, in which it is to be found."""
SHRINK_SECONDS = 20.0
SOUND = Mutant("nothing", Group.CONTROL, "", "", "Nothing is planted.", ())


class Hunted(NamedTuple):
    """What came of one defect."""

    mutant: Mutant
    property: str
    """Which failed first; empty: none did."""
    schedules: int
    requests: int
    seconds: float


def tables(peer: str) -> tuple[tuple[Edit, ...], tuple[Mutant, ...]]:
    """(what is repaired all the while, what is planted)"""
    module = importlib.import_module(f"tests.peers.in_{peer.removesuffix('-pipeline').replace('-', '_')}")
    return getattr(module, "REPAIRS", ()), module.PLANTED


def hunted(peer: str, mutant: Mutant, seconds: float = SECONDS, seed: int = 0) -> Hunted:
    """Explore the peer with the defect in it until a property fails, and make that small."""
    kind, began, schedules = load_subject(peer), time.monotonic(), 0
    with with_repairs(peer, mutant):
        for number in count(seed):
            workload = Workload.random(number, kind.offers)
            strategy = STRATEGIES[number % len(STRATEGIES)]
            result, found = explore_subject(kind, workload, strategy, SCHEDULES_EACH, name=peer, seed=number)
            schedules += result.schedules
            if found is not None:
                small = shrunk(found, over=_later(SHRINK_SECONDS))
                return Hunted(mutant, found.violated, schedules, len(small.workload.arrivals), time.monotonic() - began)
            if time.monotonic() - began >= seconds:
                return Hunted(mutant, "", schedules, 0, time.monotonic() - began)
    raise AssertionError("seeds do not end")


def _later(seconds: float) -> Callable[[], bool]:
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() >= ends


def with_repairs(peer: str, mutant: Mutant = SOUND) -> AbstractContextManager[None]:
    """The peer with what is repaired in it, and with what is planted."""
    return planted(mutant._replace(edits=(*tables(peer)[0], *mutant.edits)))


def main(peer: str, *names: str) -> None:
    for mutant in tables(peer)[1]:
        if names and mutant.name not in names:
            continue
        try:
            one = hunted(peer, mutant)
        except EditFails as error:
            print(f"{mutant.name}: {error}", flush=True)
            continue
        verdict = (
            f"`{one.property}` | {one.schedules} | {one.requests}" if one.property else f"not found | {one.schedules} |"
        )
        print(f"| `{mutant.name}` | {mutant.what} | {verdict} | {one.seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
