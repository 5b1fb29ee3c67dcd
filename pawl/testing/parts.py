"""A user's own policy and cache, held to what they must keep at every call: what is wrong with a part is told as that,
before anything that follows from it."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pawl.lifecycle.requests import RequestTable
from pawl.loops.loop import Loop
from pawl.loops.policy import Policy, Waiting
from pawl.memory.arrays import NO_PAGES, Int32s
from pawl.memory.prefix.base import Eviction, Hold, Insertion
from pawl.memory.violation import MemoryViolation

USUAL_AT_ONCE = 1
"""Later requests of equal priority that one order may put before an earlier one, where the policy states nothing."""
Report: TypeAlias = Callable[[BaseException], None]


class PartFailed(Exception):
    """A part of the user's own did what no such part may, or raised."""

    first = True
    """Whatever else goes wrong in the same step follows from it."""

    def __init__(self, property: str, part: str, what: str) -> None:
        super().__init__(f"your {property} {part} {what}")
        self.property = property


def own_parts(loop: Loop) -> list[Checked]:
    """The user's own among the parts of a loop."""
    admission = getattr(loop.planner, "admission", None)
    return [part for part in (getattr(admission, "policy", None), loop.memory.cache) if isinstance(part, Checked)]


class Checked:
    """What the checks of both kinds of parts have in common."""

    kind = "part"

    def __init__(self, part: Any, name: str) -> None:
        self._part = part
        self._name = name
        self.report: Report = lambda error: None
        """Is told what the part did wrong, when it does."""

    def _fail(self, verb: str, what: str) -> PartFailed:
        """What to raise; it is reported at once, as whoever calls may survive an exception."""
        failed = PartFailed(self.kind, f"{self._name} ({_place(self._part, verb)})", what)
        self.report(failed)
        return failed

    @contextmanager
    def _calling(self, verb: str) -> Iterator[None]:
        try:
            yield
        except MemoryViolation:
            raise
        except Exception as error:
            told = "".join(traceback.format_exception(type(error), error, _beyond_us(error))).rstrip()
            raise self._fail(verb, f"raised {type(error).__name__}\n{told}") from error


def _place(part: Any, verb: str) -> str:
    """File and line of a method."""
    code = getattr(getattr(type(part), verb), "__code__", None)
    return verb if code is None else f"{verb}, {Path(code.co_filename).name}:{code.co_firstlineno}"


def _beyond_us(error: BaseException) -> Any:
    """The traceback from where the user's code begins."""
    found = error.__traceback__
    while found is not None and found.tb_next is not None and found.tb_frame.f_code.co_filename == __file__:
        found = found.tb_next
    return found


class CheckedPolicy(Checked):
    """A policy that must give a permutation of what it gets, and writes nothing."""

    kind = "policy"

    def __init__(self, policy: Policy, name: str) -> None:
        super().__init__(policy, name)
        self.name = getattr(policy, "name", name)
        if hasattr(policy, "max_overtaken"):
            self.max_overtaken = policy.max_overtaken

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        given, before = list(rows), _written(waiting)
        with self._calling("order"):
            found = list(self._part.order(rows, waiting))
        after = _written(waiting)
        changed = [(where, name) for (where, name), value in after.items() if value != before[where, name]]
        if changed:
            names = ", ".join(name for where, name in changed if where == changed[0][0])
            raise self._fail("order", f"wrote to {changed[0][0]}: {names}")
        what = _no_permutation(given, found) or self._unfair(given, found, waiting.table)
        if what:
            raise self._fail("order", f"{what}: it was given rows {given} and returned {found}")
        return found

    def _unfair(self, given: Sequence[int], found: Sequence[int], table: RequestTable) -> str:
        """Whom it lets pass more than it states. Rows are given in the order of their arrival."""
        limit = getattr(self._part, "max_overtaken", USUAL_AT_ONCE)
        if limit is None:
            return ""
        arrival = {row: number for number, row in enumerate(given)}
        for place, row in enumerate(found):
            ahead = [other for other in found[:place] if arrival[other] > arrival[row]]
            ahead = [other for other in ahead if table.priority[other] == table.priority[row]]
            if len(ahead) > limit:
                who = " and ".join(map(str, ahead))
                return (
                    f"put rows {who} before row {row}, which came earlier ({limit} may be; it can state max_overtaken)"
                )
        return ""


def _written(waiting: Waiting) -> dict[tuple[str, str], Any]:
    """What a policy sees and leaves as it is, by where it stands and its name."""
    table = waiting.table
    found: dict[tuple[str, str], Any] = {}
    for where, thing in (("the table of requests", table), ("the queues", waiting)):
        for name, value in vars(thing).items():
            if isinstance(value, np.ndarray):
                found[where, name] = value.tobytes()
            elif isinstance(value, list | dict):
                found[where, name] = list(value)
    for row in table.live_rows().tolist():
        info = table.info(row)
        for name in info.__struct_fields__:
            found[f"what is known of request {info.request}", name] = getattr(info, name)
    return found


def _no_permutation(given: Sequence[int], found: Sequence[int]) -> str:
    """What is wrong with an order, if anything is."""
    counts = Counter(found)
    for row in found:
        if row not in given:
            return f"returned row {row}, which does not wait"
        if counts[row] > 1:
            return f"returned row {row} {'twice' if counts[row] == 2 else f'{counts[row]} times'}"
    left_out = [row for row in given if row not in counts]
    return f"left out row {left_out[0]}" if left_out else ""


class CheckedCache(Checked):
    """A cache that must account for every page that it takes, and offer no others."""

    kind = "cache"

    def __init__(self, cache: Any, name: str) -> None:
        super().__init__(cache, name)
        self._pages: set[int] = set()
        """Taken, and not given back."""
        self._fences: dict[int, int] = {}
        """Of these: the newest step that may touch a page, as far as those who let go of it have said."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    @property
    def events(self) -> Any:
        return self._part.events

    @events.setter
    def events(self, events: Any) -> None:
        self._part.events = events

    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> Hold:
        with self._calling("match_and_hold"):
            hold: Hold = self._part.match_and_hold(tokens, namespace, priority)
        pages = hold.pages.tolist()
        if hold.num_tokens > len(tokens) or hold.num_tokens != len(pages) * self._part.page_size:
            what = f"matched {hold.num_tokens} tokens with {len(pages)} pages, and was asked for {len(tokens)}"
            raise self._fail("match_and_hold", what)
        self._check_known("match_and_hold", pages, "matched")
        self._check_count("match_and_hold")
        return hold

    def insert(
        self, tokens: Int32s, pages: Int32s, namespace: str, hold: Hold | None, fence: int, priority: int = 0
    ) -> Insertion:
        held = NO_PAGES if hold is None else hold.pages
        with self._calling("insert"):
            done: Insertion = self._part.insert(tokens, pages, namespace, hold, fence, priority)
        adopted = set(done.adopted.tolist())
        if not adopted <= set(pages.tolist()):
            raise self._fail("insert", f"adopted {sorted(adopted)}, and was offered {pages.tolist()}")
        self._pages |= adopted
        self._touched(np.concatenate((held, done.adopted)), fence)
        self._check_told("insert", "does not say that it took")
        self._check_count("insert")
        return done

    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        pages = hold.pages
        with self._calling("release"):
            self._part.release(hold, fence, used)
        self._touched(pages, fence)
        self._check_count("release")

    def _touched(self, pages: Int32s, fence: int) -> None:
        for page in pages.tolist():
            self._fences[page] = max(fence, self._fences.get(page, 0))

    def evict(self, count: int) -> Eviction:
        return self._gives_back("evict", count)

    def reset(self) -> Eviction:
        return self._gives_back("reset")

    def _gives_back(self, verb: str, *arguments: int) -> Eviction:
        with self._calling(verb):
            gone: Eviction = getattr(self._part, verb)(*arguments)
        pages = gone.pages.tolist()
        self._check_known(verb, pages, "gave back")
        self._pages.difference_update(pages)
        fences = {page: self._fences.pop(page, 0) for page in pages}
        newest = max(pages, key=fences.__getitem__, default=None)
        if newest is not None and gone.fence < fences[newest]:
            what = f"gave back page {newest}, which step {fences[newest]} may touch, behind step {gone.fence}"
            raise self._fail(verb, what)
        self._check_told(verb, "still has what it gave back,")
        self._check_count(verb)
        return gone

    def _check_known(self, verb: str, pages: Sequence[int], did: str) -> None:
        foreign = [page for page in pages if page not in self._pages]
        if foreign:
            raise self._fail(verb, f"{did} page {foreign[0]}, which it does not have: it has {sorted(self._pages)}")

    def _check_told(self, verb: str, did: str) -> None:
        """Pages that it names in place of others leave the counts right."""
        with self._calling("content"):
            content = self._part.content()
        untold = sorted(content.keys() - self._pages)
        if untold:
            raise self._fail(verb, f"{did} page {untold[0]}: it has {sorted(content)}")

    def _check_count(self, verb: str) -> None:
        evictable, held = self._part.evictable, self._part.held
        if evictable + held == len(self._pages):
            return
        lost = len(self._pages) - evictable - held
        what = f"lost {lost} of its pages" if lost > 0 else f"counts {-lost} pages too many"
        told = f"it took {sorted(self._pages)} and has not given them back"
        raise self._fail(verb, f"{what}: {told}; it says that {evictable} are evictable and {held} are held")
