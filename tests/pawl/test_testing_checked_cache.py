"""What is wrong with a policy or a cache is told of the call that did it, not of what follows."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.memory.arrays import NO_PAGES
from pawl.memory.prefix.base import Eviction, Insertion
from pawl.memory.prefix.radix import RadixCache
from pawl.testing.checked_cache import CheckedCache
from pawl.testing.parts import CheckedPolicy, PartFailed
from pawl.testing.plugins import know_all
from pawl.testing.shape import Shape

SIZE = 2


class Sound(RadixCache):
    pass


class Twice(RadixCache):
    def evict(self, count: int) -> Eviction:
        pages, fence = super().evict(count)
        return Eviction(np.repeat(pages, 2), fence)


class Blind(RadixCache):
    """Compares pages without their last token."""

    def match_and_hold(self, tokens: Any, namespace: str, priority: int = 0) -> Any:
        return super().match_and_hold(np.where(np.arange(len(tokens)) == len(tokens) - 1, 2, tokens), namespace)


class BlindWrite(RadixCache):
    def insert(self, tokens: Any, *rest: Any) -> Insertion:
        return super().insert(np.where(np.arange(len(tokens)) == 1, 0, tokens), *rest)


class Greedy(RadixCache):
    """Says that it takes what it has already."""

    def insert(self, tokens: Any, pages: Any, *rest: Any) -> Insertion:
        return super().insert(tokens, pages, *rest)._replace(adopted=pages)


class Locked(RadixCache):
    """Gives back what is held."""

    def evict(self, count: int) -> Eviction:
        return Eviction(next(iter(self._roots[""].children.values())).pages, 9)


class Unlocked(RadixCache):
    def pin(self, node: Any) -> None: ...

    def unpin(self, node: Any, fence: int) -> None: ...


class Keeps(RadixCache):
    def release(self, hold: Any, fence: int, used: bool = True) -> None: ...


class Miser(RadixCache):
    def evict(self, count: int) -> Eviction:
        return Eviction(NO_PAGES, 0)


class RootsFirst(RadixCache):
    """Gives back the beginning of what it keeps."""

    def evict(self, count: int) -> Eviction:
        return super().evict(count)._replace(pages=np.array([0], np.int32))


class Silent(RadixCache):
    def content(self) -> Any:
        return {}


class Short(RadixCache):
    def insert(self, tokens: Any, pages: Any, namespace: str, hold: Any, *rest: Any) -> Insertion:
        done = super().insert(tokens, pages, namespace, hold, *rest)
        return done._replace(hold=super().match_and_hold(tokens[:SIZE], namespace))


def used(cache: Any) -> None:
    """Two requests come, of which the second begins as the first does; both leave, and a page is wanted."""
    first, longer, other = (np.array(tokens, np.int32) for tokens in ((1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (1, 7)))
    hold = cache.match_and_hold(first, "")
    hold = cache.insert(first, np.array([0, 1], np.int32), "", hold, 1).hold
    if isinstance(cache._part, Locked):
        cache.evict(1)
    cache.release(cache.match_and_hold(other, ""), 1)
    again = cache.match_and_hold(longer, "")
    again = cache.insert(longer, np.array([0, 1, 2], np.int32), "", again, 2).hold
    cache.release(hold, 2)
    cache.release(again, 2)
    cache.evict(1)
    cache.reset()


def checked(kind: type[RadixCache]) -> tuple[CheckedCache, list[BaseException]]:
    cache, told = CheckedCache(kind(SIZE), "mine.py:Mine"), list[BaseException]()
    cache.report = told.append
    return cache, told


@pytest.mark.parametrize("eviction", ["lru", "filo"])
def test_a_sound_cache_is_told_nothing(eviction: str) -> None:
    cache, told = CheckedCache(Sound(SIZE, eviction), "mine.py:Mine"), list[BaseException]()
    cache.report = told.append
    used(cache)
    assert told == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Twice, r"\(evict, .*\) gave back page 2 twice: \[2, 2\]"),
        (
            Blind,
            r"\(match_and_hold, .*\) matched page 0 for tokens \[1, 7\] at the beginning: it holds tokens \[1, 2\]",
        ),
        (BlindWrite, r"\(insert, .*\) was offered page 0 with tokens \[1, 2\] .* says that it holds tokens \[1, 0\]"),
        (Greedy, r"\(insert, .*\) adopted page 0, which it has already"),
        (Locked, r"\(evict, .*\) gave back page 0, which 1 hold"),
        (Unlocked, r"\(insert, .*\) left 0 pages held: pages \[0, 1\] are held after it"),
        (Keeps, r"\(release, .*\) left 3 pages held: nobody holds any after it"),
        (Miser, r"\(evict, .*\) gave back 0 pages, and said that 1 of those wanted were evictable"),
        (RootsFirst, r"\(evict, .*\) gave back page 0, and keeps page 1, which goes on from it"),
        (Silent, r"\(insert, .*\) was offered page 0 with tokens \[1, 2\] .* says that it holds nothing"),
        (Short, r"\(insert, .*\) holds pages \[0\] for 4 tokens, and adopted \[0, 1\]"),
    ],
)
def test_what_a_cache_does_wrong_is_told_of_that_call(kind: type[RadixCache], words: str) -> None:
    cache, told = checked(kind)
    with pytest.raises(PartFailed, match=r"your cache mine.py:Mine " + words):
        used(cache)
    assert re.search(words, str(told[0]))


class Ordered:
    """A policy that returns what it is told to."""

    name = "ordered"

    def __init__(self, returned: Any) -> None:
        self._returned = returned

    def order(self, rows: Any, waiting: Any) -> Any:
        return self._returned


def ordered(returned: Any) -> None:
    """Two requests wait, and a third is at work; row 3 is nobody's."""
    table = RequestTable(4, 8)
    for request in (1, 2, 3):
        info = RequestInfo(request, f"r{request}", SamplingParameters(max_new_tokens=1), "", 0.0)
        table.open(info, np.array([1], np.int32), 0, float("inf"))
    CheckedPolicy(Ordered(returned), "mine.py:Mine").order([0, 1], SimpleNamespace(table=table))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned None, which is no sequence"),
        (["0", "1"], "returned '0', which is no row"),
        ([0, 2, 1], "returned row 2, which does not wait: request 3 has it, and is new"),
        ([0, 3, 1], "returned row 3, which does not wait: no request has it, or the one that had it has ended"),
        ((0 for _ in iter(int, 1)), "returned row 0 66 times"),
    ],
)
def test_what_a_policy_returns_that_is_no_order_is_told(returned: Any, words: str) -> None:
    with pytest.raises(PartFailed, match=re.escape(words)):
        ordered(returned)


class Endless(Ordered):
    def order(self, rows: Any, waiting: Any) -> Any:
        while rows:
            pass


def test_a_policy_that_does_not_return_is_ended_and_its_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pawl.testing.parts.CALL_S", 0.05)
    policy = CheckedPolicy(Endless(None), "mine.py:Mine")
    with pytest.raises(PartFailed, match=r"\(order, .*\) does not return\n .*test_testing_checked_cache.py") as raised:
        policy.order([0], SimpleNamespace(table=RequestTable(4, 8)))
    assert "watchdog" not in str(raised.value)


@pytest.mark.parametrize(("part", "given"), [("policy", "nothing"), ("cache", "the page size")])
def test_a_part_that_cannot_be_made_is_refused_in_a_line(part: str, given: str) -> None:
    name = f"{__file__}:Unmakable"
    with pytest.raises(ValueError, match=f"Unmakable cannot be made, given {given}: TypeError: [^\n]*$"):
        know_all(Shape(**{part: name}))


class Unmakable:
    def __init__(self, one: int, two: int) -> None: ...
