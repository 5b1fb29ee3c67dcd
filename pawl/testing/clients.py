"""Clients of a simulated engine: they send requests, read, hang up, and send control messages, within the gateway."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from pawl.actors.control import row_of
from pawl.actors.control.requests import AbortRequests
from pawl.actors.control.sessions import SIMULATED, OpenSessionByName
from pawl.actors.gateway import FromPeers, Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Output, Refused, Submit, TextOptions, TokenLogprob
from pawl.actors.messages.memory import UNMOVED
from pawl.actors.names import NAMES, Names
from pawl.actors.sink import Inbox
from pawl.lifecycle.request import SessionParameters
from pawl.lifecycle.states import Cause
from pawl.loops.orders.adapters import LoadAdapter, UnloadAdapter
from pawl.loops.recovery import FAILED_ORDER
from pawl.loops.residency import MOVING, UPDATING
from pawl.loops.versions import DEFAULT_VERSION
from pawl.testing.expectations import DrawnBy, Expectations
from pawl.testing.named import check_aborted, check_sent, have_namesake, names
from pawl.testing.parameters import parameters_of
from pawl.testing.workload import Arrival, Control, Workload

MOST_UNDONE = 8
GONE = ("is gone", "is not running", "is being started again")
"""Words of an answer that a lost replica owed."""
LEFT = "has left"
"""Words of one that a replica owed whose time to leave was over."""
AGAIN_S = 0.05
"""Virtual seconds between two tries to undo something."""


class Arrive(msgspec.Struct, frozen=True, tag=True):
    """It is time for this request."""

    index: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """This request's client has hung up."""

    index: int


class Steer(msgspec.Struct, frozen=True, tag=True):
    """It is time for this control message."""

    index: int


class Undo(msgspec.Struct, frozen=True, tag=True):
    """It is time to undo what this control message has done."""

    index: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """It is time for the engine to end."""


class Client(Inbox):
    """One client: keeps all it was told, and hangs up when it is supposed to."""

    def __init__(self, desk: FrontDesk, index: int, arrival: Arrival) -> None:
        super().__init__()
        self.adapter = arrival.adapter
        """The name."""
        self.is_due = False
        """When it was sent its adapter was loaded, and nobody may have unloaded it, nor loaded another of its name."""
        self.had_namesake = False
        """When it was sent, with others of its call, another one had the name of one of them."""
        self.arrival = msgspec.structs.replace(arrival, adapter="")
        self.request: int | None = None
        self.tokens: list[int] = []
        self.text = ""
        self.scores: list[TokenLogprob] = []
        self.prompt_scores: list[TokenLogprob] = []
        self.vectors: list[list[float]] = []
        self.num_ends = 0
        self.left = self.is_over = False
        self.first_at: float | None = None
        """When it saw its first token."""
        self.rid = f"turn {index}" if arrival.session else arrival.rid
        """Its name, where it has one."""
        self._desk = desk
        self.index = index

    def push(self, output: Output) -> None:
        if self.left or self.num_ends:
            self._desk.report("silence_after_abort", "an output after the end", self.request)
        super().push(output)
        if output.tokens and self.first_at is None:
            self.first_at = self._desk.context.now()
        self.tokens += output.tokens
        self.text += output.text
        self.scores += output.logprobs
        self.prompt_scores += output.prompt_logprobs
        if output.embedding is not None:
            self.vectors.append(output.embedding.tolist())
        self.num_ends += output.done is not None
        if output.done is not None:
            self._desk.over(self.index)
        self._desk.told(len(output.tokens))
        self.leave_if_due()

    @property
    def drawn_by(self) -> DrawnBy:
        """Which weights it was told had drawn its tokens."""
        return tuple((span.version, span.start) for span in self.spans) or ((self.version or DEFAULT_VERSION, 0),)

    def refused(self, refused: Refused) -> None:
        super().refused(refused)
        self.num_ends += 1
        self._desk.over(self.index)

    def settle_adapter(self) -> None:
        """It is sent now: from here on its request names where its adapter was read from."""
        named = self._desk.adapters.get(self.adapter) or self._desk.unloaded.get(self.adapter)
        self.is_due = self._desk.has_loaded(self.adapter)
        self.arrival = msgspec.structs.replace(self.arrival, adapter="" if named is None else named.source)

    @property
    def waits(self) -> bool:
        """Whether it was sent, and reads until its end."""
        return self.request is not None and not self.num_ends and not self.left

    def leave_if_due(self) -> None:
        """Hang up, if it is the moment: the gateway learns of it by a message, as from a connection."""
        leaves_after = self.arrival.leaves_after
        if leaves_after is not None and len(self.tokens) >= leaves_after and not self.num_ends and not self.left:
            self._desk.context.send(self._desk.context.name, Leave(self.index))


class FrontDesk(Gateway):
    """The gateway, and the clients at its door."""

    accepts: Any = FromPeers | Arrive | Leave | Steer | Undo | Close

    def __init__(self, workload: Workload, limit: int, expectations: Expectations, names: Names = NAMES) -> None:
        super().__init__(limit, traced=True, short=workload.shape.short, names=names)
        self.report: Callable[[str, str, int | None], None] = lambda name, text, request: None
        self.clients = [Client(self, index, arrival) for index, arrival in enumerate(workload.arrivals)]
        self.answers: list[list[Reply]] = [[] for _ in workload.controls]
        """Of each control message."""
        self._undoing: dict[int, int] = {}
        """Those that are to be undone -> how often that was tried."""
        self.wants_stop = False
        """The engine is to stop, whatever is live."""
        self._workload = workload
        self._expectations = expectations
        self.calls: dict[int, list[Client]] = {}
        """The clients of one call of the gateway, by the index of the first."""
        for index, client in enumerate(self.clients):
            first = next(reversed(self.calls)) if index and client.arrival.with_previous else index
            self.calls.setdefault(first, []).append(client)
        self._named: dict[int, list[Client]] = {}
        """Who waited when an order to end those of its name was given, by its index."""
        self._num_told = 0
        """Output tokens that all clients together have been told."""
        self._later: list[tuple[int, Any]] = []
        """What happens after so many of them, the next one last."""

    @property
    def at_rest(self) -> bool:
        """Every client has had its end, or has hung up, every control message has been answered, and nothing is to
        come."""
        if self.num_live or self._later or self._undoing:
            return False
        return all(client.num_ends or client.left for client in self.clients) and all(self.answers)

    def started(self) -> None:
        waiting = 0
        for first in self.calls:
            arrival = self.clients[first].arrival
            if arrival.at_s or arrival.after_tokens or self._parent(first) is None:
                self._at(arrival, Arrive(first))
            else:
                waiting += 1
        for index, control in enumerate(self._workload.controls):
            self._at(control, Steer(index))
        if self._workload.closing is not None:
            self._later.append((self._workload.closing.after_tokens, Close()))
        # Stable, and then reversed: what comes after equally many tokens keeps its order.
        self._later.sort(key=lambda each: each[0])
        self._later.reverse()
        if self._later and (
            self._later[-1][0] == 0 or len(self._later) >= len(self.calls) + len(self.answers) - waiting
        ):
            # Nobody begins: then whoever would be the first does.
            self._next()

    def _at(self, when: Arrival | Control, message: Any) -> None:
        if when.after_tokens > 0:
            self._later.append((when.after_tokens, message))
        elif when.at_s > 0:
            self.context.after(when.at_s, message)
        else:
            self.context.send(self.context.name, message)

    def may_miss_adapter(self, index: int) -> bool:
        """Whether a request of the same call names an adapter that need not be there."""
        (call,) = [clients for clients in self.calls.values() if self.clients[index] in clients]
        return any(client.adapter and not client.is_due for client in call)

    def has_loaded(self, name: str) -> bool:
        """Whether this adapter was loaded, and nobody may have unloaded any, nor loaded another of its name. Where so
        many are loaded that some must make way, a replica that comes later knows none that rest."""
        orders, shape = [control.body for control in self._workload.controls], self._workload.shape
        loads = [index for index, order in enumerate(orders) if isinstance(order, LoadAdapter)]
        if any(isinstance(order, UnloadAdapter) for order in orders):
            return False
        mine = [self.answers[index] for index in loads if orders[index].name == name]
        if len(loads) > shape.max_loaded_loras and (len(mine) > 1 or shape.max_replicas > 1):
            return False
        return any(answer.ok for answers in mine for answer in answers)

    def told(self, count: int) -> None:
        """A client has been told `count` output tokens."""
        self._num_told += count
        while self._later and self._later[-1][0] <= self._num_told:
            self._next()

    def _parent(self, index: int) -> int | None:
        """The request that this one goes on from."""
        parent = self.clients[index].arrival.turn_of
        return parent if parent is not None and parent < index else None

    def over(self, index: int) -> None:
        """This client is done: turns that go on from its request are sent, where they have no time of their own. One
        whose leaving failed is so again when it has had all."""
        if self.clients[index].is_over:
            return
        self.clients[index].is_over = True
        for first in self.calls:
            arrival = self.clients[first].arrival
            if self._parent(first) == index and not arrival.at_s and not arrival.after_tokens:
                self.context.send(self.context.name, Arrive(first))

    def _next(self) -> None:
        self.context.send(self.context.name, self._later.pop()[1])

    def settled(self) -> None:
        super().settled()
        if self._later and not self.num_live:
            # Somebody left early, and the tokens it waits for will never come.
            self._next()

    def receive(self, message: Any) -> None:
        match message:
            case Arrive(index):
                clients = self.calls[index]
                namesake = have_namesake(self, clients)
                for client in clients:
                    client.settle_adapter()
                    client.had_namesake = namesake
                group = f"call {index}" if len(clients) > 1 else ""
                numbers = self.submit([self._request(client, group) for client in clients], clients)
                for client, number in zip(clients, numbers, strict=True):
                    client.request = number
                check_sent(self, clients)
                for client in clients:
                    client.leave_if_due()
            case Leave(index):
                client = self.clients[index]
                if client.request is not None and not client.num_ends and not client.left:
                    client.left = True
                    self.over(index)
                    self.abort([client.request], Cause.DISCONNECT)
            case Steer(index):
                body = self._workload.controls[index].body
                if isinstance(body, AbortRequests):
                    self._named[index] = [client for client in self.clients if client.waits and names(body, client)]
                row_of(body).put(self, body, partial(self._steered, index))
            case Undo(index):
                body = row_of(self._workload.controls[index].body).undone_by
                assert body is not None
                row_of(body).put(self, body, partial(self._undone, index))
            case Close():
                self._close()
            case _:
                super().receive(message)

    def _steered(self, index: int, reply: Reply) -> None:
        self.answers[index].append(reply)
        check_aborted(self, self._named.pop(index, ()), reply)
        control = self._workload.controls[index]
        if row_of(control.body).undone_by is not None:
            self._undoing[index] = 0
            self.context.after(control.undo_s, Undo(index))

    def _undone(self, index: int, reply: Reply) -> None:
        """What is refused because something else is under way is asked for again, as an operator would."""
        self._undoing[index] += 1
        later = any(
            words in reply.message for words in (UPDATING, MOVING, UNMOVED, LEFT, FAILED_ORDER, *GONE)
        )  # several replicas speak at once
        if later and self._undoing[index] < MOST_UNDONE:
            self.context.after(AGAIN_S, Undo(index))
        else:
            del self._undoing[index]

    def _close(self) -> None:
        closing = self._workload.closing
        assert closing is not None
        if closing.grace_s is None:
            self.draining = self.wants_stop = True
        else:
            self.drain(closing.grace_s)

    def _request(self, client: Client, group: str) -> Submit:
        arrival, index = client.arrival, client.index
        return Submit(
            request=0,
            rid=client.rid,
            session=self._session(index) if arrival.session else None,
            scored_from=1 if arrival.session and arrival.prompt_logprobs else 0,
            group=group,
            token_ids=arrival.prompt,
            sampling=parameters_of(arrival),
            text_options=TextOptions(
                stop=self._expectations.stop_strings(arrival),
                include_stop=arrival.include_stop,
                min_tokens=arrival.stop_from,
                detokenize=not arrival.silent,
                return_prompt=arrival.return_prompt,
            ),
            priority=arrival.priority,
            timeout_s=arrival.timeout_s,
            cache_salt=arrival.salt,
            adapter=client.adapter,
        )

    def _session(self, index: int) -> SessionParameters:
        arrival, parent = self.clients[index].arrival, self._parent(index)
        bodies = [control.body for control in self._workload.controls]
        if any(isinstance(body, OpenSessionByName) and body.streaming for body in bodies) and not arrival.replace:
            return SessionParameters(SIMULATED)
        rid = None if parent is None else f"turn {parent}"
        return SessionParameters(SIMULATED, rid, arrival.offset, arrival.replace, arrival.drop_previous_output)
