"""Ranks of first admissions: an admission that is undone gives none, one that came to stay keeps its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pawl.lifecycle.properties.ranks import Ranks


def history(*admitted: int, restored: tuple[int, ...] = ()) -> Any:
    """That of a record about a step: whom it admitted, and whose admission it undid."""
    step = SimpleNamespace(admitted=[SimpleNamespace(request=request) for request in admitted])
    return SimpleNamespace(step=step, restored=[SimpleNamespace(request=request) for request in restored])


def test_an_admission_that_is_undone_gives_no_rank() -> None:
    ranks = Ranks()
    ranks.admitted(1)
    ranks.admitted(2)
    ranks.rolled_back(history(1, 2, restored=(1, 2)))
    ranks.admitted(2)
    ranks.admitted(1)
    assert sorted(ranks.of, key=ranks.of.__getitem__) == [2, 1]


def test_who_was_retracted_before_its_step_was_undone_keeps_its_rank_for_good() -> None:
    ranks = Ranks()
    ranks.admitted(1)
    ranks.rolled_back(history(1))  # it waited again, so nothing of it was undone
    ranks.admitted(2)
    ranks.committed(history(2))
    ranks.admitted(1)
    ranks.rolled_back(history(1, restored=(1,)))
    assert sorted(ranks.of, key=ranks.of.__getitem__) == [1, 2]


def test_who_has_ended_has_no_rank_and_is_no_part_of_what_is_undone() -> None:
    ranks = Ranks()
    ranks.admitted(1)
    assert ranks.left(1)
    assert not ranks.left(2)
    ranks.rolled_back(history(1))
    assert ranks.of == {}
