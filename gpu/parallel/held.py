"""The experts of one rank, and how others take their place between two steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, cast

from pawl.gpu.backend import MovesExperts
from pawl.gpu.parallel.placement import Placement
from pawl.gpu.parallel.shard import Shard
from pawl.gpu.step_runner import WeightsRefused
from pawl.gpu.updates import Updates
from pawl.gpu.weights.safetensors import parsed
from pawl.lifecycle.weight_source import FromBytes


class HoldsExperts(Protocol):
    """What a rank does of `StageExperts` and `SwitchExperts`, which do not come at a time."""

    def stage(self, ticket: int, placement: Placement, source: FromBytes) -> None:
        """Lay out, beside what computes, the rank's parts of these weights for a map in which it has the experts, the
        same with each call under a ticket. What was laid out under another one is dropped."""

    def switch(self, ticket: int) -> None:
        """Compute by the map of this ticket; no step is in flight. Raises WeightsRefused, with nothing changed, where
        something that it needs is not laid out."""


class HeldExperts:
    """`HoldsExperts` of a runner that computes as a rank."""

    def __init__(self, updates: Updates) -> None:
        self._updates = updates
        self._staged: tuple[int, Shard] | None = None

    def stage(self, ticket: int, placement: Placement, source: FromBytes) -> None:
        """See `HoldsExperts.stage`."""
        now, staged = self._shard, self._staged
        anew = staged is None or staged[0] != ticket
        # One shard for all experts of a ticket: it looks at the names of the whole model once.
        new = replace(now, placement=placement) if staged is None or anew else staged[1]
        self._staged = ticket, new
        coming = {
            new.own_name(name): new.own_part(name, weight)
            for name, weight in parsed(source.safetensors).items()
            if name in new.cuts and name not in now.cuts
        }
        self._backend.stage_experts(coming, anew=anew)

    def switch(self, ticket: int) -> None:
        """See `HoldsExperts.switch`."""
        staged, self._staged = self._staged, None
        if staged is None or staged[0] != ticket:
            raise WeightsRefused(f"no experts are staged for {ticket}")
        try:
            self._backend.switch_experts(staged[1])
        except ValueError as error:
            raise WeightsRefused(str(error)) from error
        self._updates.placed(staged[1])

    @property
    def _shard(self) -> Shard:
        rank = self._updates.rank
        assert rank is not None, "experts are shared out among ranks"
        return rank.shard

    @property
    def _backend(self) -> MovesExperts:
        return cast(MovesExperts, self._updates.serving.backend)
