"""The experts of a group of ranks: how many tokens use each, and on which ranks they are. Needs no PyTorch.

    counts of each step ──► a better map ──► every rank lays out what it gets, beside its steps
                                         ──► all switch behind the same step, or none

Each rank has the new experts before any is told to switch. What it switches to is part of the hash in its answers, so
ranks that compute by different maps are not believed. The map is the group's: ranks that are started again begin with
the one that was switched to last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.gpu.parallel.placement import Move, Placement, busiest, moves, rebalanced
from pawl.gpu.parallel.wire import CountExperts, StageExperts
from pawl.gpu.step_runner import PlannedMove, RunnerLost, WeightsRefused
from pawl.lifecycle.weight_source import FromBytes

if TYPE_CHECKING:
    from pawl.gpu.parallel.group import RankGroup


ON_THEIR_WAY = "experts are on their way already"


class ExpertsOfModel(msgspec.Struct, frozen=True):
    """Of a model with experts, what `CountsExperts` says, and how they are shared out."""

    chosen: int
    layers: tuple[bool, ...]
    count: int
    placement: Placement
    """At the start."""
    parts: int = 1
    balances: bool = False
    """Whether they move."""
    every: int = 0
    """Steps after which it is time for a better map; 0: never."""
    redundant: int = 0
    """Copies of a layer's experts beside the first ones."""


class GroupExperts:
    """`CountsExperts` and `PlacesExperts` of a group. The worker's thread calls all but `stage`."""

    def __init__(self, model: ExpertsOfModel, expert_of: Callable[[Mapping[str, Any], Move], FromBytes]) -> None:
        """`expert_of` takes an expert from the weights that the group shows."""
        self.chosen, self.layers, self.placement = model.chosen, model.layers, model.placement
        self.balances = model.balances
        self._model, self._expert_of = model, expert_of
        self._recorded, self._used = self._nothing(), self._nothing()
        """Counts since `start`, and since the last map."""
        self._recording = self._asked = False
        self._steps = self._ticket = 0
        self._planned: tuple[int, Placement] | None = None

    def join(self, group: RankGroup) -> None:
        """These are its ranks."""
        self._group = group
        if self.balances:
            group.ask(CountExperts(True))

    def _nothing(self) -> NDArray[np.int64]:
        return np.zeros((len(self.layers), self._model.count), np.int64)

    # ---- counts ----

    @property
    def counting(self) -> bool:
        """Ranks say with each step what it has used."""
        return self._recording or self.balances

    def add(self, counts: Sequence[NDArray[np.int64]]) -> None:
        """A step was computed; of each stage that counts its layers."""
        self._steps += 1
        if counts:
            step = np.concatenate(counts)
            self._used += step
            if self._recording:
                self._recorded += step

    def start(self) -> None:
        """See `CountsExperts.start`."""
        self._recording, self._recorded = True, self._nothing()
        self._count()

    def stop(self) -> None:
        """See `CountsExperts.stop`."""
        self._recording = False
        self._count()

    def _count(self) -> None:
        """Ranks that are lost are lost to the next step, which starts others: those are told what to count."""
        with suppress(RunnerLost):
            self._group.ask(CountExperts(self.counting))

    def take(self) -> NDArray[np.int64]:
        """See `CountsExperts.take`."""
        found, self._recorded = self._recorded, self._nothing()
        return found

    # ---- where they are ----

    def due(self) -> bool:
        """See `PlacesExperts.due`."""
        if not self._model.every or self._asked or self._steps < self._model.every:
            return False
        self._asked, self._steps = True, 0
        return True

    def stage(self) -> PlannedMove | None:
        """See `PlacesExperts.stage`."""
        self._asked = False
        if self._planned is not None:
            raise WeightsRefused(ON_THEIR_WAY)
        used, self._used = self._used, self._nothing()
        now, self._ticket = self.placement, self._ticket + 1
        new = rebalanced(now, used, self._model.parts, self._model.redundant)
        if new == now:
            return None
        coming, shown = moves(now, new), self._group.named_weights()
        try:
            for move in coming:
                self._group.ask_beside(StageExperts(self._ticket, new, self._expert_of(shown, move)))
        except RunnerLost as error:
            raise WeightsRefused(str(error)) from error
        self._planned = self._ticket, new
        changed = sum(before != after for before, after in zip(now, new, strict=True))
        return PlannedMove(self._ticket, len(coming), changed, self._balance(now, used), self._balance(new, used))

    def _balance(self, placement: Placement, used: NDArray[np.int64]) -> float:
        parts = self._model.parts
        layers = [(placed, each) for placed, each in zip(placement, used, strict=True) if placed and each.sum()]
        return float(np.mean([busiest(placed, each, parts) * parts / each.sum() for placed, each in layers]))

    def switch(self, ticket: int) -> None:
        """See `PlacesExperts.switch`."""
        planned = self._planned
        try:
            if planned is None or planned[0] != ticket:
                raise WeightsRefused(f"no experts are to move under {ticket}")
            self._group.switch_experts(ticket)
            self.placement = planned[1]
        finally:
            # Not before: ranks drop what they have laid out as soon as they get something for the next map.
            self._planned = None
