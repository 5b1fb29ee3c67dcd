"""Trainers of simulated runs: they send a ghost's weights, are late, or go away, as the schedule says."""

from __future__ import annotations

from collections.abc import Sequence

from pawl.actors.control.weights import BROADCAST
from pawl.gpu.ghost.weights import GhostWeights
from pawl.gpu.trainers.member import GONE, Heard
from pawl.lifecycle.weight_group import Place, TensorSpec, offsets_of
from pawl.lifecycle.weight_source import FromMemory
from pawl.testing.models import Strikes

LIMIT_S = 1.0
"""Virtual seconds that a trainer may take."""


class SimulatedMember:
    """A member of a group whose trainer is there at once (a `Member`)."""

    def __init__(self, strikes: Strikes, place: Place, limit_s: float, heard: Heard) -> None:
        self._strikes = strikes
        self._heard = heard
        self._received: FromMemory | None = None
        self._meet()

    def _meet(self) -> bool:
        gone = self._strikes("trainer gone")
        if gone:
            self._heard(GONE)
        elif not self._strikes("trainer late"):
            self._heard("")
        return not gone

    def receive(self, specs: Sequence[TensorSpec], flat: bool) -> None:
        """See `Member.receive`. Of one who goes the first tensor has come."""
        (source,) = BROADCAST.values()
        tensors, offsets = GhostWeights.named(source).tensors, offsets_of(specs)
        memory = bytearray(offsets[-1])
        self._received = FromMemory(tuple(specs), tuple(offsets), memory)
        for spec, offset in zip(specs if self._meet() else specs[:1], offsets, strict=False):
            memory[offset : offset + spec.num_bytes] = tensors[spec.name].tobytes()

    @property
    def received(self) -> FromMemory:
        """See `Member.received`."""
        assert self._received is not None
        return self._received

    def leave(self) -> None:
        """See `Member.leave`."""
