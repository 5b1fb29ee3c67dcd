"""A group of ranks that is one runner: whoever drives it does not know of ranks.

    worker ── launch ──► group ── the same bytes ──► rank 0, rank 1, …      each applies every step once, in order
           ◄─ collect ──       ◄── one answer each ──

Ranks decide nothing. Every answer carries a hash of all that the rank has applied and drawn; where two differ, or one
does not answer in time, or has ended, all ranks are ended and the steps in flight are lost. `reset` starts them again.
Needs no PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.parallel.order import StepOrder, agreed, asked
from pawl.gpu.parallel.pages import join_pages, whole_shape
from pawl.gpu.parallel.ranks import Ranks, StartRanks, StartRefused
from pawl.gpu.parallel.wire import (
    Answer,
    CopyIn,
    CopyOut,
    CountExperts,
    DropAdapter,
    ExpectWeights,
    MoveTags,
    StageWeights,
    SwapWeights,
    SwitchExperts,
    TakeAdapter,
)
from pawl.gpu.step_runner import PARTS_LOST, Abilities, RunnerLost, WeightsRefused
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import Int32s
from pawl.lifecycle.weight_group import TensorSpec
from pawl.lifecycle.weight_source import FromDisk, WeightSource

if TYPE_CHECKING:
    from pawl.gpu.parallel.group_experts import GroupExperts


def nowhere(fingerprint: str) -> str:
    """Of tensors that were sent nobody but the ranks has a copy."""
    return ""


class RankGroup(StepOrder):
    """`StepRunner` of several ranks."""

    def __init__(
        self,
        start: StartRanks,
        model: str,
        *,
        step_limit_s: float,
        abilities: Abilities,
        experts: GroupExperts | None = None,
        show: Callable[[RankGroup], Mapping[str, Any]] | None = None,
        keep: Callable[[str], str] = nowhere,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """As `StepOrder`. `show` makes `named_weights`; None: there are none to see. `keep` says where a start finds
        weights of this fingerprint that ranks were sent."""
        super().__init__(start, model, step_limit_s, clock, sleep)
        self.abilities = abilities
        self.depth = self.ready[-1].stage + 1
        """Each stage computes a step, and has the next one before it is through."""
        self.experts = experts
        self.placing = experts if experts is not None and experts.balances else None
        if experts is not None:
            experts.join(self)
        self._show, self._keep = show, keep
        self._adapters: dict[int, tuple[str, str]] = {}
        """Of each adapter slot that has one: its source and fingerprint."""
        self._staged: tuple[int, WeightSource | None, str] = 0, None, ""
        self._parts: dict[int, int] = {}
        """Ticket of an update whose last part is still to come -> the version whose ranks keep the others."""
        self.fingerprint = self.ready[0].fingerprint

    def restore(self, ranks: Ranks) -> None:
        """See `StepOrder.restore`."""
        found = ranks.ready[0].fingerprint
        if found != self.fingerprint:
            raise StartRefused(f"the weights at {self.model} are {found}, and {self.fingerprint} were served")
        for slot, (source, fingerprint) in self._adapters.items():
            again = agreed(asked(ranks.beside, TakeAdapter(slot, source)))[0].text
            if again != fingerprint:
                raise StartRefused(f"the adapter at {source} is not the one that was served")
        if self.released:
            agreed(asked(ranks.steps, MoveTags(True, tuple(self.released))))
        if self.experts is not None and self.experts.counting:
            agreed(asked(ranks.steps, CountExperts(True)))

    def stepped(self, answers: Sequence[Answer]) -> None:
        """See `StepOrder.stepped`."""
        if self.experts is not None:
            self.experts.add([answer.counts for answer in answers if answer.counts is not None])

    # ---- memory and pages ----

    @property
    def layout(self) -> str:
        """See `StepRunner.layout`: of whole pages. Ranks that add up have other last bits than one, or than more."""
        first = self.ready[0]
        shape, added = "x".join(map(str, self._page_shape)), f"on {len(self.ready)} ranks "
        return f"{shape} {first.dtype} {first.backend} {'' if first.backend == 'native' else added}{self.fingerprint}"

    @property
    def page_bytes(self) -> int:
        """See `StepRunner.page_bytes`: of a whole page."""
        return sum(one.page_bytes for one in self.ready)

    @property
    def _page_shape(self) -> tuple[int, ...]:
        return whole_shape(self._page_shapes, self.depth)

    @property
    def _page_shapes(self) -> list[tuple[int, ...]]:
        return [one.page_shape for one in self.ready]

    def read_pages(self, pages: Int32s) -> NDArray[np.uint8]:
        """See `StepRunner.read_pages`."""
        parts = [answer.data for answer in self.ask(CopyOut(pages))]
        return join_pages([part for part in parts if part is not None], self._page_shapes, self.depth)

    def write_pages(self, pages: Int32s, blocks: NDArray[np.uint8]) -> None:
        """See `StepRunner.write_pages`."""
        self.ask(CopyIn(pages, blocks))

    def release(self, tags: Collection[MemoryTag]) -> None:
        """See `StepRunner.release`."""
        self._move(MoveTags(True, tuple(tags)))

    def resume(self, tags: Collection[MemoryTag]) -> None:
        """See `StepRunner.resume`."""
        self._move(MoveTags(False, tuple(tags)))

    def _move(self, move: MoveTags) -> None:
        try:
            self.ask(move)
        except RunnerLost:
            # The next step finds them lost, and those that are started for it have what is not released.
            self.released = self.released.union(move.tags) if move.release else self.released.difference(move.tags)

    # ---- weights and adapters: staged on all ranks or on none ----

    def stage(self, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        """See `StepRunner.stage`."""
        version, is_first = self._parts.get(ticket, self.version), ticket not in self._parts
        self._parts, self._staged = {}, (0, None, "")
        try:
            answers = self.ask_beside(StageWeights(ticket, cast(Any, source), last))
        except RunnerLost as error:
            if is_first:
                raise
            raise WeightsRefused(PARTS_LOST) from error
        fingerprint = _one([answer.text for answer in answers])
        if self.version != version:
            raise WeightsRefused(PARTS_LOST)
        if last:
            self._staged = ticket, source, fingerprint
        else:
            self._parts[ticket] = version
        return fingerprint

    def expect(self, specs: Sequence[TensorSpec]) -> None:
        """See `StepRunner.expect`."""
        try:
            self.ask_beside(ExpectWeights(tuple(specs)))
        except RunnerLost as error:
            raise WeightsRefused(str(error)) from error

    def swap(self, ticket: int) -> None:
        """See `StepRunner.swap`."""
        (staged, source, fingerprint), self._staged = self._staged, (0, None, "")
        try:
            self.ask(SwapWeights(ticket))
        except RunnerLost as error:
            raise WeightsRefused(str(error)) from error
        if staged == ticket:
            self.model = source.path if isinstance(source, FromDisk) else self._keep(fingerprint)
            self.fingerprint = fingerprint
        self.version += 1

    def switch_experts(self, ticket: int) -> None:
        """Ranks compute by the map that is staged under this ticket; no step is in flight. Raises WeightsRefused, with
        nothing changed, also while weights are staged or read: what is exchanged then has its experts elsewhere."""
        if self._staged[0] or self._parts or not self._beside.acquire(blocking=False):
            raise WeightsRefused("an update of the weights is under way")
        try:
            self.ask(SwitchExperts(ticket))
        except RunnerLost as error:
            raise WeightsRefused(str(error)) from error
        finally:
            self._beside.release()

    def load_adapter(self, slot: int, source: str) -> str:
        """See `StepRunner.load_adapter`."""
        self._adapters.pop(slot, None)
        fingerprint = _one([answer.text for answer in self.ask_beside(TakeAdapter(slot, source))])
        self._adapters[slot] = source, fingerprint
        return fingerprint

    def unload_adapter(self, slot: int) -> None:
        """See `StepRunner.unload_adapter`."""
        self._adapters.pop(slot, None)
        with suppress(RunnerLost):  # it is dropped with them
            self.ask_beside(DropAdapter(slot))

    def named_weights(self) -> Mapping[str, Any]:
        """See `StepRunner.named_weights`; they are asked of the ranks, and cannot be had when they were exchanged."""
        return {} if self._show is None else self._show(self)


def _one(told: Sequence[str]) -> str:
    """What all say. Raises WeightsRefused where they do not: what each of them has read is another thing."""
    if len(set(told)) > 1:
        raise WeightsRefused(f"ranks have read different things: {', '.join(told)}")
    return told[0]
