"""What the engine does, without a mutant, where each mutant is caught: digests, kept in `golden.txt`.

A change of the source that changes a decision, an answer or a count anywhere in these runs shows there, and says so by
writing them anew:

    python -m tests.mutants.golden           write golden.txt, and tell whose runs have changed, and in what
    python -m tests.mutants.golden NAME      print those runs, to be compared with what the commit before prints
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import count, zip_longest
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
import numpy as np

from pawl.actors.control.state import GetState, state_of
from pawl.actors.measures import Operation
from pawl.actors.simulation.case import Case
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.exploration import Result, explore
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import DECODER, ENCODER, Checkpoint, Record, Started
from pawl.loops.snapshot import snapshot_of
from pawl.memory.snapshot import NoSnapshot
from pawl.testing.clients import FrontDesk
from pawl.testing.cluster import Cluster
from pawl.testing.exploring import STRATEGIES, most_steps, scenario_of
from pawl.testing.replica import SimulatedReplica
from tests.mutants.everything import MUTANTS
from tests.mutants.places import Place, place_of
from tests.pawl.forger import field_forged

FILE = Path(__file__).with_name("golden.txt")
FEW = 3
"""Schedules of each place."""
EVERY = 50
"""Steps of a run after which its replicas are asked again."""
FORGED = 2
"""Forgeries of the first run of each place."""


class Shown(NamedTuple):
    """What one run shows, line by line."""

    schedule: list[str]
    """What happened next, among all that could have."""
    records: list[str]
    """Of every replica."""
    told: list[str]
    """To each client, and to whoever sent a control message."""
    counted: list[str]
    """By every replica, and by the gateway."""
    asked: list[str]
    """What every replica says of itself on the way, to whoever asks, and to a checkpoint where no step is in flight."""
    judged: list[str]
    """What is found wrong in the records of a replica of which one is another: the first run of a place says so."""
    handed: list[str]
    """Every message that an actor has taken, timers among them, and when."""


class Watched(NamedTuple):
    """One run, what its replicas were asked on the way, and what its actors were handed."""

    case: Case
    asked: list[str]
    handed: list[str]


def watched(case: Case) -> Watched:
    """A run that is about to begin."""
    steps, before, asked, handed = count(1), case.stepped, list[str](), list[str]()

    def stepped() -> None:
        before()
        if next(steps) % EVERY == 0 and isinstance(case, Cluster):
            asked.extend(line for replica in case.replicas for line in _said(replica))

    case.stepped = stepped  # type: ignore[method-assign]
    if isinstance(case, Cluster):
        system = case.system
        system.on_delivery = lambda name, message: handed.append(_handed(system.now_s, name, message))
    return Watched(case, asked, handed)


def _plain(value: object) -> object:
    """An array as its numbers, and what goes nowhere as its type."""
    return value.tolist() if isinstance(value, np.ndarray) else type(value).__name__


_MESSAGES = msgspec.json.Encoder(enc_hook=_plain)


def _handed(now: float, name: str, message: object) -> str:
    return _from_here(_MESSAGES.encode((now, name, type(message).__name__, message)).decode())


def _said(replica: SimulatedReplica) -> Iterator[str]:
    """By a replica, of itself."""
    scheduler = replica.scheduler
    yield _line(state_of(scheduler, GetState(detail=True)).facts)
    # Lower tiers send what they have gathered before a snapshot: to ask them would be to take part.
    if not (scheduler.loop.in_flight or scheduler.loop.companions):
        with suppress(NoSnapshot):
            yield _line(snapshot_of(scheduler.intake))


def shown(run: Cluster, asked: list[str], handed: list[str], forged: int) -> Shown:
    """Of a run that has ended, and so many forgeries of its records."""
    desk, replicas = run.desk, run.replicas
    clients = [
        (client.request, client.tokens, client.text, client.scores, client.prompt_scores, client.vectors, client.spans)
        for client in desk.clients
    ]
    ends = [(client.done, client.refusal, client.left, client.first_at) for client in desk.clients]
    return Shown(
        run.system.choices.labels,
        [_line(_unconfigured(record)) for replica in replicas for record in replica.trace.records],
        [_line(each) for each in (*clients, *ends, *desk.answers)],
        [*(_line(replica.scheduler.loop.counters) for replica in replicas), *_of_the_gateway(desk), repr(run.state())],
        asked + [line for replica in replicas for line in _said(replica)],
        _judged(max((replica.trace.records for replica in replicas), key=len), forged),
        handed,
    )


def _judged(records: list[Record], count: int) -> list[str]:
    """What is found in so many runs that are this one but for a field of a record."""
    lines, source = [], Random(0)
    for _ in range(count):
        forged = field_forged(DECODER.decode(ENCODER.encode(records)), source)
        monitor = Monitor()
        for record in forged.records:
            monitor.observe(record)
        monitor.finish()
        lines.append(f"{forged.at} {forged.kind}: {_from_here(str(monitor.violations))}")
    return lines


def _of_the_gateway(desk: FrontDesk) -> Iterator[str]:
    yield _line(desk.totals)
    yield _line(desk.requests.queue_time.plain())
    for operation in Operation:
        durations = desk.requests.durations[operation]
        yield from (_line(each.plain()) for each in (durations.request, durations.first_token, durations.output_token))


def _unconfigured(record: Record) -> Record:
    """Without the settings that the run began with: a new one, at its default, changes nothing that is done."""
    if isinstance(record, Started):
        return msgspec.structs.replace(record, config={})
    if isinstance(record, Checkpoint):
        return msgspec.structs.replace(record, started=_unconfigured(record.started))
    return record


def _line(value: object) -> str:
    """As a record is written, and columns of numbers as their bytes."""
    return _from_here(repr(msgspec.msgpack.decode(ENCODER.encode(value))))


def _from_here(text: str) -> str:
    """With names of files from this folder, and no lines of them: those come and go."""
    return re.sub(r"\.py:\d+", ".py", text.replace(str(Path.cwd()), "."))


def runs_of(place: Place) -> tuple[Result, list[Shown]]:
    """The first schedules of a place, with the code as it is at the moment."""
    made: list[Watched] = []
    scenario = scenario_of(place.workload, place.faults)

    def keeping(source: ChoiceSource) -> Case:
        made.append(watched(scenario(source)))
        return made[-1].case

    strategy = STRATEGIES[place.strategy](place.seed)
    result = explore(keeping, strategy, FEW, max_steps=most_steps(place.workload), most_shrink_runs=0)
    runs = [(case, asked, handed) for case, asked, handed in made if isinstance(case, Cluster)]
    return result, [shown(*run, forged=0 if number else FORGED) for number, run in enumerate(runs)]


def marks(runs: list[Shown]) -> list[str]:
    """A word for each part of them all."""
    return [_mark(line for run in runs for line in run[part]) for part in range(len(Shown._fields))]


def _mark(lines: Iterator[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=4).hexdigest()


@cache
def kept() -> dict[str, list[str]]:
    """What `golden.txt` holds, by the name of the mutant."""
    rows = (line.split() for line in FILE.read_text().splitlines() if not line.startswith("#"))
    return {name: marks for name, *marks in rows}


def changed(before: list[str], now: list[str]) -> list[str]:
    """The parts that are others now."""
    return [part for part, one, other in zip_longest(Shown._fields, before, now) if one != other]


def write() -> None:
    """Write the file anew, and say what has changed."""
    before, lines = kept() if FILE.exists() else {}, ["# mutant " + " ".join(Shown._fields)]
    for mutant in MUTANTS:
        now = marks(runs_of(place_of(mutant.name))[1])
        lines.append(" ".join([mutant.name, *now]))
        if now != before.get(mutant.name):
            print(mutant.name, *(changed(before[mutant.name], now) if mutant.name in before else ["new"]), flush=True)
    FILE.write_text("\n".join(lines) + "\n")


def tell(name: str) -> None:
    """Print what the runs of one mutant show."""
    for number, run in enumerate(runs_of(place_of(name))[1], 1):
        for part, lines in run._asdict().items():
            print(f"# schedule {number}: {part}", *lines, sep="\n")


def main() -> None:
    """Write the file, or print the runs of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    for name in (names := parser.parse_args().names):
        tell(name)
    if not names:
        write()


if __name__ == "__main__":
    main()
