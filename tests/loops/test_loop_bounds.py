"""What has a bound may reach it, and not go beyond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.loops import lower_tiers, policy, sessions
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.sessions import OpenSession
from pawl.loops.policy import DepthFirstWeight, LongestPrefixMatch
from pawl.loops.tiers import TierConfig
from pawl.memory.arrays import Int32s
from pawl.memory.snapshot import NoSnapshot
from pawl.memory.tiers.keys import KEY_BYTES
from tests.loops.driver import Driver
from tests.loops.test_fetching import TierDriver


def test_so_many_sessions_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    driver = Driver()
    for number, name in enumerate("abcd", 1):
        driver.intake.deliver(OpenSession(capacity=9, session=name), driver.now, number)
    told = [driver.outcome_of[number].ok for number in (1, 2, 3, 4)]
    assert told == [True, True, False, False]
    assert driver.outcome_of[3].message == "2 sessions are open already; close one first"


class Cached:
    """As many pages of each row as its number says, each of them in one line."""

    def cached_pages(self, row: int) -> Int32s:
        return np.arange(row, dtype=np.int32)


@pytest.mark.parametrize("kind", [LongestPrefixMatch, DepthFirstWeight])
def test_so_many_waiting_requests_are_put_into_an_order_and_more_stay_as_they_came(
    kind: type[LongestPrefixMatch | DepthFirstWeight], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "MAX_MATCHED", 3)
    waiting: Any = Cached()
    assert sorted(kind().order([1, 3, 2], waiting)) == [1, 2, 3]
    assert list(kind().order([1, 3, 2], waiting)) != [1, 3, 2]
    assert list(kind().order([1, 3, 2, 4], waiting)) == [1, 3, 2, 4]


def test_a_checkpoint_has_so_many_pages_below_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_tiers, "MOST_KEYS", 2)
    tiers = TierDriver(tiers=TierConfig(layout="ghost", max_fetch_pages=4)).loop.companion(LowerTiers)
    keys = [bytes([number]) * KEY_BYTES for number in range(3)]
    tiers.kept(keys[:2], 1.0)
    assert b"".join(keys[:2]) in bytes(tiers.snapshot()["index"])  # type: ignore[index, call-overload]
    tiers.kept(keys[2:], 1.0)
    with pytest.raises(NoSnapshot, match="an index of 3 pages below the device"):
        tiers.snapshot()


def test_what_was_overdue_and_is_not_under_way_any_more_is_forgotten_with_the_worker() -> None:
    fetching = TierDriver(tiers=TierConfig(layout="ghost", max_fetch_pages=4)).loop.companion(LowerTiers).fetching
    fetching._overdue.add(99)  # as where a failure has come between its end and this
    fetching.lost(1.0)
    assert fetching.statistics()["overdue"] == 0
