"""What strategies make of known scenarios stays as it is: see tests/actors/explorations.py."""

from __future__ import annotations

import pytest

from tests.actors.explorations import digests, kept, scenarios


@pytest.mark.parametrize("name", scenarios())
def test_what_each_strategy_makes_of_a_known_scenario_stays_as_it_is(name: str) -> None:
    now, before = digests(name), kept()
    changed = [each for each, digest in now.items() if before.get(each) != digest]
    assert not changed, f"others are now {changed}: if that is meant, python -m tests.actors.explorations"
