"""Who has sent what, and what each was told: the properties of what requests get, of order, and of progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pawl.testing.expectations import PropertyFailed
from pawl.testing.subject.ghost import PageGhost
from pawl.testing.subject.port import Accounting, Ended, Offers, Output, Request, Segment
from pawl.testing.subject.workload import Arrival, Workload


@dataclass(eq=False)
class Client:
    """One request from its client's side."""

    number: int
    arrival: Arrival
    order: int = 0
    """Of its arrival among all that were sent; 0: it was not sent yet."""
    told: list[int] = field(default_factory=list)
    ended: Ended = ""
    begun: bool = False
    """A step has computed something of it, and it was not preempted since."""
    overtaken: list[int] = field(default_factory=list)
    """Requests that came later and began while it waited."""
    departures: int = 0
    """Times that it was preempted."""

    @property
    def name(self) -> str:
        return f"client {self.number}"

    @property
    def live(self) -> bool:
        return self.order > 0 and not self.ended

    @property
    def may_leave(self) -> bool:
        leaves = self.arrival.leaves_after
        return self.live and leaves is not None and len(self.told) >= leaves

    @property
    def phase(self) -> tuple[bool, bool, str, int]:
        return self.live, self.begun, self.ended, len(self.told)

    def request(self, ghost: PageGhost) -> Request:
        """What it sends; the ghost begins with it. Its stop token is the one that the ghost will say."""
        arrival = self.arrival
        request = Request(
            number=self.number,
            prompt=arrival.prompt,
            max_new_tokens=arrival.max_new_tokens,
            priority=arrival.priority,
            salt=arrival.salt,
        )
        ghost.begin(request)
        if arrival.stop_after is None:
            return request
        stop = ghost.texts[self.number].output(arrival.stop_after)[-1]
        return msgspec.structs.replace(request, stop_token_ids=(stop,))


class Clients:
    """All of a workload. Methods that judge raise PropertyFailed."""

    def __init__(self, workload: Workload, offers: Offers, ghost: PageGhost) -> None:
        self._clients = [Client(number, arrival) for number, arrival in enumerate(workload.arrivals, 1)]
        self._settings = workload.settings
        self._offers = offers
        self._ghost = ghost
        self._num_sent = 0
        self._num_steps = 0
        self._most_steps = most_steps(workload)
        self.num_told = 0
        """Tokens that all of them together were told."""
        self.computed: dict[int, int] = {}
        """Positions that each request has computed, steps in flight included."""

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients)

    def __getitem__(self, number: int) -> Client:
        return self._clients[number - 1]

    @property
    def num_live(self) -> int:
        return sum(client.live for client in self._clients)

    def to_send(self) -> Iterator[Client]:
        """Those that have not sent their request yet."""
        return (client for client in self._clients if not client.order)

    def sent(self, client: Client) -> None:
        self._num_sent += 1
        client.order = self._num_sent
        self.computed[client.number] = 0

    def aborted(self, client: Client) -> None:
        client.ended = "abort"

    def how_ended(self, request: int) -> str:
        """In words that follow the number of a request."""
        ended = self[request].ended
        return "was aborted" if ended == "abort" else f"has ended ({ended})" if ended else "has not ended"

    # ---- what a step may be ----

    def preempted(self, request: int) -> None:
        self._check_live(request, "preempted")
        self.computed[request] = 0
        client = self[request]
        client.departures += 1
        client.begun, client.overtaken = False, []

    def planned(self, number: int, segments: Sequence[Segment]) -> None:
        """A step was decided: it is of live requests, within the limits, and newcomers began in order."""
        for segment in segments:
            self._check_live(segment.request, "computed")
            self._check_place(segment)
        settings, positions = self._settings, sum(segment.count for segment in segments)
        if len(segments) > settings.max_running:
            words = f"step {number} computes {len(segments)} requests, and {settings.max_running} may run"
            raise PropertyFailed("limits_hold", words)
        if self._offers.step_tokens and positions > settings.max_step_tokens:
            words = f"step {number} computes {positions} positions, and {settings.max_step_tokens} are allowed"
            raise PropertyFailed("limits_hold", words)
        self._num_steps += bool(segments)
        if self._num_steps > self._most_steps:
            words = f"it has not ended after {self._num_steps} steps; {self._most_steps} are enough for everybody"
            raise PropertyFailed("bounded_progress", words, next(each.number for each in self if each.live))
        self._begin([self[segment.request] for segment in segments if not self[segment.request].begun])

    def _check_live(self, request: int, verb: str) -> None:
        client = self[request]
        if client.live:
            return
        name = "abort_is_total" if client.ended == "abort" else "ends_once"
        raise PropertyFailed(name, f"it {self.how_ended(request)}, and is {verb} after that", request)

    def _check_place(self, segment: Segment) -> None:
        client, end = self[segment.request], segment.start + segment.count
        known = len(client.arrival.prompt) + len(client.told)
        if end < known and (segment.samples or not self._settings.chunked_prefill):
            words = f"a step computes it up to position {end - 1}" + (" and draws a token" if segment.samples else "")
            raise PropertyFailed("known_tokens", f"{words}, and it has {known} tokens already", segment.request)
        computed = self.computed[segment.request]
        if segment.start > computed and not self._settings.prefix_caching:
            words = f"it goes on from position {segment.start}, has computed {computed}, and nothing is to be cached"
            raise PropertyFailed("page_content", words, segment.request)

    def _begin(self, newcomers: Sequence[Client]) -> None:
        for client in newcomers:
            client.begun = True
        limit = self._offers.max_overtaken
        if limit is None:
            return
        for waiting in self:
            if not waiting.live or waiting.begun:
                continue
            for client in newcomers:
                rank, other = waiting.arrival.priority, client.arrival.priority
                if other < rank and self._settings.priorities:
                    words = f"request {client.number} of priority {other} began before it, whose priority is {rank}"
                    raise PropertyFailed("admission_order", words, waiting.number)
                if client.order > waiting.order and other == rank:
                    waiting.overtaken.append(client.number)
            if len(waiting.overtaken) > limit:
                who = " and ".join(map(str, waiting.overtaken))
                words = f"{who} came later and began before it; {limit or 'none'} may"
                raise PropertyFailed("admission_order", words, waiting.number)

    def draws(self, segment: Segment) -> bool:
        """Whether the model draws a token after a segment."""
        if segment.samples is not None:
            return segment.samples
        client = self[segment.request]
        return segment.start + segment.count >= len(client.arrival.prompt) + len(client.told)

    def check_named(self, books: Accounting) -> None:
        """The books name requests that were sent, and all that live, where they name any."""
        kept = books.requests
        for request in (*books.owned, *(kept or ())):
            if not (1 <= request <= len(self._clients) and self[request].order):
                raise PropertyFailed("well_formed", f"the books name request {request}, which nobody has sent")
        for client in self:
            if kept is not None and client.live and client.number not in kept:
                raise PropertyFailed("bounded_progress", "it has not ended, and is not kept any more", client.number)

    def check_going_on(self) -> None:
        """Nothing is scheduled, nothing in flight, and nobody will come."""
        waiting = [client.number for client in self if client.live]
        if waiting:
            words = "nothing is scheduled any more, and it has not ended"
            raise PropertyFailed("bounded_progress", words, waiting[0])

    # ---- what clients are told ----

    def check_told(self, drawn: Mapping[int, int], departures: Mapping[int, int], outputs: Sequence[Output]) -> None:
        """A step came back: everybody live hears the token that was drawn for it, and nobody else anything. A request
        that was preempted since the step was decided, and `departures` are from then, may have its token again later.
        """
        hears = {output.request for output in outputs if output.tokens}
        for output in outputs:
            self._hear(output)
        for request, token in drawn.items():
            client = self[request]
            if client.live and request not in hears and client.departures == departures[request]:
                words = f"token {token} was drawn for it, output token {len(client.told) + 1}, and it is told nothing"
                raise PropertyFailed("outputs", words, request)

    def _hear(self, output: Output) -> None:
        client, request = self[output.request], output.request
        if client.ended:
            if client.ended == "abort" and output.ended in ("abort", "") and not output.tokens:
                return
            name = "abort_is_total" if client.ended == "abort" else "ends_once"
            what = f"is told {[*output.tokens]}" if output.tokens else f"ends again ({output.ended})"
            raise PropertyFailed(name, f"it {self.how_ended(request)}, and {what} after that", request)
        client.told += output.tokens
        self.num_told += len(output.tokens)
        self._check_output(client)
        self._check_end(client, output.ended)
        client.ended = output.ended

    def _check_output(self, client: Client) -> None:
        wanted = self._ghost.texts[client.number].output(len(client.told))
        if client.told != wanted:
            pairs = enumerate(zip(client.told, wanted, strict=True))
            place, (token, own) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
            words = f"its output token {place + 1} is {token}, and its prompt alone implies {own}"
            raise PropertyFailed("outputs", words, client.number)

    def _check_end(self, client: Client, ended: Ended) -> None:
        count, limit, stop = len(client.told), client.arrival.max_new_tokens, self._stop_of(client)
        due = [end for end, place in (("stop", stop), ("length", limit)) if place is not None and count >= place]
        if (stop is not None and count > stop) or count > limit:
            most = f"its stop token is number {stop}" if stop is not None and count > stop else f"it asked for {limit}"
            raise PropertyFailed("ends_once", f"it is told {count} tokens, and {most}", client.number)
        if ended in due or not (ended or due):
            return
        if not ended:
            reason = f"has its stop token, number {stop}" if "stop" in due else f"has all {limit} tokens"
            raise PropertyFailed("ends_once", f"it {reason}, and has not ended", client.number)
        words = f"it ended ({ended}) with {count} of {limit} tokens"
        raise PropertyFailed("ends_once", words, client.number)

    def _stop_of(self, client: Client) -> int | None:
        """The place at which its stop token is drawn first, from 1."""
        after = client.arrival.stop_after
        if after is None:
            return None
        output = self._ghost.texts[client.number].output(after)
        return output.index(output[-1]) + 1


def most_steps(workload: Workload) -> int:
    """Steps that are enough for any order: those that each request needs alone, once more for each other request that
    may take its memory, and for each time that steps are lost."""
    settings = workload.settings
    share = max(1, settings.max_step_tokens // max(1, len(workload.arrivals))) if settings.chunked_prefill else None
    total = 0
    for arrival in workload.arrivals:
        tokens = len(arrival.prompt) + arrival.max_new_tokens
        total += (1 if share is None else -(-tokens // share)) + arrival.max_new_tokens + 1
    return (settings.in_flight + 2) * total * len(workload.arrivals) * (1 + workload.lost_steps)
