"""The gateway: where requests from outside become messages, and messages become replies.

It gives each request its number, keeps one entry for it until its one terminal reply, and answers every question put
to it (an ask) exactly once. HTTP handlers call its methods directly when they share its thread; the runtime calls
`receive` in that same thread, so nothing here is locked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
import structlog

from pawl.actors.measures import DURATION_BUCKETS_S, FIRST_TOKEN_BUCKETS_S, TOKEN_BUCKETS_S, Histogram, Rate
from pawl.actors.messages.control import Drain, FlushCache, GetState, Reply, Stalled
from pawl.actors.messages.generate import Abort, Accepted, Done, Output, Outputs, Refused, Submit, Timing, Usage
from pawl.actors.names import NAMES, Names
from pawl.actors.recorder import TraceSink
from pawl.actors.runtime.actor import Actor, Down, Lane, Timer
from pawl.actors.sink import Sink
from pawl.lifecycle.records import Answered, AnswersClosed
from pawl.lifecycle.states import Cause

log = structlog.get_logger(__name__)

NOTHING_USED = Usage(prompt_tokens=0, completion_tokens=0, cached_tokens=0)

HTTP_OVERLOADED = 503
HTTP_DUPLICATE = 400


class AskExpired(msgspec.Struct, frozen=True, tag=True):
    """Timer: nobody answered this ticket in time."""

    ticket: int


class Entry(msgspec.Struct):
    """One live request."""

    request: int
    rid: str
    sink: Sink | None
    """None once the client is gone."""
    opened: float
    first_output: float | None = None
    num_tokens: int = 0
    aborting: bool = False
    watchers: list[Callable[[], None]] = msgspec.field(default_factory=list)
    """Called once, when the request has ended."""


class PendingAsk(msgspec.Struct):
    """A question that waits for its `Reply`."""

    answer: Callable[[Reply], None]
    timer: Timer
    timeout_s: float


class Totals(msgspec.Struct):
    """What the gateway has seen since it started."""

    submitted: int = 0
    ended: Counter[Cause] = msgspec.field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    late_replies: int = 0
    late_outputs: int = 0
    """Outputs for requests that the gateway itself had to end, after a peer was lost."""
    violations: Counter[str] = msgspec.field(default_factory=Counter)


FromPeers: TypeAlias = Outputs | Accepted | Refused | Reply | Stalled | Down | AskExpired


class Gateway(Actor):
    """Open requests and pending asks. `limit` is how many requests may be live at a time; more are refused at once.
    `traced`: every terminal reply is told to the recorder."""

    accepts = FromPeers

    def __init__(self, limit: int = 4096, *, traced: bool = False, names: Names = NAMES) -> None:
        self._names = names
        self._vital = frozenset({names.tokenizer, names.scheduler, names.worker, names.detokenizer})
        """Peers without which no request can end on its own."""
        self.limit = limit
        self.trace = TraceSink(self, names.recorder) if traced else None
        self._num_answered = 0
        self.totals = Totals()
        self.request_duration = Histogram(DURATION_BUCKETS_S)
        self.time_to_first_token = Histogram(FIRST_TOKEN_BUCKETS_S)
        self.time_per_output_token = Histogram(TOKEN_BUCKETS_S)
        self.queue_time = Histogram(FIRST_TOKEN_BUCKETS_S)
        """From the scheduler's taking a request to its admission."""
        self.throughput = Rate()
        """Output tokens that reached clients."""
        self.stalled_s = 0.0
        """For how long the engine's loop has not moved; 0 while it moves."""
        self.lost: str | None = None
        """Name and reason of a peer that is gone for good; nothing can be served any more."""
        self.draining = False
        self._entries: dict[int, Entry] = {}
        self._rids: dict[str, list[int]] = {}
        self._asks: dict[int, PendingAsk] = {}
        self._next_request = 1
        self._next_ticket = 1

    # ---- for the edge: requests ----

    @property
    def num_live(self) -> int:
        return len(self._entries)

    def submit(self, drafts: Sequence[Submit], sinks: Sequence[Sink]) -> tuple[int, ...]:
        """Open one request for each draft and pass it on; returns their numbers.

        The fields `request` and, where empty, `rid` of a draft are filled in here, and a seed is drawn where the client
        gave none. Drafts of one call that name the same rid are one group: an abort by that rid ends them all. When
        there is no room for all of them, or a rid is live already, all are refused; a refusal reaches the sinks
        before this returns.
        """
        numbers = range(self._next_request, self._next_request + len(drafts))
        self._next_request = numbers.stop
        self.totals.submitted += len(drafts)
        rids = [draft.rid or self.new_rid() for draft in drafts]
        refusal = self._why_not(rids)
        if refusal is not None:
            for request, sink in zip(numbers, sinks, strict=True):
                self.totals.ended[refusal.cause] += 1
                sink.refused(msgspec.structs.replace(refusal, request=request))
            return tuple(numbers)
        now = self.context.now()
        for request, rid, sink in zip(numbers, rids, sinks, strict=True):
            self._entries[request] = Entry(request, rid, sink, now)
            self._rids.setdefault(rid, []).append(request)
        for request, rid, draft in zip(numbers, rids, drafts, strict=True):
            sampling = draft.sampling
            if sampling.get("seed") is None:
                sampling = {**sampling, "seed": self.context.random.getrandbits(31)}
            message = msgspec.structs.replace(draft, request=request, rid=rid, sampling=sampling)
            if not self.context.send(self._names.tokenizer, message):
                self._refuse(Refused(request, Cause.OVERLOADED, "the tokenizer's queue is full", HTTP_OVERLOADED))
        return tuple(numbers)

    def new_rid(self) -> str:
        """A name that no other request has."""
        return f"{self.context.random.getrandbits(128):032x}"

    def find(self, rid: str) -> tuple[int, ...]:
        """The live requests of exactly this name; empty when there is none."""
        return tuple(self._rids.get(rid, ()))

    def live(self) -> tuple[int, ...]:
        """All live requests, oldest first."""
        return tuple(self._entries)

    def abort(self, requests: Iterable[int], cause: Cause = Cause.CLIENT, message: str = "") -> tuple[int, ...]:
        """Ask the scheduler to end these; returns those that are live. Each still gets its terminal reply, except
        that after `disconnect` nobody is there to read it."""
        live = [self._entries[request] for request in requests if request in self._entries]
        for entry in live:
            if cause is Cause.DISCONNECT:
                entry.sink = None
        fresh = [entry for entry in live if not entry.aborting]
        for entry in fresh:
            entry.aborting = True
        if fresh:
            numbers = tuple(entry.request for entry in fresh)
            self.context.send(self._names.scheduler, Abort(numbers, cause, message), Lane.CONTROL)
        return tuple(entry.request for entry in live)

    def when_ended(self, request: int, call: Callable[[], None]) -> bool:
        """Have `call` made once `request` has had its terminal reply. False, and no call, when it is not live."""
        entry = self._entries.get(request)
        if entry is None:
            return False
        entry.watchers.append(call)
        return True

    def drain(self, grace_s: float) -> None:
        """Take no more requests, and have the scheduler end what is left after `grace_s`."""
        if not self.draining:
            self.draining = True
            self.context.send(self._names.scheduler, Drain(grace_s), Lane.CONTROL)

    # ---- for the edge: asks ----

    def flush_cache(self, timeout_s: float, answer: Callable[[Reply], None], patience_s: float = 5.0) -> int:
        """Have the prefix cache emptied; waits up to `timeout_s` for rest."""
        return self.ask(lambda ticket: FlushCache(ticket, timeout_s, self.context.name), timeout_s + patience_s, answer)

    def get_state(self, answer: Callable[[Reply], None], timeout_s: float = 2.0, detail: bool = False) -> int:
        """Ask the scheduler for its queues, table, memory and counters."""
        return self.ask(lambda ticket: GetState(ticket, self.context.name, detail), timeout_s, answer)

    def ask(self, make: Callable[[int], Any], timeout_s: float, answer: Callable[[Reply], None]) -> int:
        """Send `make(ticket)` to the scheduler; `answer` is called exactly once, with the reply or, after `timeout_s`
        or a loss, with one that says so. Returns the ticket."""
        ticket = self._next_ticket
        self._next_ticket += 1
        timer = self.context.after(timeout_s, AskExpired(ticket))
        self._asks[ticket] = PendingAsk(answer, timer, timeout_s)
        if self.lost is not None or not self.context.send(self._names.scheduler, make(ticket), Lane.CONTROL):
            self._answer(Reply(ticket, False, self.lost or "the scheduler is not running"))
        return ticket

    # ---- from the runtime ----

    def receive(self, message: FromPeers) -> None:
        match message:
            case Outputs(outputs):
                num_tokens = 0
                for output in outputs:
                    num_tokens += len(output.tokens)
                    self._output(output)
                self.throughput.add(self.context.now(), num_tokens)
            case Accepted():
                self._accept(message)
            case Refused():
                self._refuse(message)
            case Reply():
                self._answer(message)
            case AskExpired(ticket):
                self._expire(ticket)
            case Stalled(seconds):
                self.stalled_s = seconds
            case Down(name, reason):
                if name in self._vital:
                    self._lose(f"{name} is gone: {reason}")
                else:
                    log.warning("a helper is gone; requests are served on", actor=name, reason=reason)

    def settled(self) -> None:
        if self.trace is not None:
            self.trace.flush()

    def stopped(self, reason: str) -> None:
        """Answer everything that is open."""
        self.draining = True
        self._end_all(Cause.DRAINED, f"the engine stopped: {reason}")
        if self.trace is not None:
            self.trace.emit(AnswersClosed(self._num_answered, self.context.now()))
            self.trace.flush()

    def invariants(self) -> None:
        """Raise AssertionError when the books do not balance: received = ended + live, and each live request has one
        place under its name."""
        received, ended = self.totals.submitted, self.totals.ended.total()
        if received != ended + len(self._entries):
            raise AssertionError(f"{received} received, {ended} ended, {len(self._entries)} live")
        named = sorted(request for group in self._rids.values() for request in group)
        if named != sorted(self._entries):
            raise AssertionError(f"named {named}, live {sorted(self._entries)}")

    # ---- inside ----

    def _why_not(self, rids: Sequence[str]) -> Refused | None:
        if self.lost is not None:
            return Refused(0, Cause.INTERNAL, self.lost, HTTP_OVERLOADED)
        if self.draining:
            return Refused(0, Cause.DRAINED, "the server is shutting down", HTTP_OVERLOADED)
        if len(self._entries) + len(rids) > self.limit:
            text = f"{len(self._entries)} requests are open and {self.limit} are allowed; try again later"
            return Refused(0, Cause.OVERLOADED, text, HTTP_OVERLOADED)
        for rid in rids:
            if rid in self._rids:
                text = f"a request with rid {rid!r} is still running; choose another rid or leave it out"
                return Refused(0, Cause.INVALID, text, HTTP_DUPLICATE, "rid")
        return None

    def _violate(self, name: str, kind: str, request: int) -> None:
        self.totals.violations[name] += 1
        log.error("a rule of the request's life was broken", property=name, message=kind, request=request)

    def _find(self, request: int, kind: str) -> Entry | None:
        """The live entry that a message names; a message for any other request breaks a rule and is counted."""
        entry = self._entries.get(request)
        if entry is None:
            if self.lost is not None:
                self.totals.late_outputs += 1
            else:
                known = 0 < request < self._next_request
                after_end = "silence_after_abort" if kind == "output" else "legal_lifecycle"
                self._violate(after_end if known else "incarnation", kind, request)
        return entry

    def _accept(self, accepted: Accepted) -> None:
        entry = self._find(accepted.request, "accepted")
        if entry is not None and entry.sink is not None:
            entry.sink.accepted(accepted)

    def _output(self, output: Output) -> None:
        entry = self._find(output.request, "output")
        if entry is None:
            return
        if output.tokens:
            if entry.first_output is None:
                entry.first_output = self.context.now()
            entry.num_tokens += len(output.tokens)
        if output.done is not None:
            self._close(entry, output.done.cause, output.done.usage)
            timing = output.done.timing
            if timing.admitted is not None:
                self.queue_time.observe(timing.admitted - timing.submitted)
        if entry.sink is not None:
            entry.sink.push(output)
        if output.done is not None:
            self._notify(entry)

    def _refuse(self, refused: Refused) -> None:
        entry = self._find(refused.request, "refused")
        if entry is None:
            return
        self._close(entry, refused.cause, NOTHING_USED)
        if entry.sink is not None:
            entry.sink.refused(refused)
        self._notify(entry)

    def _close(self, entry: Entry, cause: Cause, usage: Usage) -> None:
        """Take the entry off the books, before its client hears of it."""
        del self._entries[entry.request]
        group = self._rids[entry.rid]
        group.remove(entry.request)
        if not group:
            del self._rids[entry.rid]
        totals = self.totals
        totals.ended[cause] += 1
        totals.prompt_tokens += usage.prompt_tokens
        totals.cached_tokens += usage.cached_tokens
        totals.generated_tokens += usage.completion_tokens
        now = self.context.now()
        if self.trace is not None:
            self._num_answered += 1
            self.trace.emit(Answered(entry.request, cause, entry.num_tokens, now))
        self.request_duration.observe(now - entry.opened)
        if entry.first_output is not None:
            self.time_to_first_token.observe(entry.first_output - entry.opened)
            if entry.num_tokens > 1:
                self.time_per_output_token.observe((now - entry.first_output) / (entry.num_tokens - 1))

    def _notify(self, entry: Entry) -> None:
        for call in entry.watchers:
            call()

    def _answer(self, reply: Reply) -> None:
        ask = self._asks.pop(reply.ticket, None)
        if ask is None:
            self.totals.late_replies += 1
            return
        ask.timer.cancel()
        ask.answer(reply)

    def _expire(self, ticket: int) -> None:
        # The answer may have come just before its timer; then there is nothing left to expire.
        ask = self._asks.pop(ticket, None)
        if ask is not None:
            ask.answer(Reply(ticket, False, f"the scheduler did not answer within {ask.timeout_s:g} s"))

    def _lose(self, text: str) -> None:
        self.lost = text
        self._end_all(Cause.INTERNAL, text)

    def _end_all(self, cause: Cause, message: str) -> None:
        now = self.context.now()
        for entry in list(self._entries.values()):
            usage = Usage(prompt_tokens=0, completion_tokens=entry.num_tokens, cached_tokens=0)
            done = Done(cause, usage, Timing(entry.opened, first_token=entry.first_output, ended=now), message)
            self._output(Output(entry.request, "", (), done=done))
        for ticket in list(self._asks):
            self._answer(Reply(ticket, False, message))
