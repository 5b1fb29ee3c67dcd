"""What judges keep and say of known runs stays as it is: see tests/lifecycle/judges.py."""

from __future__ import annotations

from tests.lifecycle.judges import digests, kept
from tests.lifecycle.test_properties import judged
from tests.loops import failures


def test_what_each_judge_keeps_and_says_of_known_runs_stays_as_it_is() -> None:
    now, before = digests(), kept()
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    assert not changed, f"others are now {changed}: if that is meant, python -m tests.lifecycle.judges"


def test_a_run_that_meets_all_that_a_loop_can_be_asked_for_violates_nothing() -> None:
    assert judged(failures.recorded()).violations == []
