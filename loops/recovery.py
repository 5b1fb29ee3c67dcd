"""What a loop does when something of its own fails.

Planning is undone by its transaction. After any other failure half-way it believes nothing that may have been changing.

The table of requests is the truth: who is live, with which tokens; a step counts as committed when it is recorded so.
Memory is made anew, empty; the queues follow from the states; whoever ran starts again from its known tokens, as after
a lost step. So no code in between has to be undoable at every line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pawl.lifecycle.requests import NOT_ADMITTED
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.policy import PolicyFailed
from pawl.memory.violation import MemoryViolation

if TYPE_CHECKING:
    from pawl.loops.batch import BatchBuilder
    from pawl.loops.loop import Loop

FAILED = "the server failed on this request"
FAILED_ORDER = "the server failed to do it"


def recover(loop: Loop, failure: str, now: float, request: int = 0) -> None:
    """Something raised in the middle of a step, or of an order. The worker must be reset after this.

    `request` ends with cause `internal`; where that is 0, the request that alone was being worked for. Is it nobody's,
    everyone who ran has a strike. `failure` must not quote what a client sent.
    """
    table, requests = loop.table, loop.requests
    launching = loop.launching
    if launching is not None:
        # Its plan is whole, and its record may be half there.
        loop.journal.planned(launching.batch, launching.rows, launching.admitted, table, now)
        for info in map(table.info, launching.admitted):
            info.admitted = now if info.admitted is None else info.admitted
        if not loop.in_flight or loop.in_flight[-1] is not launching:
            loop.in_flight.append(launching)
    interrupted = requests.interrupted()
    culprit = table.row_of.get(request, interrupted)
    if culprit is None and loop.planning is not None and launching is None:
        culprit = loop.planning.trying
    loop.feed.forget()
    contained(loop, 0 if culprit is None else table.info(culprit).request, failure, now)
    restored = _undone(loop, failure, now)
    running = [row for row in table.live_rows().tolist() if table.state[row] in (State.PREFILLING, State.DECODING)]
    for companion in loop.companions:
        companion.lost(now)
    for row in running:
        table.num_computed[row] = 0
        info = table.info(row)
        if info.first_token is None and len(table.output(row)):  # drawn in the step that failed on its way
            info.first_token = now
        if row not in restored and not _complete(loop, row, culprit, now):
            source = table.state_of(row)
            table.move(row, Event.RETRACT, Cause.STEP_LOST)
            table.attempt[row] += 1
            table.info(row).num_retractions += 1
            requests.retracted(row, source, Cause.STEP_LOST, now)
    for row in restored:
        table.undo(row, State.QUEUED)
        table.attempt[row] += 1
        info = table.info(row)
        if info.num_retractions == info.num_resumed:  # it was its first admission, which gives no rank
            table.order[row] = NOT_ADMITTED
    loop.planning = loop.launching = None
    loop.limits.ready_at = now
    # After what they owned is recorded as given back.
    written = [reservation for companion in loop.companions for reservation in companion.written()]
    loop.memory.replace(loop.fresh_memory(), written)
    loop.queues.rebuild()
    table.free_rest()
    if culprit is not None:
        requests.leave(culprit, Event.ABORT, Cause.INTERNAL, now, message=FAILED)
    if loop.lost is not None and loop.lost.rows:
        requests.blame(loop.lost, now)
    elif culprit is None:
        for row in running:
            if table.infos[row] is not None:
                requests.strike(row, Cause.INTERNAL, FAILED, now)
    loop.lost = None


def contained(loop: Loop, request: int, failure: str, now: float) -> None:
    """Record a failure that is survived, for the sake of this request (0: of nobody). What steps were thought to take,
    and whose turn it is, may be of before or after it: both begin anew."""
    loop.journal.contained(request, failure, now)
    loop.limits.times.forget()
    loop.queues.behind = 0


def lose_runner(loop: Loop, now: float) -> None:
    """What computed is gone, with all that pages hold: nothing of it may be offered to other requests. Who ran starts
    again from its known tokens; no step is in flight."""
    for row in loop.queues.running().tolist():
        loop.table.num_computed[row] = 0
        loop.requests.retract(row, Cause.STEP_LOST, now)
    lose_pages(loop, now)
    loop.glance()


def lose_pages(loop: Loop, now: float) -> None:
    """Nothing of what the pages hold may be used or offered any more; nobody runs."""
    for companion in loop.companions:
        companion.lost(now)
    loop.memory.flush()
    loop.memory.take_replaced()


def undo_newest(loop: Loop, now: float) -> None:
    """The newest step in flight is rolled back, as the oldest one was lost; it is to be taken out of those in flight.
    Where that fails half-way, what is not recorded can be recorded again."""
    lost, scheduled, counters = loop.lost, loop.in_flight[-1], loop.counters
    assert lost is not None
    cached_tokens, steps_lost = counters.cached_tokens - scheduled.first_hits(loop.table), counters.steps_lost + 1
    loop.memory.ledger.abort(scheduled.transaction)
    digest = loop.memory.digest()
    loop.journal.rolled_back(scheduled.step, lost.reason, now, digest=digest, blameless=lost.blameless)
    counters.cached_tokens = cached_tokens  # who is admitted again finds it again
    counters.steps_lost = steps_lost
    loop.rolled_back = scheduled


def undo_plan(loop: Loop, builder: BatchBuilder, error: Exception) -> None:
    """Planning failed: nothing of the step remains. Raises `error` where that cannot be had by rolling back."""
    loop.memory.ledger.discard(builder.transaction)
    unrestored = loop.memory.ledger.digest.unrestored is not None
    if not isinstance(error, MemoryViolation) and (
        unrestored or any(loop.checks.check_all(loop)) or not _holds_are_right(loop)
    ):
        raise error


def _holds_are_right(loop: Loop) -> bool:
    """Whether all that is held of the cache is held by a slot, as far as that can be told."""
    memory = loop.memory
    of_slots = sum(hold is not None and hold.num_tokens > 0 for hold in memory.page_table.holds)
    return not loop.companions and memory.cache.statistics().get("holds", of_slots) == of_slots


def plan_failed(loop: Loop, builder: BatchBuilder, error: Exception, now: float) -> None:
    """Planning would have broken a law, ran out of host memory, or met a request that it cannot plan, and is undone.
    Who runs starts again. The request that was being tried, else those that ran, may be what does it: too often, and it
    ends. Where an order of admission raised it is those that it was to order, and nobody else."""
    broken = error if isinstance(error, MemoryViolation) else MemoryViolation(type(error).__name__)
    if broken is not error:
        broken.__cause__ = error
        contained(loop, 0, type(error).__name__, now)
    loop.requests.gave_way(builder.retracted, Cause.STEP_LOST, now)
    loop.effects.violated(broken)
    loop.glance()
    running = loop.queues.running().tolist()
    if isinstance(error, PolicyFailed):  # what runs had no part in it
        running, struck = [], list(error.rows)
    else:
        struck = running if builder.trying is None else [builder.trying]
    if not struck and not loop.in_flight:
        raise error  # nobody would try again
    for row in running:
        loop.requests.retract(row, Cause.STEP_LOST, now)
    for row in struck:
        loop.try_again = True
        loop.requests.strike(row, Cause.INTERNAL, f"the request could not be planned: {broken}", now)


def _undone(loop: Loop, failure: str, now: float) -> set[int]:
    """No step is in flight any more; the rows whose admission is undone with them."""
    table, planning = loop.table, loop.planning
    restored: set[int] = set()
    if planning is not None and loop.launching is None:
        restored.update(planning.admitted)
        if planning.trying is not None:
            restored.add(planning.trying)
        for each in planning.retracted:
            if each.recorded:
                continue
            if each.row in restored:
                table.undo(each.row, State.QUEUED)
            restored.discard(each.row)
            loop.requests.unmove(each.row, each.state)
    if loop.in_flight and loop.in_flight[0] is loop.committed:
        loop.in_flight.popleft()
    if loop.in_flight and loop.in_flight[-1] is loop.rolled_back:
        loop.in_flight.pop()
    blameless = False
    if loop.lost is not None:
        failure, blameless = loop.lost.reason, loop.lost.blameless
    digest = loop.memory.digest()
    for scheduled in reversed(loop.in_flight):
        if scheduled is not loop.launching:  # which is not counted yet
            loop.counters.cached_tokens -= scheduled.first_hits(table)
        loop.journal.rolled_back(scheduled.step, failure, now, digest=digest, blameless=blameless)
        loop.counters.steps_lost += 1
        attempts = dict(zip(scheduled.rows.tolist(), scheduled.attempts.tolist(), strict=True))
        restored.update(row for row in scheduled.admitted if table.attempt[row] == attempts[row])
    loop.in_flight.clear()
    loop.limits.times.lost()
    return restored


def _complete(loop: Loop, row: int, culprit: int | None, now: float) -> bool:
    """The request has all it wanted, but nobody had said so yet: now it is said."""
    table = loop.table
    output = table.output(row)
    if row == culprit or not len(output) or table.state[row] != State.DECODING:
        return False
    last = int(output[-1])
    if not table.complete(np.array([row]), output[-1:]):
        return False
    cause, matched = loop.requests.end_of(row, last)
    loop.requests.close(row, Event.FINISH, cause, now, matched=matched)
    return True
