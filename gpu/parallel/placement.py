"""Which parts of the ranks have which experts, and a better map for what tokens have used. Needs no PyTorch.

A map is good where the busiest part of a layer has little to do: all others wait for it. An expert that many tokens use
may be in several parts, which share its tokens out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.models.config import ModelConfig
from pawl.gpu.parallel.topology import shared_out

Placed: TypeAlias = tuple[tuple[int, ...], ...]
"""For each expert of a layer: the parts that have it, rising. Empty for a layer without experts."""
Placement: TypeAlias = tuple[Placed, ...]
"""For each layer."""
WORTH = 0.95
"""A layer's experts move where the busiest part then has at most this share of what it has now: a move costs reading
and laying out weights."""


class Move(NamedTuple):
    """An expert that some part has, and others get as well."""

    layer: int
    expert: int


def even_placement(config: ModelConfig, parts: int) -> Placement:
    """Every layer's experts in order, as many for each part as go."""
    found = []
    for layer in range(config.num_layers):
        experts = config.experts_of(layer)
        shares = () if experts is None else shared_out(experts.count, parts)
        found.append(tuple((part,) for part, share in enumerate(shares) for _ in share))
    return tuple(found)


def rebalanced(now: Placement, counts: NDArray[np.int64], parts: int, redundant: int) -> Placement:
    """A map for tokens that use experts as `counts`, [layers, experts], says: in each layer up to `redundant` copies
    more than there are experts, and no part with more experts than another but for one. Layers in which that helps
    little stay as they are."""
    return tuple(
        _rebalanced(placed, used, parts, redundant) if placed and used.sum() else placed
        for placed, used in zip(now, counts, strict=True)
    )


def moves(now: Placement, new: Placement) -> list[Move]:
    """The experts that some part lacks now and has in a new map."""
    return [
        Move(layer, expert)
        for layer, pairs in enumerate(zip(now, new, strict=True))
        for expert, (before, after) in enumerate(zip(*pairs, strict=True))
        if set(after) - set(before)
    ]


def busiest(placed: Placed, used: NDArray[np.int64], parts: int) -> float:
    """Tokens of the part of a layer that has the most, where those of an expert are shared out evenly."""
    return float(_loads(placed, used, parts).max())


def _loads(placed: Placed, used: NDArray[np.int64], parts: int) -> NDArray[np.float64]:
    loads = np.zeros(parts)
    for owners, tokens in zip(placed, used, strict=True):
        loads[list(owners)] += tokens / len(owners)
    return loads


def _rebalanced(now: Placed, used: NDArray[np.int64], parts: int, redundant: int) -> Placed:
    new = _like(now, _packed(now, used, _copies(used, parts, redundant), parts), parts)
    return new if busiest(new, used, parts) <= WORTH * busiest(now, used, parts) else now


def _copies(used: NDArray[np.int64], parts: int, redundant: int) -> NDArray[np.int64]:
    """Of each expert: one, and one more wherever a copy has the most tokens, and more than experts have on average."""
    copies = np.ones(len(used), np.int64)
    for _ in range(redundant):
        each = np.where(copies < parts, used / copies, -1.0)
        if each.max() <= used.mean():
            break
        copies[each.argmax()] += 1
    return copies


def _packed(now: Placed, used: NDArray[np.int64], copies: NDArray[np.int64], parts: int) -> Placed:
    """Largest first, each to the parts with the least to do that have room, of equals those that have it now; first
    what has several copies, each in a part of its own."""
    room = np.array([len(share) for share in shared_out(int(copies.sum()), parts)])
    loads = np.zeros(parts)
    found: list[tuple[int, ...]] = [()] * len(used)
    for expert in sorted(range(len(used)), key=lambda one: (copies[one] == 1, -used[one] / copies[one])):
        free = [part for part in range(parts) if room[part] > 0]
        free.sort(key=lambda part: (loads[part], part not in now[expert]))
        owners = sorted(free[: copies[expert]])
        loads[owners] += used[expert] / len(owners)
        room[owners] -= 1
        found[expert] = tuple(owners)
    return tuple(found)


def _like(now: Placed, new: Placed, parts: int) -> Placed:
    """The new map with its parts numbered so that most experts stay where they are."""
    before, after = _held(now, parts), _held(new, parts)
    pairs = sorted(
        ((-len(before[old] & after[part]), part, old) for part in range(parts) for old in range(parts)),
    )
    number: dict[int, int] = {}
    for _, part, old in pairs:
        if part not in number and old not in number.values():
            number[part] = old
    return tuple(tuple(sorted(number[part] for part in owners)) for owners in new)


def _held(placed: Placed, parts: int) -> Sequence[set[int]]:
    """The experts of each part."""
    return [set(_of(placed, part)) for part in range(parts)]


def _of(placed: Placed, part: int) -> Iterator[int]:
    return (expert for expert, owners in enumerate(placed) if part in owners)
