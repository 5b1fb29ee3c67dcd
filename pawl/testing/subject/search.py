"""A search: random workloads under schedules of all strategies, one after the other, for every property that fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pawl.actors.simulation.exploration import never
from pawl.actors.simulation.strategies.exhaustive import NotDeterministic
from pawl.testing.subject.exploring import Found, Seen, explore_subject, shrunk
from pawl.testing.subject.port import Subject
from pawl.testing.subject.properties import PROPERTIES, RECORDS, left_out, unjudged
from pawl.testing.subject.workload import Workload

SCHEDULES_EACH = 10
"""Schedules of one workload before the next one is drawn."""
CONFIRMED_EVERY = 10
"""Schedules of which one is run twice: it must come out the same."""
STRATEGIES = ("pct", "random", "fair", "pos", "coverage")
"""They take turns unless one is named."""


@dataclass
class Searched:
    """What was done, and what was found."""

    kind: type[Subject]
    name: str
    seed: int
    workloads: int = 0
    schedules: int = 0
    confirmed: int = 0
    """Schedules run twice."""
    seen: Seen = field(default_factory=Seen)
    violations: Counter[str] = field(default_factory=Counter)
    """Property -> workloads in which it failed."""
    found: dict[str, Found] = field(default_factory=dict)
    """Property -> the counterexample."""
    unsteady: str = ""
    """How the same calls had other results, if they had."""

    @property
    def failed(self) -> bool:
        return bool(self.violations)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as for JSON."""
        return {
            "subject": self.name,
            "seed": self.seed,
            "workloads": self.workloads,
            "schedules": self.schedules,
            "confirmed": self.confirmed,
            "steps": self.seen.steps,
            "calls": self.seen.calls,
            "reached": dict(sorted(self.seen.reached.items())),
            "not_offered": left_out(self.kind.offers),
            "not_judged": dict(unjudged(self.kind.offers, self.seen.tells)),
            "violations": dict(self.violations),
            "counterexamples": {name: str(found) for name, found in self.found.items()},
            "unsteady": self.unsteady,
        }


def search(
    kind: type[Subject],
    name: str,
    *,
    seed: int,
    strategy: str = "all",
    schedules: int = 0,
    max_requests: int = 5,
    shrink_seconds: float = 20.0,
    over: Callable[[], bool] = never,
    told: Callable[[Found], object] = lambda found: None,
    clock: Callable[[], float] = time.monotonic,
) -> Searched:
    """Explore until `over` says so, or so many schedules have been run (0: no limit). Of each property that fails the
    first counterexample is `told`, and made smaller for so long at the most; others are counted."""
    done = Searched(kind, name, seed)
    while not over() and not 0 < schedules <= done.schedules:
        number = done.workloads
        workload = Workload.random(seed + number, kind.offers, max_requests=max_requests)
        try:
            result, found = explore_subject(
                kind,
                workload,
                STRATEGIES[number % len(STRATEGIES)] if strategy == "all" else strategy,
                SCHEDULES_EACH,
                name=name,
                seed=seed + number,
                confirm_every=CONFIRMED_EVERY,
                over=over,
                seen=done.seen,
            )
        except NotDeterministic as error:
            done.violations["deterministic"] += 1
            done.unsteady = f"the same calls had other results: {error}"
            return done
        done.workloads += 1
        done.schedules += result.schedules
        done.confirmed += result.confirmed
        if found is not None:
            first = found.violated not in done.violations
            done.violations[found.violated] += 1
            if first:
                told(found)
                done.found[found.violated] = _smaller(found, shrink_seconds, over, clock)
    return done


def _smaller(found: Found, seconds: float, over: Callable[[], bool], clock: Callable[[], float]) -> Found:
    ends = clock() + seconds
    return shrunk(found, over=lambda: over() or clock() >= ends)


def report(done: Searched, seconds: float) -> list[str]:
    """The table for a terminal."""
    offers, seen = done.kind.offers, done.seen
    reasons = unjudged(offers, seen.tells)
    lines = [
        f"{done.name}: {done.schedules:,} schedules of {done.workloads:,} workloads, {seen.steps:,} steps, "
        f"{seen.calls:,} events in {seconds:.1f} s; seed {done.seed}",
        f"{done.confirmed:,} schedules were run twice"
        + (f", and came out otherwise: {done.unsteady}" if done.unsteady else ", and came out the same"),
    ]
    missing = left_out(offers)
    if missing:
        lines.append(f"not offered, and left out of the workloads: {', '.join(missing)}")
    reached = [f"{what} {100 * count / max(1, seen.runs):.0f} %" for what, count in sorted(seen.reached.items())]
    lines += [f"of the runs without a violation: {', '.join(reached) or 'none'}", ""]
    others = sorted(done.violations.keys() - {each.name for each in PROPERTIES})
    failed = done.violations + Counter({RECORDS: sum(done.violations[name] for name in others)})
    for name in (*(each.name for each in PROPERTIES), *others):
        reason = reasons.get(name)
        held = f"not judged: {reason}" if reason else "holds"
        lines.append(f"  {name:<17} {f'FAILS in {failed[name]} workloads' if failed[name] else held}")
    lines += ["", f"violations: {len(done.violations)} properties"]
    return lines
