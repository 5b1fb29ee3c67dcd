"""Traces of prefill and decode replicas beside each other: what one received is what the other has computed.

A decode replica records how many pages came under which ticket, for which request, and how much of its prompt a cache
of the prefill replica had; a prefill replica has a request for each ticket, named after who asked. Nothing else of one
run is in the trace of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pawl.lifecycle.columns import int32s
from pawl.lifecycle.namespaces import salt_of
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import Checkpoint, Closed, Gap, Record, Started, Submitted, TierTold, Transition
from pawl.lifecycle.states import Event

ROLES = frozenset({"prefill", "decode"})


class Asked(NamedTuple):
    """A request of a prefill replica."""

    ticket: int
    tokens: bytes
    salt: str = ""
    num_cached: int = 0
    """Tokens that its cache had, at the first admission."""


class Came(NamedTuple):
    """Pages that a decode replica has received."""

    ticket: int
    pages: int
    request: int
    known: bytes
    """Its prompt and its output until then: one that was retracted, or that a lost replica had, may have some."""
    num_cached: int
    """As it was told of the other side's cache."""
    salt: str = ""


class Side(NamedTuple):
    """What one trace says of hand-overs."""

    role: str
    page_size: int
    whole: bool
    """It begins with the start of its replica and ends with its end: one that was killed has not written all down."""
    asked: list[Asked]
    came: list[Came]


def side_of(records: Iterable[Record]) -> Side | None:
    """None where the trace is of a replica that hands nothing over."""
    found: Side | None = None
    asked: dict[int, Asked] = {}
    """Requests of a prefill replica that have not been retracted: no later admission counts."""
    told: TierTold | None = None
    closed = False
    monitor = Monitor([])
    for record in records:
        if found is None:
            started = record.started if isinstance(record, Checkpoint) else record
            if not isinstance(started, Started) or (role := role_of(started)) not in ROLES:
                return None
            found = Side(role, started.page_size, isinstance(record, Started), [], [])
        monitor.observe(record)
        closed = isinstance(record, Closed)
        if not monitor.judging or isinstance(record, Gap):
            break  # nothing that follows says what a request has
        match record:
            case Submitted():
                _, _, ticket = record.rid.rpartition("/")
                if found.role == "prefill" and ticket.isdecimal():
                    asked[record.request] = Asked(
                        int(ticket), int32s(record.tokens).tobytes(), salt_of(record.namespace)
                    )
            case Transition(event=Event.ADMIT, request=request) if request in asked:
                asked[request] = asked[request]._replace(num_cached=record.num_cached or 0)
            case Transition(event=Event.RETRACT, request=request) if request in asked:
                found.asked.append(asked.pop(request))
            case TierTold(kind="received"):
                told = record
            case Transition(event=Event.RECEIVE, request=request) if told is not None:
                known = _known(monitor.history, request)
                if known is not None:
                    salt = salt_of(monitor.history.submissions[record.row].namespace)
                    found.came.append(Came(told.ticket, told.count, request, known, told.num_cached, salt))
                told = None
    if found is None:
        return None
    return found._replace(whole=found.whole and closed, asked=[*found.asked, *asked.values()])


def _known(history: History, request: int) -> bytes | None:
    """Prompt and output of a request, int32; None where nothing says what they are."""
    row = history.open.get(request)
    return None if row is None else int32s(history.submissions[row].tokens).tobytes() + history.output(row).tobytes()


def role_of(started: Started | None) -> str:
    """Which role the loop has that begins so; empty where it says none."""
    loop: Any = None if started is None else started.config.get("loop")
    return str(loop.get("role", "")) if isinstance(loop, dict) else ""


class Matched(NamedTuple):
    """What came of comparing the two sides."""

    hand_overs: int
    """In which pages came."""
    pages: int
    faults: tuple[str, ...]


def matched(sides: Iterable[Side]) -> Matched:
    """Every hand-over of a decode replica beside what the prefill replicas were asked. Of these there must be all."""
    every = list(sides)
    asked: dict[int, list[Asked]] = {}
    for side in every:
        for each in side.asked:
            asked.setdefault(each.ticket, []).append(each)
    came = [(side, each) for side in every for each in side.came]
    whole = all(side.whole for side in every if side.role == "prefill")
    alone = sum(side.role == "decode" for side in every) == 1
    faults = tuple(_faults(came, asked, alone)) if whole else ()
    return Matched(sum(each.pages > 0 for _, each in came), sum(each.pages for _, each in came), faults)


def _faults(came: Iterable[tuple[Side, Came]], asked: dict[int, list[Asked]], alone: bool) -> Iterator[str]:
    """`alone`: one decode replica asked for all. Others may use the same tickets, so where no page came the prompt may
    be that of one of theirs."""
    for side, each in came:
        mine = [other for other in asked.get(each.ticket, ()) if each.known.startswith(other.tokens)]
        what = f"request {each.request} received {each.pages} pages as ticket {each.ticket}"
        if (each.pages or alone) and mine and all(other.salt != each.salt for other in mine):
            yield f"{what}, and a prefill replica was asked for its tokens under another salt"
        elif not each.pages:
            continue  # it may have been asked of nobody
        elif not mine:
            yield f"{what}, and no prefill replica was asked for its tokens under that ticket"
        elif each.pages > max(len(other.tokens) // 4 // side.page_size for other in mine):
            yield f"{what}, and the prompt that a prefill replica was asked for has fewer"
        elif each.num_cached not in (cached := {other.num_cached for other in mine}):
            had = " or ".join(map(str, sorted(cached)))
            yield f"{what} and was told that {each.num_cached} of its tokens were cached there, where {had} were"
