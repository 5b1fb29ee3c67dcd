"""Weights that a trainer has broadcast, between the actor that has received them and the one that stages them."""

from __future__ import annotations

from pawl.gpu.step_runner import WeightsRefused
from pawl.lifecycle.weight_source import FromMemory


class Received:
    """Those of one update, the latest. One thread puts, another takes."""

    def __init__(self) -> None:
        self._held: tuple[int, FromMemory] | None = None

    def put(self, ticket: int, weights: FromMemory) -> None:
        """Keep them for the update with this ticket; those of an earlier one are dropped."""
        self._held = ticket, weights

    def take(self, ticket: int) -> FromMemory:
        """Those of this update, once. Raises WeightsRefused."""
        held, self._held = self._held, None
        if held is None or held[0] != ticket:
            raise WeightsRefused(f"nothing was received for update {ticket}")
        return held[1]
