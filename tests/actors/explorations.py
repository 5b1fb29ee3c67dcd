"""What each strategy makes of known scenarios, to the last choice: digests, kept in `explorations.txt`.

In the scenarios is all that a simulated run can do: wires and outboxes, boxes that are full and those that hold, timers
and everything that may befall an actor, a message, a clock or a process. A change of what a run may choose, of what a
strategy chooses, or of how a failure is made smaller, shows. Where it is meant:

    python -m tests.actors.explorations         write explorations.txt
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.exploration import Case, Failure, Result, Scenario, explore
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.network import all_wires
from pawl.actors.simulation.processes import Processes
from pawl.actors.simulation.strategies.coverage import CoverageGuided
from pawl.actors.simulation.strategies.exhaustive import Exhaustive, Reduction
from pawl.actors.simulation.strategies.pct import PCT
from pawl.actors.simulation.strategies.pos import POS
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk, Strategy
from pawl.actors.simulation.system import ActorFailure, SimulatedSystem
from tests.actors.conformance_base import CancelTimer, Crash, Draw, Journal, Parting, Persistent, Relay, Say, SetTimers
from tests.actors.toys import Note, lost_update, to, writing

FILE = Path(__file__).with_name("explorations.txt")
STRATEGIES: tuple[Callable[[], Strategy], ...] = (
    Fair,
    *(lambda kind=kind: kind(1, fault_rate=0.1) for kind in (RandomWalk, PCT, POS, CoverageGuided)),
    *(lambda reduction=reduction: Exhaustive(max_depth=60, reduction=reduction) for reduction in Reduction),
)
SCHEDULES = 12
OF_A_SEARCH = 40
LETTERS = (
    ("a", Note("a", (*to("x", "b"), *to("x", lane=Lane.CONTROL)))),
    ("b", Note("b", to("x", "x", "x"))),
    ("x", Note("x", to("a"))),
)
EVERY_FAULT = Faults(crash=1, lose=1, double=1, rush=2, late=1, jump=1, strike=1, garble=1, kill=1, freeze=1, part=1)


class Watched(Case):
    """Ends as its journal says; everything is tolerated."""

    def __init__(self, system: SimulatedSystem, journal: Journal) -> None:
        super().__init__(system)
        self.journal = journal

    def tolerates(self, failure: ActorFailure) -> bool:
        return True

    def state(self) -> Hashable:
        return len(self.journal.entries), super().state()

    def outcome(self) -> bytes:
        return repr((self.journal.entries, self.system.failures, self.system.dump())).encode()


def befallen(source: ChoiceSource) -> Watched:
    """Four actors in three processes, of which two may be lost, with timers, watchers and a word at their end."""
    journal, apart = Journal(), {"near": "first", "also": "first"}
    system = SimulatedSystem(
        source, 3, faults=EVERY_FAULT, is_wire=lambda one, other: apart.get(one, one) != apart.get(other, other)
    )
    system.spawn(Persistent(journal), "near")
    system.spawn(Parting(journal, "near"), "also", capacity=2, overflow=Overflow.HOLD)
    for name in ("far", "third"):
        system.spawn(Persistent(journal), name)
        system.watch("near", name)
    system.watch("far", "third")
    system.processes = Processes(system, lambda name: apart.get(name, name), "first")
    system.processes.mortal = lambda: ["far", "third"]
    for message in (SetTimers((0.5, 0.25, 0.5)), Draw(), Relay("third", 2), CancelTimer(2), Relay("also", 4)):
        system.send("near", message)
    system.send("far", Relay("near", 2))
    system.send("far", SetTimers((0.1,)))
    system.send("third", Relay("far", 2, lane=Lane.CONTROL))
    system.send("also", Crash(1), Lane.CONTROL)
    system.send("also", Say(1), Lane.SYSTEM)
    system.start()
    return Watched(system, journal)


def scenarios() -> dict[str, Scenario]:
    """By name."""
    wires: dict[str, Any] = {"is_wire": all_wires, "faults": Faults(lose=1, double=1, crash=1)}
    return {
        "an update is lost": lost_update,
        "letters": writing("abx", LETTERS, set()),
        "letters at once": writing("abx", LETTERS, set(), preempt=False),
        "letters on wires": writing("abx", LETTERS, set(), **wires),
        "letters for a full box": writing("abx", LETTERS, set(), {"x": 1}),
        "letters for a box that holds": writing("abx", LETTERS, set(), {"x": 1}, Overflow.HOLD),
        "all that befalls": befallen,
    }


def _said(result: Result) -> Iterator[object]:
    yield result.schedules, result.distinct, result.redundant, result.deliveries, result.states, result.confirmed
    yield result.digest, result.exhausted
    if isinstance(result.failure, Failure):
        failure = result.failure
        yield str(failure), failure.choices.indices, failure.shrunk.labels, failure.dump


def digests(name: str) -> dict[str, str]:
    """Of what each strategy makes of this scenario."""
    found = {}
    for number, make in enumerate(STRATEGIES):
        strategy = make()
        count = OF_A_SEARCH if isinstance(strategy, Exhaustive) else SCHEDULES
        result = explore(scenarios()[name], strategy, count, confirm_every=3, most_shrink_runs=60)
        said = hashlib.blake2b(repr([*_said(result)]).encode(), digest_size=4)
        found[f"{name.replace(' ', '-')}/{strategy.name}-{number}"] = said.hexdigest()
    return found


def kept() -> dict[str, str]:
    """What `explorations.txt` holds."""
    return dict(line.split() for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    every = [(name, digest) for scenario in scenarios() for name, digest in digests(scenario).items()]
    FILE.write_text("".join(f"{name} {digest}\n" for name, digest in every))
