"""What a loop does that fails in any of its functions stays as it is: see tests/loops/failures.py."""

from __future__ import annotations

import sys

import pytest

from pawl.loops.loop import Loop
from pawl.loops.planner import UnifiedPlanner
from tests.loops.failures import digests, kept, run


def test_what_a_loop_does_that_fails_in_any_function_stays_as_it_is() -> None:
    before = kept()
    now = digests(before)
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    assert not changed, f"others are now {changed}: if that is meant, python -m tests.loops.failures"


def test_whatever_is_done_with_a_loop_is_looked_at_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = set()
    monkeypatch.setattr(Loop, "glance", lambda loop: looked.add(sys._getframe(1).f_code.co_qualname))
    for failing in ((), (UnifiedPlanner, "plan", 4)):
        run(*failing)
    assert looked >= {"Loop.executed", "Loop.failed", "lose_runner", "plan_failed", "WeightKeeper.swapped"}
