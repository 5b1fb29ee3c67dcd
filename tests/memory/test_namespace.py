"""Requests with another adapter, salt or weight version never share a page."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple
from urllib.parse import parse_qsl

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.memory.memory import Memory
from pawl.memory.prefix.namespace import namespace_of
from pawl.memory.prefix.radix import RadixCache

PAGE = 4


class Origin(NamedTuple):
    """What decides about sharing."""

    adapter: str = ""
    salt: str = ""
    weights: str = ""


Encode = Callable[[Origin], str]


def encode(origin: Origin) -> str:
    return namespace_of(adapter=origin.adapter, salt=origin.salt, weights=origin.weights)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)


@given(origin=st.builds(Origin, ANY_TEXT, ANY_TEXT, ANY_TEXT))
def test_a_namespace_can_be_read_back_so_no_two_are_equal(origin: Origin) -> None:
    namespace = encode(origin)
    read = dict(parse_qsl(namespace, strict_parsing=bool(namespace), errors="surrogatepass"))
    assert Origin(**read) == origin
    assert namespace.isascii()


def test_nothing_given_is_the_namespace_without_a_name() -> None:
    assert namespace_of() == ""
    assert namespace_of(adapter="a/b", salt="s", weights="2fa1") == "adapter=a%2Fb&salt=s&weights=2fa1"


PARTS = ("", "a", "b", "ab", "a&salt=b", "b&weights=a", "salt=a", "a/b", "/", "%61")


def collisions(encode: Encode) -> list[tuple[Origin, Origin]]:
    """Pairs of different origins that share a namespace, among those made from `PARTS`."""
    first: dict[str, Origin] = {}
    origins = [Origin(*parts) for parts in product(PARTS, repeat=3)]
    return [(first[name], origin) for origin in origins if first.setdefault(name := encode(origin), origin) != origin]


WRONG: dict[str, Encode] = {
    "the adapter is forgotten": lambda origin: encode(origin._replace(adapter="")),
    "the salt is forgotten": lambda origin: encode(origin._replace(salt="")),
    "the weights are forgotten": lambda origin: encode(origin._replace(weights="")),
    "parts are only joined": "".join,
    "parts are joined by what may stand in one": "/".join,
    "parts are not quoted": lambda origin: "&".join(
        f"{name}={value}" for name, value in origin._asdict().items() if value
    ),
}


def test_different_origins_have_different_namespaces() -> None:
    assert collisions(encode) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_namespace_that_two_origins_share_is_found(name: str) -> None:
    assert collisions(WRONG[name])


class Request(NamedTuple):
    """One request: where it comes from, and its prompt in pages."""

    origin: Origin
    words: tuple[int, ...]
    stays: bool
    """Whether it still runs when the next ones come."""


def shared_pages(encode: Encode, requests: list[Request]) -> int:
    """Run the requests, and look at every page each one has. How many pages were had from another request.

    Raises AssertionError when a page was written by a request of another origin.
    """
    memory = Memory(num_pages=12, num_slots=3, max_context=6 * PAGE, cache=RadixCache(PAGE))
    writer: dict[int, Origin] = {}
    running: list[int] = []
    shared = 0
    for origin, words, stays in requests:
        if len(running) == memory.slots.total:
            memory.release(running.pop(0))
        tokens = np.repeat(np.array([*words, 99], np.int32), PAGE)
        transaction = memory.ledger.begin()
        granted = memory.admit(transaction, tokens, encode(origin), use_cache=True)
        assert granted is not None
        grown = memory.extend_slot(transaction, granted.slot, len(tokens))
        while grown is None:
            memory.release(running.pop(0))
            grown = memory.extend_slot(transaction, granted.slot, len(tokens))
        writer.update(dict.fromkeys(grown.tolist(), origin))
        memory.ledger.prepare(transaction)
        memory.ledger.commit(transaction)
        memory.share_prefix(granted.slot, tokens, encode(origin))
        own = memory.page_table.row(granted.slot).tolist()
        assert {writer[page] for page in own} == {origin}
        shared += len(set(own) - set(grown.tolist()))
        if stays:
            running.append(granted.slot)
        else:
            memory.release(granted.slot)
        memory.take_replaced()
        memory.check_all()
    return shared


ORIGINS = st.builds(Origin, st.sampled_from(("", "a")), st.sampled_from(("", "a")), st.sampled_from(("", "a", "b")))
REQUESTS = st.lists(
    st.builds(Request, ORIGINS, st.lists(st.integers(0, 1), max_size=3).map(tuple), st.booleans()), max_size=12
)


@given(requests=REQUESTS)
def test_requests_share_pages_with_their_own_kind_only(requests: list[Request]) -> None:
    shared_pages(encode, requests)


@pytest.mark.parametrize("origin", [Origin(), Origin("a", "b", "c"), Origin(salt="&")])
def test_requests_of_one_kind_do_share(origin: Origin) -> None:
    request = Request(origin, (1, 1), stays=True)
    # Two pages were found; the last one was computed again, and given up for the one that was cached meanwhile.
    assert shared_pages(encode, [request, request]) == 3


@pytest.mark.parametrize("name", WRONG)
def test_pages_that_cross_over_are_found(name: str) -> None:
    pairs = [[Request(origin, (1, 1), stays=False) for origin in pair] for pair in collisions(WRONG[name])]
    for requests in pairs[:10]:
        with pytest.raises(AssertionError):
            shared_pages(WRONG[name], requests)
        assert shared_pages(encode, requests) == 0
