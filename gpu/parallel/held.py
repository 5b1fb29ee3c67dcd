"""The experts of one rank, and how others take their place between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

from numpy.typing import NDArray

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
        """Lay out, beside what computes, the rank's parts of these weights for a map in which it has the experts. What
        was laid out under another ticket is dropped."""

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
        now, anew = self._shard, self._staged is None or self._staged[0] != ticket
        new = replace(now, placement=placement)
        self._staged = ticket, new
        coming = new.cuts.keys() - now.cuts.keys()
        self._backend.stage_experts(_parts(new, parsed(source.safetensors), coming), anew=anew)

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


def _parts(shard: Shard, sent: Mapping[str, NDArray[Any]], coming: set[str]) -> dict[str, NDArray[Any]]:
    return {shard.own_name(name): shard.own_part(name, weight) for name, weight in sent.items() if name in coming}
