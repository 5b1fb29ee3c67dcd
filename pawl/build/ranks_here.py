"""Ranks of one host of a replica: which these are, and their start there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pawl.config import ServerConfig
from pawl.gpu.children import python
from pawl.gpu.devices import available_threads
from pawl.gpu.native.ranks import Segment
from pawl.gpu.parallel.processes import RanksHere
from pawl.gpu.parallel.topology import Topology, shared_out
from pawl.gpu.parallel.wire import Here


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Start the ranks of one host."""

    life: int
    """Which start of the group it is, from 0 on."""
    topology: Topology
    numbers: tuple[int, ...]
    """Of these ranks: those of whole stages."""
    meets: bool
    """Those of a stage share memory."""


class Outward(NamedTuple):
    """How processes of this host find those of others, and are found (see `Here`)."""

    waits_at: str | None = None
    keys: str | None = None
    head: str | None = None
    host: str = ""


def ranks_of_hosts(topology: Topology, num_hosts: int) -> list[tuple[int, ...]]:
    """Of each of so many hosts: stages in a row, as evenly as they go; the first ones have one more."""
    shares = shared_out(topology.pipeline, num_hosts)
    return [tuple(range(stages.start * topology.tensor, stages.stop * topology.tensor)) for stages in shares]


def start_here(begin: Begin, config: ServerConfig, outward: Outward) -> RanksHere:
    """Start them on this host. Raises OSError, and NativeUnavailable where they cannot share memory."""
    topology, numbers = begin.topology, begin.numbers
    threads = max(1, (config.threads or available_threads()) // len(numbers))
    segments = _segments(begin)

    def here(number: int, store: Path) -> Here:
        stage = topology.place(number).stage
        return Here(
            store=str(store),
            device=numbers.index(number),
            threads=threads,
            segment=segments[stage].address if segments else None,
            **outward._asdict(),
        )

    return RanksHere(python("pawl.build.rank"), numbers, here)


def _segments(begin: Begin) -> dict[int, Segment]:
    """By stage."""
    stages: Sequence[int] = sorted({begin.topology.place(number).stage for number in begin.numbers})
    return {stage: Segment(begin.topology.tensor, begin.life) for stage in stages} if begin.meets else {}
