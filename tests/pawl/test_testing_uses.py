"""Who uses cached pages is judged beside what the cache is told."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.testing.uses import Uses

PAGES = [3, 5]


def admitted(uses: Uses) -> Any:
    hold: Any = object()
    uses.admitting = True
    uses.matched(hold)
    uses.admitting = False
    return hold


@pytest.mark.parametrize("used", [True, False])
def test_who_was_admitted_uses_what_it_found_and_what_it_has_cached_since(used: bool) -> None:
    uses, later = Uses(), object()
    uses.inserted(later, admitted(uses))  # type: ignore[arg-type]
    wrong = uses.released(later, PAGES, used=used)  # type: ignore[arg-type]
    assert wrong == (
        "" if used else "a request goes that was admitted with pages [3, 5], and does not count as one that used them"
    )


@pytest.mark.parametrize("used", [True, False])
def test_an_admission_that_is_undone_uses_nothing(used: bool) -> None:
    uses = Uses()
    hold = admitted(uses)
    uses.undoing = True
    wrong = uses.released(hold, PAGES, used=used)
    assert wrong == ("an admission that is undone counts as a use of pages [3, 5]" if used else "")


@pytest.mark.parametrize("used", [True, False])
def test_who_looks_uses_nothing(used: bool) -> None:
    uses = Uses()
    hold: Any = object()
    uses.matched(hold)
    wrong = uses.released(hold, PAGES, used=used)
    assert wrong == ("somebody who was not admitted with them counts as a use of pages [3, 5]" if used else "")
