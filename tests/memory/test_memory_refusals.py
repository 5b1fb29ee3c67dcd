"""What makes no sense is refused where it is asked for; what memory finds wrong with itself is said in its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from pawl.memory.prefix.chunk import ChunkCache
from pawl.memory.prefix.select import KINDS, Wish, make_cache
from pawl.memory.snapshot import NoSnapshot, snapshot_of
from pawl.memory.tiers.host import HostPool
from pawl.memory.tiers.keys import KEY_BYTES, split_keys
from pawl.memory.violation import MemoryViolation
from tests.memory.test_checks import healthy


def _of_the_users_own() -> None:
    memory, _ = healthy()
    memory.cache = object()  # type: ignore[assignment]
    snapshot_of(memory)


def _released_too_often() -> None:
    cache = ChunkCache(4)
    cache._num_holds = -1
    cache.check_all()


def _drop(child: bool) -> None:
    _, cache = healthy()
    first = next(iter(next(iter(cache._roots.values())).children.values()))
    if not child:
        first.children.clear()
        first.holds = 1
    cache._drop(first)


def _beside_windows() -> None:
    with pytest.MonkeyPatch.context() as brought:
        brought.setitem(KINDS, "mine", KINDS["none"]._replace(windows=False))
        make_cache("mine", 4, windows=cast(Any, object()))


def _no_ring(neighbour: str) -> None:
    _, cache = healthy()
    order: Any = cache._order
    node = next(iter(order))
    setattr(node, neighbour, next(iter(cache._roots.values())))
    cache.check_all()


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "less than no pages": (lambda: HostPool(-1, 16), ValueError, "a pool of -1 pages of 16 bytes"),
    "pages of nothing": (lambda: HostPool(1, 0), ValueError, "a pool of 1 pages of 0 bytes"),
    "half a key": (lambda: split_keys(bytes(KEY_BYTES + 1)), ValueError, "are no keys of"),
    "a sliding cache alone": (
        lambda: KINDS["sliding"].make(Wish(4, "lru", None)),
        ValueError,
        "a sliding cache needs window pages",
    ),
    "a cache of the user's own beside windows": (
        _beside_windows,
        ValueError,
        "the cache 'mine' cannot stand beside a pool of window pages",
    ),
    "a cache of the user's own": (_of_the_users_own, NoSnapshot, "the cache object is the user's own"),
    "a hold of no pages twice": (_released_too_often, MemoryViolation, "a hold is released once"),
    "a node with children": (lambda: _drop(True), MemoryViolation, "only an unheld leaf is evicted"),
    "a node that is held": (lambda: _drop(False), MemoryViolation, "only an unheld leaf is evicted"),
    "an order with an end before it": (lambda: _no_ring("older"), MemoryViolation, "the order of leaving is a ring"),
    "an order with an end behind it": (lambda: _no_ring("newer"), MemoryViolation, "the order of leaving is a ring"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_makes_no_sense_is_refused(what: str) -> None:
    make, error, words = REFUSALS[what]
    with pytest.raises(error, match=words):
        make()


def test_what_just_makes_sense_is_not_refused() -> None:
    assert HostPool(0, 1).capacity == 0
    assert split_keys(bytes(2 * KEY_BYTES)) == [bytes(KEY_BYTES)] * 2
    assert split_keys(b"") == []
    ChunkCache(4).check_all()
