"""Ranks of the compiled kernels as threads of one process: what each has, and all of them as one backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.adapters.low_rank import Adapter
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.small import random_weights
from pawl.gpu.native.ranks import Joined, Segment
from pawl.gpu.parallel.communicator import ALONE
from pawl.gpu.parallel.placement import Placed, Placement
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Shard
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.weights.blocks import Weight, numbers_of
from pawl.lifecycle.step import Int32s
from tests.gpu.driving import scrambled_table
from tests.gpu.native_models import Native

DEADLINE_S = 60.0
"""Of ranks that all live: none of these tests waits for it."""
_lives = itertools.count()


@dataclass(frozen=True)
class Shared:
    """An adapter as each rank has packed it."""

    packed: tuple[Any, ...]
    num_bytes: int = 0


class Group:
    """All ranks, each computing every step in a thread of its own. As a backend it answers with what all answered."""

    name = "native"

    def __init__(self, backends: Sequence[Native], config: ModelConfig) -> None:
        self.backends, self.config = backends, config
        self._threads = ThreadPoolExecutor(len(backends))

    def together(self, call: Callable[[Native, ForwardInputs], Tensor], inputs: ForwardInputs) -> list[Tensor]:
        """What each rank says of one step."""
        return list(self._threads.map(call, self.backends, self._each(inputs)))

    def _each(self, inputs: ForwardInputs) -> list[ForwardInputs]:
        adapters: Sequence[Any] = inputs.adapters or ()
        found = []
        for rank in range(len(self.backends)):
            own = [None if shared is None else shared.packed[rank] for shared in adapters]
            # One rank's counts are those of all: the others count for nobody.
            counts = inputs.expert_counts
            if rank and counts is not None:
                counts = torch.zeros_like(counts)
            found.append(replace(inputs, adapters=own or None, expert_counts=counts))
        return found

    def _same(self, call: Callable[[Native, ForwardInputs], Tensor], inputs: ForwardInputs) -> Tensor:
        first, *others = self.together(call, inputs)
        assert all(torch.equal(first, other) for other in others), "ranks differ"
        return first

    def forward(self, inputs: ForwardInputs) -> Tensor:
        """See `Backend.forward`."""
        return self._same(Native.forward, inputs)

    def forward_greedy(self, inputs: ForwardInputs) -> Tensor:
        """See `GreedyBackend.forward_greedy`."""
        return self._same(Native.forward_greedy, inputs)

    def hidden(self, inputs: ForwardInputs) -> Tensor:
        """See `Backend.hidden`."""
        return self._same(Native.hidden, inputs)

    def named_weights(self) -> Mapping[str, Tensor]:
        """Those of the first rank."""
        return self.backends[0].named_weights()

    def pack_adapter(self, adapter: Adapter) -> Shared:
        """The adapter for all of them."""
        return Shared(tuple(rank.pack_adapter(shard_of(rank).adapter(adapter)) for rank in self.backends))


def shard_of(backend: Native) -> Shard:
    """What it has."""
    assert backend.rank is not None
    return backend.rank.shard


def joined_of(backend: Native) -> Joined:
    """Where it meets the others."""
    assert backend.rank is not None
    assert backend.rank.joined is not None
    return backend.rank.joined


@dataclass(frozen=True)
class MadeRanks:
    """As `native_models.Made`, with one store for each rank."""

    backend: Group
    stores: tuple[KvStore, ...]
    table: Int32s


def scattered(config: ModelConfig, parts: int, seed: int) -> Placement:
    """A random map: every expert in one part or in several, and every part with some of each layer."""
    random, placed = np.random.default_rng(seed), list[Placed]()
    for layer in range(config.num_layers):
        experts = config.experts_of(layer)
        owners = random.random((0 if experts is None else experts.count, parts)) < 0.4
        for expert, each in enumerate(owners):
            each[expert % parts] |= expert < parts or not each.any()
        placed.append(tuple(tuple(np.flatnonzero(each).tolist()) for each in owners))
    return tuple(placed)


def move_experts(made: MadeRanks, weights: Mapping[str, Weight], placement: Placement) -> None:
    """All ranks lay out what they get, and switch."""
    for backend in made.backend.backends:
        shard = shard_of(backend)
        new = replace(shard, placement=placement)
        parts = {name: new.cut(name, numbers_of(weights[name])) for name in new.cuts.keys() - shard.cuts.keys()}
        backend.stage_experts({name: part for name, part in parts.items() if part is not None}, anew=True)
    for backend in made.backend.backends:
        backend.switch_experts(replace(shard_of(backend), placement=placement))


def shards(config: ModelConfig, ranks: int, expert: int = 1, placement: Placement = ()) -> list[Shard]:
    """Those of all ranks."""
    topology = Topology(tensor=ranks, expert=expert)
    return [Shard(config, topology, number, placement, gathers=True) for number in range(ranks)]


def make_ranks(
    config: ModelConfig,
    dtype: torch.dtype,
    ranks: int,
    *,
    expert: int = 1,
    placement: Placement = (),
    threads: int = 1,
    num_slots: int = 4,
    context: int = 160,
    page_size: int = 16,
    weights: Mapping[str, Weight] | None = None,
    num_window_pages: int | None = None,
    timeout_s: float = DEADLINE_S,
) -> MadeRanks:
    """As `native_models.make`, shared out."""
    pages = -(-context // page_size)
    segment = Segment(ranks, next(_lives))
    whole: Mapping[str, Weight] = random_weights(config, dtype) if weights is None else weights
    stores, backends = [], []
    for shard in shards(config, ranks, expert, placement):
        parts: dict[str, Weight | None] = {name: shard.cut(name, weight) for name, weight in whole.items()}
        own = {name: part for name, part in parts.items() if part is not None}
        kv = KvStore(
            shard.config,
            num_pages=num_slots * pages,
            page_size=page_size,
            dtype=dtype,
            device="cpu",
            num_window_pages=num_window_pages,
        )
        joined = Joined(segment.address, shard.tensor, timeout_s)
        backends.append(Native(shard.config, own, kv, threads=threads, rank=Rank(shard, ALONE, joined)))
        stores.append(kv)
    segment.close()
    return MadeRanks(Group(backends, config), tuple(stores), scrambled_table(num_slots, pages, seed=3))
