"""The prefill side says that a request has ended when the last of its pages is on its way, and not before."""

from __future__ import annotations

from pawl.lifecycle.states import Cause
from pawl.loops.select import Role
from pawl.loops.tiers import TierConfig
from pawl.memory.arrays import Int32s
from tests.loops.driver import Driver


class Prefiller(Driver):
    """The loop of a prefill replica; a test is the tiers below it."""

    def __init__(self) -> None:
        super().__init__(tiers=TierConfig(layout="ghost"), role=Role.PREFILL, prefill_chunk=8)
        self.below: list[str] = []

    def save(self, number: int, pages: Int32s, keys: tuple[bytes, ...]) -> None:
        self.below.append(f"{len(keys)} pages")

    def end_of_pages(self, request: int, num_cached: int) -> None:
        self.below.append(f"end of {request}")


def test_the_end_of_a_request_is_said_behind_its_last_pages() -> None:
    prefiller = Prefiller()
    request = prefiller.submit(list(range(1, 17)), 0)
    prefiller.run()
    assert prefiller.cause(request) is Cause.HANDED_OVER
    assert prefiller.below == ["2 pages", "2 pages", f"end of {request}"]
