"""Ranks of a simulated server: ghosts that are told the same, and die or diverge where the schedule says so."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from pawl.actors.codec import make_codec
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.parallel.actions import RankActions
from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.parallel.group_experts import ExpertsOfModel, GroupExperts
from pawl.gpu.parallel.order import differ
from pawl.gpu.parallel.pages import cut_pages
from pawl.gpu.parallel.placement import Placement
from pawl.gpu.parallel.ranks import HostGone, RankLost
from pawl.gpu.parallel.wire import (
    Answer,
    Beside,
    Ready,
    RunStep,
    StageExperts,
    StageWeights,
    SwitchExperts,
    TakeAdapter,
    ToRank,
)
from pawl.gpu.step_runner import WeightsRefused
from pawl.lifecycle.properties.start import GHOST
from pawl.lifecycle.step import StepBatch
from pawl.lifecycle.weight_source import FromBytes
from pawl.testing.experts import NUM_EXPERTS, SimulatedExperts

Strikes = Callable[[str], bool]
Report = Callable[[str], None]
NUM_RANKS = 2
EXPERTS = ExpertsOfModel(
    chosen=SimulatedExperts.chosen,
    layers=SimulatedExperts.layers,
    count=NUM_EXPERTS,
    placement=((), ((0,), (0,), (1,), (1,))),
    parts=NUM_RANKS,
    balances=True,
    every=9,
    redundant=1,
)
MORTAL = RunStep | TakeAdapter | StageWeights | StageExperts | SwitchExperts
"""Messages in the middle of which a rank may die."""
_WORDS = 2
"""Numbers of 8 bytes in an entry of a ghost's page: they stand for heads."""


def never(place: str) -> bool:
    """No fault strikes."""
    return False


def unheard(told: str) -> None:
    """Nobody hears it."""


class GhostExperts(SimulatedExperts):
    """The experts of one simulated rank (`HoldsExperts` too)."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.placement = placement
        self._staged: tuple[int, Placement] | None = None

    def stage(self, ticket: int, placement: Placement, source: FromBytes) -> None:
        self._staged = ticket, placement

    def switch(self, ticket: int) -> None:
        if self._staged is None or self._staged[0] != ticket:
            raise WeightsRefused(f"no experts are staged for {ticket}")
        self.placement, self._staged = self._staged[1], None


class RankOfGhost:
    """A ghost whose tokens use experts."""

    def __init__(self, ghost: Ghost, placement: Placement) -> None:
        self._ghost, self.experts = ghost, GhostExperts(placement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ghost, name)

    def launch(self, batch: StepBatch) -> Any:
        launched = self._ghost.launch(batch)
        self.experts.computed(batch)
        return launched


class RankHost:
    """A host that has the last rank of each replica that was started while it was there."""

    def __init__(self) -> None:
        self.is_gone = False
        """With all that was there, at once."""


class SimulatedRanks:
    """`Ranks` in one thread. Each computes when it is told."""

    def __init__(
        self,
        ghosts: Sequence[Ghost],
        strikes: Strikes = never,
        report: Report = unheard,
        weights: str = GHOST,
        placement: Placement = EXPERTS.placement,
        host: RankHost | None = None,
    ) -> None:
        """`report` hears where a group goes on with ranks that have applied different steps. `host` has the last of
        them; None: it is where the others are."""
        page = 1, 1, ghosts[0].memory.page_size
        cut = [
            partial(cut_pages, shape=(*page, _WORDS, 1), heads=range(n, n + 1), layers=range(1))
            for n in range(len(ghosts))
        ]
        self.experts = [RankOfGhost(ghost, placement) for ghost in ghosts]
        self.actions = [
            RankActions(cast(Any, rank), tells=not n, cut_out=cut[n], counts=not n, experts=rank.experts)
            for n, rank in enumerate(self.experts)
        ]
        self.ready: Sequence[Ready] = [
            _ready(number, (*page, 1, 1), ghost, weights) for number, ghost in enumerate(ghosts)
        ]
        self.steps = SimulatedLine(self.actions, RankActions.step, strikes, report)
        # A question beside the steps may be answered before the answer that shows that ranks have parted is read.
        self.beside = SimulatedLine(self.actions, RankActions.beside, strikes, unheard)
        self.steps.host = self.beside.host = host
        self.steps.maps = lambda: {rank.experts.placement for rank in self.experts}
        self.ended = False

    def end(self) -> None:
        """See `Ranks.end`."""
        self.ended = self.steps.ended = self.beside.ended = True


def _ready(number: int, page: tuple[int, ...], ghost: Ghost, weights: str) -> Ready:
    return Ready(
        rank=number,
        stage=0,
        tensor=number,
        pid=0,
        version="simulated",
        device="simulated",
        processor="",
        dtype="uint64",
        backend="ghost",
        max_tokens=ghost.memory.num_pages * ghost.memory.page_size,
        kv_bytes=0,
        page_shape=page,
        page_bytes=8 * ghost.memory.page_size,
        fingerprint=weights,
        shard=weights,
    )


class SimulatedLine:
    """`Line` to ghosts."""

    def __init__(
        self,
        actions: Sequence[RankActions],
        do: Callable[[RankActions, Any, Sequence[Any]], Answer],
        strikes: Strikes,
        report: Report,
    ) -> None:
        self._actions, self._do, self._strikes, self._report = actions, do, strikes, report
        self._codec = make_codec(ToRank | Beside)
        self._told: deque[list[Answer]] = deque()
        self._dead: int | None = None
        self.host: RankHost | None = None
        self.ended = False
        """All ranks have."""
        self.maps: Callable[[], set[Placement]] = set
        """By which ranks compute."""
        self._differ = False
        self._behind: int | None = None
        """A rank that has left a step out, or could not do it. What it would read in those that were launched before
        its answer came is not its own."""

    def tell(self, message: ToRank | Beside) -> None:
        """See `Line.tell`."""
        if self._differ:
            self._report("ranks have applied different steps, and were told to go on")
        if isinstance(message, RunStep) and len(self.maps()) > 1:
            self._report("ranks have their experts by different maps, and were told to compute")
        if (
            self.host is not None
            and isinstance(message, MORTAL)
            and self._strikes(f"host of rank {len(self._actions) - 1} dies")
        ):
            self.host.is_gone = True
        applied = isinstance(message, RunStep | SwitchExperts)
        frames = [bytes(frame) for frame in self._codec.encode(message)] if applied else []
        answers = []
        for number, actions in enumerate(self._actions):
            if isinstance(message, MORTAL) and self._strikes(f"rank {number} dies"):
                self._dead = number
            # Ranks that all leave out the same are alike, and nothing tells.
            if applied and self._behind is None and self._strikes(f"rank {number} skips a step"):
                self._behind = number
            if applied and number == self._behind:
                answers.append(Answer(applied=actions.applied.digest, drawn=actions.applied.drawn))
            else:
                answers.append(self._do(actions, message, frames))
        refused = [number for number, answer in enumerate(answers) if applied and answer.kind]
        if self._behind is None and len(refused) == 1:
            (self._behind,) = refused
        self._told.append(answers)

    def answers(self, limit_s: float) -> Sequence[Answer]:
        """See `Line.answers`."""
        if self.host is not None and self.host.is_gone:
            raise RankLost(len(self._actions) - 1, "was on a host that is gone")
        if self._dead is not None or self.ended:
            raise RankLost(self._dead or 0, "was ended")
        answers = self._told.popleft()
        self._differ |= differ(answers)
        return answers


def simulated_group(
    ghosts: Sequence[Ghost],
    strikes: Strikes = never,
    report: Report = unheard,
    clock: Callable[[], float] = time.monotonic,
    host: RankHost | None = None,
) -> RankGroup:
    """A group of these. Ranks that are started again have none of what they had, but the weights that serve; where the
    host of one is gone none is."""
    started: list[SimulatedRanks] = []
    experts = GroupExperts(EXPERTS, lambda shown, move: FromBytes(b""))

    def start(model: str) -> SimulatedRanks:
        if host is not None and host.is_gone:
            raise HostGone("the host of a rank is gone")
        for ghost in ghosts if started else ():
            for slot in tuple(ghost.memory.salts.adapters):
                ghost.unload_adapter(slot)
            ghost.resume(tuple(ghost.released))
            ghost.reset()
        started.append(SimulatedRanks(ghosts, strikes, report, model, experts.placement, host))
        return started[-1]

    return RankGroup(
        start,
        GHOST,
        step_limit_s=1.0,
        abilities=ghosts[0].abilities,
        show=lambda group: ghosts[0].named_weights(),
        keep=lambda fingerprint: fingerprint,
        experts=experts,
        clock=clock,
        sleep=lambda seconds: None,
    )
