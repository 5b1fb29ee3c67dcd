"""What a loop does that fails in any of its functions stays as it is: see tests/loops/failures.py."""

from __future__ import annotations

from tests.loops.failures import digests, kept


def test_what_a_loop_does_that_fails_in_any_function_stays_as_it_is() -> None:
    before = kept()
    now = digests(before)
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    assert not changed, f"others are now {changed}: if that is meant, python -m tests.loops.failures"
