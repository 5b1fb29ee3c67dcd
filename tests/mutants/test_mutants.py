"""Every mutant is caught, quickly, where the table found it; the code as it is passes there, and decides as it did."""

from __future__ import annotations

from collections import Counter

import pytest

from pawl.memory.memory import Memory
from tests.mutants import golden
from tests.mutants.everything import MUTANTS
from tests.mutants.mutant import Edit, EditFails, Group, Mutant, forget, planted
from tests.mutants.places import FOLDER, place_of

SLOW = frozenset(
    {
        "dead_prefill_replica_is_asked",
        "death_of_a_prefill_replica_is_waited_out",
        "late_answer_is_an_error",
        "link_is_lost_twice",
        "prefix_that_is_there_is_not_skipped",
        "quarantine_has_no_end",
        "sent_pages_stay_under_way",
        "tickets_come_again",
    }
)
"""Mutants of several replicas whose places take a second."""
EACH = [
    pytest.param(mutant, id=mutant.name, marks=[pytest.mark.slow] if mutant.name in SLOW else []) for mutant in MUTANTS
]


@pytest.mark.parametrize("mutant", EACH)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    place = place_of(mutant.name)
    with planted(mutant):
        found = place.explored().found
    forget()
    assert found is not None, mutant.what


@pytest.mark.parametrize("mutant", EACH)
def test_the_code_as_it_is_passes_where_the_mutant_was_caught_and_decides_as_it_did(mutant: Mutant) -> None:
    result, runs = golden.runs_of(place_of(mutant.name))
    assert result.failure is None, str(result.failure)
    changed = golden.changed(golden.kept()[mutant.name], golden.marks(runs))
    assert not changed, f"{changed} are others: if that is meant, python -m tests.mutants.golden"


def test_no_place_is_left_of_a_mutant_that_has_gone() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert {path.stem for path in FOLDER.iterdir()} == set(names)
    assert list(golden.kept()) == names


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
