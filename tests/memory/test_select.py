"""The choice between caches, and the page that tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memory.prefix.order import POLICIES, RankedOrder, RecencyOrder
from memory.prefix.radix import RadixCache
from memory.prefix.select import CACHES, KINDS, make_cache, table

PAGE = Path(__file__).parents[2] / "docs" / "caches.md"


@pytest.mark.parametrize("eviction", POLICIES)
def test_a_radix_cache_evicts_by_the_policy_it_is_given(eviction: str) -> None:
    cache = make_cache("radix", 16, eviction=eviction)
    assert isinstance(cache, RadixCache)
    assert isinstance(cache._order, RecencyOrder if eviction == "lru" else RankedOrder)


def test_options_that_mean_nothing_together_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown eviction policy 'lifo'"):
        make_cache("radix", 16, eviction="lifo")
    with pytest.raises(ValueError, match="the cache 'none' keeps nothing that 'fifo' could put into an order"):
        make_cache("none", 16, eviction="fifo")


def test_the_page_about_caches_has_the_table_of_the_code_and_every_policy() -> None:
    text = PAGE.read_text()
    assert "\n".join(table()) in text
    assert set(CACHES) <= set(KINDS)
    for name in CACHES:
        assert f"`--cache {name}`" in text
    section = text.partition("`--eviction`")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"`{policy}`" for policy in POLICIES]
