"""Ranks as their group sees them, and what is wrong with them if anything is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from pawl.gpu.parallel.applied import BYTES
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.wire import Answer, Beside, Ready, ToRank
from pawl.gpu.step_runner import RunnerLost

IN_VAIN = "RanksLost"
"""What a rank raises that has waited for another (`pawl.gpu.native.ranks`)."""


class RankLost(RunnerLost):
    """A rank has ended, does not answer, or is not what the others are: none of them is of use any more."""

    def __init__(self, rank: int, why: str, *, blameless: bool = True) -> None:
        super().__init__(f"rank {rank} {why}", blameless=blameless)
        self.rank, self.why = rank, why


class HostGone(RunnerLost):
    """A host of ranks is gone, or cannot be reached: no start brings them back, before somebody else has found another
    one."""

    def __init__(self, why: str) -> None:
        super().__init__(why, blameless=True)


class RanksDiverged(RunnerLost):
    """Ranks have not applied the same steps, or have drawn other tokens: one decision log does not hold of them."""

    def __init__(self, applied: Sequence[bytes]) -> None:
        digests = [f"rank {rank}: {each[:6].hex()} {each[BYTES:][:6].hex()}" for rank, each in enumerate(applied)]
        words = f"one_decision_log: ranks have applied different steps ({', '.join(digests)})"
        super().__init__(words, blameless=True)
        self.applied = tuple(applied)


class StartRefused(Exception):
    """Ranks that cannot serve together, with what each of them has."""


class Line(Protocol):
    """One line to each rank."""

    def tell(self, message: ToRank | Beside) -> None:
        """Say the same to all. Raises RankLost."""

    def answers(self, limit_s: float) -> Sequence[Answer]:
        """The next answer of each, in the order of ranks. Raises RankLost, also where one of them does not answer
        within `limit_s` seconds."""


class Ranks(Protocol):
    """One start of all ranks."""

    ready: Sequence[Ready]

    @property
    def steps(self) -> Line: ...

    @property
    def beside(self) -> Line: ...

    def end(self) -> None:
        """End all of them at once, in the middle of anything. May be called twice, from any thread."""


StartRanks: TypeAlias = Callable[[str], Ranks]
"""Starts ranks for the model at this place, and returns when all are ready. Raises RankLost, StartRefused, or
HostGone."""


def check_ready(ready: Sequence[Ready], topology: Topology) -> None:
    """Raises StartRefused, with the numbers, unless these can serve together."""
    expected = [(rank, *topology.place(rank)) for rank in range(topology.size)]
    found = [(one.rank, one.stage, one.tensor) for one in ready]
    if found != expected:
        raise StartRefused(f"ranks (rank, stage, tensor) are {found}, not {expected}")
    for what in ("version", "dtype", "backend", "max_tokens", "fingerprint"):
        told = [getattr(one, what) for one in ready]
        if len(set(told)) > 1:
            each = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(told))
            raise StartRefused(f"ranks differ in {what} ({each})")
