"""A user's own policy, held to what it must keep at every call: what is wrong with a part is told as that, before
anything that follows from it. A cache likewise is in `checked_cache.py`."""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pawl.lifecycle.requests import RequestTable
from pawl.loops.loop import Loop
from pawl.loops.policy import Policy, Waiting
from pawl.loops.queues import Queues
from pawl.memory.violation import MemoryViolation
from pawl.testing.subject.watchdog import Hung, limited, pressed

CALL_S = 1.0
"""Seconds of the processor that a call of a part may take: it has a few requests, or pages."""
MOST_MORE = 64
"""Rows beyond those that a policy was given at which one stops reading what it returns, which may never end."""
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

    def __str__(self) -> str:
        return f"your {self.kind} {self._name}"

    def _fail(self, verb: str, what: str) -> PartFailed:
        """What to raise; it is reported at once, as whoever calls may survive an exception."""
        failed = PartFailed(self.kind, f"{self._name} ({method_at(type(self._part), verb)})", what)
        self.report(failed)
        return failed

    @contextmanager
    def _calling(self, verb: str) -> Iterator[None]:
        try:
            with limited(CALL_S, of_processor=True, call=f"{self} ({method_at(type(self._part), verb)})"):
                yield
        except MemoryViolation as error:
            if not self._is_part_of(error):
                raise
            raise self._fail(verb, raised(error)) from error
        except Hung as error:
            frames = traceback.extract_tb(error.__traceback__)
            theirs = [each for each in frames if not each.filename.startswith(OURS)]
            raise self._fail(verb, "\n".join(("does not return", *traceback.format_list(theirs))).rstrip()) from None
        except BaseException as error:  # one that ends its process ends the engine's
            if pressed(error):
                raise
            raise self._fail(verb, raised(error)) from error

    def _is_part_of(self, error: BaseException) -> bool:
        """Whether a line of the part led to it: it may derive from one of ours, that finds out how it is called."""
        codes = (getattr(each, "__code__", None) for each in vars(type(self._part)).values())
        files = {code.co_filename for code in codes if code is not None}
        return any(frame.filename in files for frame in traceback.extract_tb(error.__traceback__))


def method_at(kind: type, verb: str) -> str:
    """File and line of a method."""
    code = getattr(getattr(kind, verb, None), "__code__", None)
    return verb if code is None else f"{verb}, {Path(code.co_filename).name}:{code.co_firstlineno}"


OURS = str(Path(__file__).parent), contextlib.__file__
"""Where what calls the user's code stands."""


def shown(value: object) -> str:
    """What a part gave, which may be anything."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__}, whose `repr` raises"


def raised(error: BaseException) -> str:
    """What a part raised, with its lines: from where the user's code begins, and without what was handled meanwhile."""
    found = error.__traceback__
    while found is not None and found.tb_next is not None and found.tb_frame.f_code.co_filename.startswith(OURS):
        found = found.tb_next
    chain = error.__cause__ is not None
    lines = traceback.format_exception(type(error), error, found, chain=chain)
    return f"raised {type(error).__name__}\n{''.join(lines).rstrip()}"


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
            returned = self._part.order(rows, waiting)
        if not isinstance(returned, Iterable) or isinstance(returned, Set):
            why = "no sequence" if not isinstance(returned, Set) else "a set, and has no order"
            raise self._fail("order", f"returned {shown(returned)}, which is {why}: it was given rows {given}")
        with self._calling("order"):
            found = list(islice(returned, len(given) + MOST_MORE))
        after = _written(waiting)
        changed = [(where, name) for (where, name), value in after.items() if value != before[where, name]]
        if changed:
            names = ", ".join(name for where, name in changed if where == changed[0][0])
            raise self._fail("order", f"wrote to {changed[0][0]}: {names}")
        what = _no_permutation(given, found, waiting.table) or self._unfair(given, found, waiting.table)
        if what:
            told = ", ".join(map(shown, found))
            raise self._fail("order", f"{what}: it was given rows {given} and returned [{told}]")
        return found

    def _unfair(self, given: Sequence[int], found: Sequence[int], table: RequestTable) -> str:
        """Whom it lets pass more than it states. Rows are given in the order of their arrival."""
        limit = getattr(self._part, "max_overtaken", USUAL_AT_ONCE)
        if limit is None:
            return ""
        if not isinstance(limit, int) or limit < 0:
            return f"states max_overtaken {shown(limit)}, which is no number of requests, and not None"
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
            elif isinstance(value, dict):
                found[where, name] = [(key, _content(each)) for key, each in value.items()]
            elif isinstance(value, list):
                found[where, name] = list(value)
    memory = waiting.memory if isinstance(waiting, Queues) else None
    if memory is not None:  # to look what is cached for a request changes none of these
        found["memory", "who has its pages"] = memory.digest()
        found["memory", "what is held of the cache"] = memory.cache.held
        found["memory", "what the cache has"] = memory.cache.evictable + memory.cache.held
    for row in table.live_rows().tolist():
        info = table.info(row)
        for name in info.__struct_fields__:
            found[f"what is known of request {info.request}", name] = getattr(info, name)
    return found


def _content(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _no_permutation(given: Sequence[int], found: Sequence[Any], table: RequestTable) -> str:
    """What is wrong with an order, if anything is."""
    for row in found:
        if not isinstance(row, int | np.integer) or isinstance(row, bool):
            return f"returned {shown(row)}, which is no row"
    counts = Counter(found)
    for row in found:
        if row not in given:
            return f"returned row {row}, which does not wait: {_holder(row, table)}"
        if counts[row] > 1:
            return f"returned row {row} {'twice' if counts[row] == 2 else f'{counts[row]} times'}"
    left_out = [row for row in given if row not in counts]
    return f"left out row {left_out[0]}" if left_out else ""


def _holder(row: int, table: RequestTable) -> str:
    """Who has a row that does not wait."""
    if row not in table.live_rows():
        return "no request has it, or the one that had it has ended"
    return f"request {table.info(row).request} has it, and is {table.state_of(row).name.lower()}"
