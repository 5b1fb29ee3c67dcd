"""What torchrun says of a process that it starts, one on each host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pawl.build.hosts.addresses import address_of
from pawl.commands.failures import UsageError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launched(NamedTuple):
    """One of several processes that were started together."""

    rank: int
    """0 is the head."""
    num_nodes: int
    address: str
    """Where the head waits: the port behind that of torchrun, which has its own for itself."""


def launched_by(environment: Mapping[str, str]) -> Launched | None:
    """None where torchrun has not started this process, or this one alone. Raises UsageError."""
    if not all(environment.get(name) for name in NAMES):
        return None
    try:
        rank, size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        here = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError as error:
        raise UsageError(f"torchrun: {', '.join((*NAMES, 'LOCAL_WORLD_SIZE'))} hold no numbers: {error}") from error
    if here > 1:
        raise UsageError(f"torchrun: --nproc-per-node 1, not {here}: --dp says how many replicas there are")
    return Launched(rank, size, address_of(environment["MASTER_ADDR"], port + 1)) if size > 1 else None
