"""The order of admission of a simulated engine, beside what its policy is stated to prefer, and where it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.states import State
from pawl.loops.admission import MAX_PASSED_OVER, Admission
from pawl.loops.batch import BatchBuilder
from pawl.loops.loop import Loop
from pawl.loops.policy import MAX_MATCHED, DepthFirstWeight, LongestPrefixMatch, Waiting
from pawl.memory.arrays import Int32s
from pawl.testing.parts import Checked

Path = tuple[int, ...]
"""Pages that the cache has for a request."""


class PolicyAsStated:
    """A policy is offered those that wait by arrival. `lpm` prefers those of whose prompts the cache has most pages;
    `dfs-weight` goes through the tree of their pages, and of two subtrees prefers the one in which more of them are.
    Equal ones go by arrival."""

    name: ClassVar[str] = "policy_as_stated"

    def __init__(self, waiting: Waiting) -> None:
        self.table: RequestTable = waiting.table
        self._waiting = waiting
        self._paths: dict[int, Path] = {}

    def cached_pages(self, row: int) -> Int32s:
        """What a policy is told of a row is remembered."""
        pages = self._waiting.cached_pages(row)
        self._paths[row] = tuple(pages.tolist())
        return pages

    def wrong(self, policy: str, offered: Sequence[int], ordered: Sequence[int]) -> Iterator[str]:
        """What is wrong with this order of those who were offered, in words."""
        arrival = {row: at for at, row in enumerate(self.table.row_of.values())}
        if any(arrival[one] > arrival[other] for one, other in pairwise(offered)):
            yield f"rows {list(offered)} are offered to {policy}, which came in another order"
        if policy not in PREFERS or len(offered) > MAX_MATCHED:
            return
        paths = [self._paths.get(row, ()) for row in ordered]
        weights = Counter(page for path in paths for page in path)
        for (one, first), (other, second) in pairwise(zip(ordered, paths, strict=True)):
            better = PREFERS[policy](first, second, weights)
            if better is False or (better is None and arrival[one] > arrival[other]):
                yield f"{policy} puts row {one}, of which pages {first} are cached, before row {other} with {second}"


def _longer(first: Path, second: Path, weights: Counter[int]) -> bool | None:
    return None if len(first) == len(second) else len(first) > len(second)


def _heavier(first: Path, second: Path, weights: Counter[int]) -> bool | None:
    """Whoever goes no further comes before those that go on from there."""
    for one, other in zip(first, second, strict=False):
        if one != other:
            return one < other if weights[one] == weights[other] else weights[one] > weights[other]
    return None if len(first) == len(second) else len(first) < len(second)


PREFERS: dict[str, Callable[[Path, Path, Counter[int]], bool | None]] = {
    LongestPrefixMatch.name: _longer,
    DepthFirstWeight.name: _heavier,
}
"""Whether the first is rightly before the second, given in how many paths each page is; None: they are equal."""


def watch_policy(loop: Loop, report: Callable[[str, str, int | None], None]) -> None:
    """From here on the orders of this loop's policy are judged, unless it is the user's own."""
    policy = getattr(getattr(loop.planner, "admission", None), "policy", None)
    if policy is None or isinstance(policy, Checked):
        return
    order = policy.order

    def watched(rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        seen = PolicyAsStated(waiting)
        ordered: Sequence[int] = order(rows, seen)
        wrong = next(seen.wrong(policy.name, rows, ordered), None) if len(rows) > 1 else None
        if wrong is not None:
            report(PolicyAsStated.name, wrong, None)
        return ordered

    policy.order = watched


def watch_admission(loop: Loop, report: Callable[[str, str, int | None], None]) -> None:
    """From here on each admission of this loop must go on as long as there is room for prompts and for requests, until
    one does not fit, as many as may be are passed over, or all were tried."""
    admission: Any = getattr(loop.planner, "admission", None)
    if type(admission) is not Admission:
        return
    offered, outcomes = list[int](), list[int | None]()
    admit, candidates, attempt = admission.admit, admission._candidates, admission._try

    def watched_candidates() -> Iterator[int]:
        for row in candidates():
            offered.append(row)
            yield row

    def watched_attempt(*arguments: Any) -> int | None:
        outcomes.append(attempt(*arguments))
        return outcomes[-1]

    def watched(builder: BatchBuilder, budget: int, *before: Any) -> int:
        offered.clear()
        outcomes.clear()
        left: int = admit(builder, budget, *before)
        queues, limits = loop.queues, loop.limits.now
        full = not loop.memory.slots.free or queues.num_running >= limits.max_running
        if left > 0 and not full and None not in outcomes and outcomes.count(0) < MAX_PASSED_OVER:
            waiting = (*queues.retracted, *queues.waiting)
            for row in (row for row in waiting if row not in offered and loop.table.state[row] == State.QUEUED):
                text = f"nobody tries to admit it, with room for {left} tokens of prompts, behind {len(offered)} others"
                report("work_conserving", text, loop.table.info(row).request)
        return left

    vars(admission).update(admit=watched, _candidates=watched_candidates, _try=watched_attempt)
