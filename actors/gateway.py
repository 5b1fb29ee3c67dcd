"""The gateway: where requests from outside become messages, and messages become replies.

It gives each request its number, keeps it open until its one terminal reply, and answers every question put to it (an
ask) exactly once. HTTP handlers call its methods directly when they share its thread; the runtime calls `receive` in
that same thread, so nothing here is locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
import structlog

from pawl.actors.adapter_names import renamed, unknown_adapter
from pawl.actors.answer_traces import AnswerTraces
from pawl.actors.asks import Answer, AskExpired, Asks
from pawl.actors.control import row_of
from pawl.actors.known_replicas import KnownReplicas
from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Pulse, Reply, Stalled, TraceLoss
from pawl.actors.messages.generate import Accepted, Done, Output, Outputs, Refused, Submit, Timing, Usage
from pawl.actors.messages.memory import MemoryReleased
from pawl.actors.messages.replicas import FromReplica, FromRouter, NoneLeft
from pawl.actors.messages.weights import AS_STARTED, WeightsServed
from pawl.actors.names import NAMES, Names
from pawl.actors.open_requests import HTTP_OVERLOADED, Entry, OpenRequests
from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.sampling import SEED_RANGE
from pawl.actors.sink import Sink
from pawl.actors.trace_losses import TraceLosses
from pawl.actors.unread import SHORT, long_characters
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.states import Cause
from pawl.loops.adapter import Named
from pawl.loops.orders.adapters import LoadAdapter
from pawl.loops.orders.requests import Abort, Drain

log = structlog.get_logger(__name__)

FromPeers: TypeAlias = Outputs | Accepted | Refused | Reply | Down | AskExpired | FromReplica | FromRouter


class Gateway(Actor):
    """Open requests and pending asks. `limit` is how many requests may be open at a time; more are refused at once.
    `traced`: every terminal reply is told to the recorder; `trace_required`: none is taken while the trace has gaps.
    `short`: calls of more characters go to a tokenizer of their own; None: there is none."""

    accepts = FromPeers

    def __init__(
        self,
        limit: int = 4096,
        *,
        traced: bool = False,
        trace_required: bool = False,
        short: int | None = None,
        names: Names = NAMES,
    ) -> None:
        self._names = names
        self.reads_apart = short is not None
        self._short = SHORT if short is None else short
        self._vital = names.vital
        self.limit = limit
        self.trace = AnswerTraces(self, names) if traced else None
        self.trace_losses = TraceLosses(traced=traced, required=trace_required)
        self.requests = OpenRequests(self._answered)
        self.totals = self.requests.totals
        self.asks = Asks(self, names.scheduler)
        self.pace = Stalled(0.0)
        """What the watchdog said last of the engine's loop."""
        self.turned_at: float | None = None
        """When the event loop was last seen to turn. The watchdog reads it, which a loop that stands could not tell."""
        self.longest_freeze_s = 0.0
        """For how long the event loop has stood still at the longest, as far as pulses show it."""
        self.lost: str | None = None
        """Name and reason of a peer that is gone for good; nothing can be served any more."""
        self.draining = False
        self.paused = False
        """What the scheduler was told last: to plan no steps, or to plan some again."""
        self.released: tuple[MemoryTag, ...] = ()
        """Memory that is not resident: no step is planned."""
        self.weights: WeightsServed | None = None
        """What is served since an update of the weights."""
        self.replicas = KnownReplicas(self, self.requests, self.trace, self.trace_losses)
        self.adapters: dict[str, Named] = {}
        """Those that requests may name."""
        self.unloaded: dict[str, Named] = {}
        """The last that bore a name which none that is listed has, the one that lost it last at the end."""
        self.resting = frozenset[str]()  # names of those of them that requests may name all the same
        self._loads_again: list[int] = []
        self._delivering: Sequence[Output] = ()
        self._num_delivered = 0
        """Of these outputs: a message that failed in between is gone on with."""

    # ---- for the edge: requests ----

    @property
    def num_live(self) -> int:
        return len(self.requests)

    def new_rid(self) -> str:
        """A name that no other request has."""
        return f"{self.context.random.getrandbits(128):032x}"

    def new_seed(self) -> int:
        """For a request whose client names none, so that every run can be replayed."""
        return self.context.random.randrange(SEED_RANGE)

    def submit(self, submits: Sequence[Submit], sinks: Sequence[Sink]) -> tuple[int, ...]:
        """Open these requests and pass them on; returns their numbers. `request` and, where empty, `rid` are filled in
        here. Requests of one call that name the same rid, or the same `group`, are aborted together by it. When there
        is no room for all of them, or a name is live already, all are refused, before this returns."""
        unread = long_characters(submits, self._short)
        apart = self.reads_apart and any(unread)
        tokenizer = self._names.long_tokenizer if apart else self._names.tokenizer
        numbers = tuple(self.requests.numbers(len(submits), apart))
        named = [s if s.rid else msgspec.structs.replace(s, rid=self.new_rid()) for s in submits]
        names = [(s.rid, s.group) if s.group else (s.rid,) for s in named]
        refusal = self._why_not(names, sum(unread)) or unknown_adapter(submits, self.adapters, self.unloaded)
        if refusal is not None:
            for request, sink in zip(numbers, sinks, strict=True):
                self.requests.count_refused(refusal.cause)
                sink.refused(msgspec.structs.replace(refusal, request=request))
            return numbers
        now, num_sent = self.context.now(), 0
        try:
            for request, own, sink, num_unread, submit in zip(numbers, names, sinks, unread, submits, strict=True):
                self.requests.open(request, own, sink, now, num_unread, submit.operation)
            for after, (request, submit) in enumerate(zip(numbers, named, strict=True), 1):
                incarnation = self.incarnation(submit.adapter)
                numbered = msgspec.structs.replace(submit, request=request, incarnation=incarnation)
                sent = self.context.send(tokenizer, numbered)
                num_sent = after
                if not sent:
                    full = Refused(request, Cause.OVERLOADED, "the tokenizer's queue is full", HTTP_OVERLOADED)
                    self.requests.refuse(full, now)
        except Exception as error:
            # What was sent ends as if its client had gone; the rest was never anywhere but here.
            self.told_of(error, requests=numbers)
            self.abort(numbers[:num_sent], Cause.DISCONNECT)
            for request, own in zip(numbers[num_sent:], names[num_sent:], strict=True):
                self.requests.withdraw(request, own)
            raise
        return numbers

    def incarnation(self, adapter: str) -> int:
        """The number with which a request is sent that names this adapter, the last that was called so; 0: none was,
        or it names none."""
        named = self.adapters.get(adapter) or self.unloaded.get(adapter)
        return 0 if named is None else named.number

    def find(self, rid: str) -> tuple[int, ...]:
        """The live requests of exactly this name; empty when there is none."""
        return self.requests.named(rid)

    def live(self) -> tuple[int, ...]:
        """All live requests, oldest first."""
        return self.requests.all()

    def abort(self, requests: Iterable[int], cause: Cause = Cause.CLIENT, message: str = "") -> tuple[int, ...]:
        """Ask the scheduler to end these; returns those that are live. Each still gets its terminal reply, except
        that after `disconnect` nobody is there to read it."""
        live = self.requests.among(requests)
        for entry in live:
            if cause is Cause.DISCONNECT:
                entry.sink = None
        fresh = [entry for entry in live if not entry.aborting]
        if fresh:
            numbers = tuple(entry.request for entry in fresh)
            self.context.send(self._names.scheduler, Abort(numbers, cause, message), Lane.CONTROL)
        for entry in fresh:
            entry.aborting = True
        return tuple(entry.request for entry in live)

    def when_ended(self, request: int, call: Callable[[], None]) -> bool:
        """Have `call` made once `request` has had its terminal reply. False, and no call, when it is not live."""
        entry = self.requests.get(request)
        if entry is None:
            return False
        entry.watchers.append(call)
        return True

    def drain(self, grace_s: float) -> None:
        """Take no more requests, and have the scheduler end what is left after `grace_s`."""
        if not self.draining:
            self.draining = True
            self.context.send(self._names.scheduler, Drain(grace_s), Lane.CONTROL)
            self.asks.fail("the server is shutting down", self._loads_again)

    # ---- for the edge: asks ----

    def ask(self, message: msgspec.Struct, answer: Answer, timeout_s: float) -> int:
        """Put a control message to who answers it; `answer` is called exactly once, with the reply or, after
        `timeout_s` or a loss, with one that says so. Returns the ticket."""
        return self.asks.ask(message, timeout_s, answer, self.lost, row_of(message).answerer(self._names))

    def load_again(self, adapter: Named, timeout_s: float, answer: Answer) -> None:
        """Have one loaded that was unloaded, for requests: a drain ends the wait."""
        ticket = self.ask(LoadAdapter(name=adapter.name, path=adapter.source, pinned=adapter.pinned), answer, timeout_s)
        self._loads_again = [*filter(self.asks.waits, self._loads_again), ticket]

    # ---- from the runtime ----

    def receive(self, message: FromPeers) -> None:
        match message:
            case Outputs(outputs):
                self._deliver(outputs)
            case Accepted():
                self.requests.accept(message)
            case Refused():
                self.requests.refuse(message, self.context.now())
            case Reply():
                self.asks.answer(message)
            case AskExpired(ticket):
                self.asks.expire(ticket)
            case Stalled():
                self.pace = message
            case WeightsServed():
                self.weights = None if message == AS_STARTED else message
            case AdaptersNamed(adapters, resting=resting):
                self.adapters, self.unloaded = renamed(self.adapters, self.unloaded, adapters, resting)
                self.resting = frozenset(each.name for each in resting)
            case MemoryReleased(tags):
                self.released = tags
            case NoneLeft(name, reason):
                self._lose(name, reason)
            case Pulse(sent_at):
                self.turned_at = self.context.now()
                self.longest_freeze_s = max(self.longest_freeze_s, self.turned_at - sent_at)
            case TraceLoss():
                self.trace_losses.learn(message)
            case Down(name, reason):
                if name in self._vital:
                    self._lose(name, reason)
                else:
                    if self.trace is not None and self.trace.goes_to(name):
                        self.trace_losses.recorder_gone(name, reason)
                    log.warning("a helper is gone; requests are served on", actor=name, reason=reason)
            case _:
                self.replicas.hear(message)

    def spares(self, message: Any, error: Exception) -> bool:
        if message is None:  # the sink keeps what it could not send
            return self.survives()
        if isinstance(message, Outputs):
            self.told_of(error)
            self._deliver(message.outputs)
            return True
        if isinstance(message, Refused):
            self._fail(message.request, error, self.context.now(), last=True)
            return True
        if super().spares(message, error):
            return True
        if not isinstance(message, FromPeers):
            return False
        self.told_of(error, message=type(message).__name__)
        self.receive(message)  # of all else twice is as good as once
        return True

    def requests_of(self, message: FromPeers) -> tuple[int, ...]:
        return (message.request,) if isinstance(message, Accepted | Refused) else ()

    def end_request(self, request: int) -> None:
        """Its client is told at once; it stays on the books until the scheduler has ended it. The scheduler hears of it
        whatever else ends the request: so its records say why a client was told so."""
        self.requests.tell_failure(request)
        for entry in self.requests.among((request,)):
            entry.aborting = True
            self.context.send(self._names.scheduler, Abort((request,), Cause.INTERNAL), Lane.CONTROL)

    def settled(self) -> None:
        if self.trace is not None:
            self.trace.flush()
        self.replicas.part()
        self.progressed()

    def stopped(self, reason: str) -> None:
        """Answer everything that is open."""
        self.draining = True
        if self.failure is not None:
            self._lose(self.context.name, reason)
        else:
            self._end_all(Cause.DRAINED, f"the engine stopped: {reason}")
        if self.trace is not None:
            self.trace.close(self.context.now())

    def check(self) -> None:
        """Raise AssertionError when the books do not balance."""
        self.requests.check()

    # ---- inside ----

    def _why_not(self, names: Sequence[tuple[str, ...]], num_unread: int) -> Refused | None:
        if self.lost is not None:
            return Refused(0, Cause.INTERNAL, self.lost, HTTP_OVERLOADED)
        if self.draining:
            return Refused(0, Cause.DRAINED, "the server is shutting down", HTTP_OVERLOADED)
        if self.trace_losses.refusal:
            return Refused(0, Cause.INTERNAL, self.trace_losses.refusal, HTTP_OVERLOADED)
        each = {name for own in names for name in own}
        return self.requests.why_not(len(names), each, self.limit, num_unread)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        """Once for each token of every request: keep it short."""
        if self._delivering is not outputs:
            self._delivering, self._num_delivered = outputs, 0
        now, num_tokens, deliver = self.context.now(), 0, self.requests.output
        for output in outputs[self._num_delivered :]:
            self._num_delivered += 1
            try:
                num_tokens += len(output.tokens)
                deliver(output, now)
            except Exception as error:
                self._fail(output.request, error, now, last=output.done is not None)
        self.requests.throughput.add(now, num_tokens)
        self._delivering = ()

    def _fail(self, request: int, error: Exception, now: float, *, last: bool) -> None:
        """What came for the request could not be handled: it fails, and has ended if this was the last that comes."""
        self.contain(request, error)
        if last:
            self.requests.give_up(request, now)

    def _answered(self, entry: Entry, cause: Cause, now: float) -> None:
        """The entry is off the books."""
        if self.trace is not None:
            self.trace.answered(entry.recorder, entry.request, cause, entry.num_tokens, now)

    def _lose(self, name: str, reason: str) -> None:
        self.lost = text = f"{name} is gone: {reason}"
        self.requests.orphaned = True
        if self.trace is not None:
            self.trace.give_up()
        live = self.live()
        if live and name != self._names.scheduler:
            # Also where they are being ended for another reason: its records should say why clients were told this.
            self.context.send(self._names.scheduler, Abort(live, Cause.INTERNAL, text), Lane.CONTROL)
        self._end_all(Cause.INTERNAL, text)

    def _end_all(self, cause: Cause, message: str) -> None:
        now = self.context.now()
        outputs = []
        for entry in self.requests.among(self.requests.all()):
            usage = Usage(prompt_tokens=0, completion_tokens=entry.num_tokens, cached_tokens=0)
            done = Done(cause, usage, Timing(entry.opened, first_token=entry.first_output, ended=now), message)
            outputs.append(Output(entry.request, "", (), done=done))
        self._deliver(outputs)
        self.asks.fail(message)
