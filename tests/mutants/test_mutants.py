"""Every mutant is caught, quickly, where the table found it; and the code as it is passes the same runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from pawl.memory.memory import Memory
from tests.mutants.everything import MUTANTS
from tests.mutants.hunting import SCHEDULES_OF_EACH, explore_stream, hunt
from tests.mutants.mutant import Edit, EditFails, Group, Mutant, planted
from tests.mutants.table import FOUND, Place

PLACES = msgspec.json.decode(Path(FOUND).read_bytes(), type=dict[str, Place])
MORE = 100
"""Schedules in which to look for a mutant that is not any more where it was found."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    place = PLACES[mutant.name]
    result = hunt(mutant, place.strategy, MORE, first_seed=place.seed)
    assert result.found is not None, mutant.what


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_code_as_it_is_passes_where_the_mutant_was_caught(mutant: Mutant) -> None:
    place = PLACES[mutant.name]
    result = explore_stream(mutant, place.strategy, SCHEDULES_OF_EACH, first_seed=place.seed)
    assert result.found is None, str(result.found)


def test_every_group_of_properties_has_mutants() -> None:
    counts = Counter(mutant.group for mutant in MUTANTS)
    assert len(MUTANTS) >= 24
    assert all(counts[group] >= 2 for group in Group), counts
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_planted_edit_is_taken_out_again() -> None:
    before = Memory.release.__code__
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "freed_before_the_fence")
    with planted(mutant):
        assert Memory.release.__code__ is not before
    assert Memory.release.__code__ is before


def test_an_edit_of_code_that_has_changed_fails() -> None:
    edit = Edit(Memory.release, "this text is not there", "nor this")
    mutant = Mutant("made_up", Group.MEMORY, "none", "", "nothing", (edit,))
    with pytest.raises(EditFails, match="occurs 0 times"), planted(mutant):
        pass
