"""One run of a subject: clients, a device and an operator call it in an order that a source of choices decides.

What may happen next, in the order in which a fair queue would let it happen:

    client      sends its request; hangs up, once it has been told as much as it wanted to see
    operator    flushes the cache
    device      the oldest step in flight comes back
    scheduler   decides the next step, where another may be in flight
    a fault     all steps in flight are lost

A step is computed when it is scheduled, since a device takes steps in order; what it drew is told when it comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import NamedTuple

from pawl.actors.simulation.choice import Choices, ChoiceSource, Kind, Value
from pawl.actors.simulation.system import ActorFailure
from pawl.testing.expectations import PropertyFailed
from pawl.testing.subject.books import Books
from pawl.testing.subject.clients import Client, Clients
from pawl.testing.subject.ghost import PageGhost, Undo
from pawl.testing.subject.guarded import LIMIT_S, GuardedSubject
from pawl.testing.subject.observed import Observed
from pawl.testing.subject.port import Accounting, Output, Refused, Segment, Step, Subject
from pawl.testing.subject.properties import PAGES, REFERENCES
from pawl.testing.subject.telling import lines_of
from pawl.testing.subject.workload import Workload

MOST_IDLE = 3
"""Times in a row that a subject may schedule nothing although somebody waits and nothing is in flight."""


class Flight(NamedTuple):
    """A step in flight, and what it has drawn."""

    number: int
    segments: tuple[Segment, ...]
    drawn: dict[int, int]
    undo: Undo
    computed: dict[int, int]
    """Of each of its requests, the positions that were computed before."""
    departures: dict[int, int]
    """Of each of its requests, how often it was preempted before."""


class _Event(NamedTuple):
    option: Value
    run: Callable[[], None]


class SubjectRun:
    """What `pawl.actors.simulation.exploration` runs."""

    def __init__(
        self,
        kind: type[Subject],
        workload: Workload,
        source: ChoiceSource,
        *,
        limit_s: float = LIMIT_S,
        tells: set[str] | None = None,
    ) -> None:
        """What the subject tells of itself is added to `tells`."""
        self.choices = Choices()
        self.failures: list[ActorFailure] = []
        self.num_deliveries = 0
        """Events that have happened."""
        self.workload = workload
        self.offers = kind.offers
        self.observed = Observed(workload.settings)
        self.subject = GuardedSubject(kind, workload.settings, limit_s)
        self.books: Books | None = None
        """None: the subject does not tell where its pages are."""
        self.ghost = PageGhost(workload.settings.page_size)
        self.clients = Clients(workload, kind.offers, self.ghost)
        self.in_flight: list[Flight] = []
        self.num_steps = 0
        self._source = source
        self._num_idle = 0
        self._losses_left = workload.lost_steps
        self._flushes = list(workload.flushes)
        self.reached: set[str] = set()
        """What has happened, by names for the report."""
        self._tells = set[str]() if tells is None else tells

    # ---- what exploration asks for ----

    def step(self) -> bool:
        """Let one event happen. False: all is over."""
        if not self.num_deliveries:
            self._begin()
        events = list(self._events())
        if not events:
            return False
        index = 0
        if len(events) > 1:
            index = self._source.choose(Kind.NEXT, [event.option for event in events])
            self.choices.add(Kind.NEXT, index, events[index].option.label)
        self.num_deliveries += 1
        events[index].run()
        return True

    def check_not_stuck(self) -> None:
        self._rest()

    def dump(self) -> str:
        """The calls so far."""
        return "\n".join(f"  {line}" for line in lines_of(self.subject.calls[1:]))

    def state(self) -> Hashable:
        """How far everybody is."""
        return len(self.in_flight), tuple([client.phase for client in self.clients])

    def _begin(self) -> None:
        """Make the subject: here, as whatever it does is a step of the run."""
        self.subject.make()
        accounting = self.subject.pages()
        if accounting is not None:
            self.books = Books(self.workload.settings, accounting)
            self._tells |= {PAGES} if accounting.references is None else {PAGES, REFERENCES}

    # ---- what may happen ----

    def _events(self) -> Iterator[_Event]:
        patient = []
        for client in self.clients.to_send():
            event = self._event(client.name, "sends", partial(self._send, client))
            if client.arrival.after_tokens <= self.clients.num_told:
                yield event
            else:
                patient.append(event)
        for client in self.clients:
            if client.may_leave:
                yield self._event(client.name, "hangs up", partial(self._abort, client))
        if self._flushes and (self._flushes[0] <= self.clients.num_told or self._at_rest):
            yield self._event("operator", "flushes", self._flush)
        if self.in_flight:
            yield self._event("device", "step comes back", self._come_back)
        live = self.clients.num_live > 0
        if live and len(self.in_flight) < self.workload.settings.in_flight and not self._num_idle:
            yield self._event("scheduler", "schedules", self._schedule)
        elif patient and not self.in_flight and (not live or self._num_idle):
            yield patient[0]
        elif live and not self.in_flight and self._num_idle and not self._gives_way:
            yield self._event("scheduler", "schedules again", self._schedule)
        if self.in_flight and self._losses_left:
            yield self._event("device", "steps are lost", self._lose, fault=True)

    @staticmethod
    def _event(owner: str, what: str, run: Callable[[], None], *, fault: bool = False) -> _Event:
        label = f"{owner}: {what}"
        return _Event(Value(label, (label, 0), owner, "", fault), run)

    @property
    def _at_rest(self) -> bool:
        return not self.in_flight and not self.clients.num_live and not any(self.clients.to_send())

    @property
    def _gives_way(self) -> bool:
        """A scheduler that has had nothing to do so often goes on once somebody has come: an order in which it is asked
        again and again instead would never end."""
        return self._num_idle >= MOST_IDLE and any(self.clients.to_send())

    # ---- what happens ----

    def _send(self, client: Client) -> None:
        request = client.request(self.ghost)
        self._num_idle = 0
        self.observed.submitted(request)
        try:
            self.subject.submit(request)
        except Refused as error:
            words = f"it was refused ({error!s:.200}), and fits: {_size(self.workload, client)}"
            raise PropertyFailed("bounded_progress", words, client.number) from error
        self.clients.sent(client)
        self._look()

    def _abort(self, client: Client) -> None:
        self._num_idle = 0
        at_work = any(client.number in flight.departures for flight in self.in_flight)
        self.reached.add("abort in flight" if at_work else "abort")
        self.subject.abort(client.number)
        self.clients.aborted(client)
        self.observed.aborted(client.number)
        self._look()

    def _flush(self) -> None:
        at_rest = self._at_rest
        self._flushes.pop(0)
        self._num_idle = 0
        done = self.subject.flush()
        self.reached.add("flush" if done else "flush refused")
        if not done and at_rest:
            raise PropertyFailed("flush_at_rest", "a flush was refused although everybody has ended")
        books = self._look()
        if done and books is not None and books.cached and not self.clients.num_live:
            words = f"the cache was flushed, and pages {[*books.cached]} are still cached"
            raise PropertyFailed("flush_at_rest", words)

    def _schedule(self) -> None:
        number = self.num_steps + 1
        step = self.subject.schedule(number, self.ghost.texts.keys())
        if step is None:
            self._idle()
            self._look()
            return
        self.num_steps = number
        self._launch(number, step)

    def _idle(self) -> None:
        self._num_idle += 1
        if not self.in_flight and self._num_idle >= MOST_IDLE and not any(self.clients.to_send()):
            self.clients.check_going_on()

    def _launch(self, number: int, step: Step) -> None:
        segments = tuple(step.segments)
        for request in step.preempted:
            self.reached.add("preemption")
            self.clients.preempted(request)
            self.observed.preempted(request)
        self.clients.planned(number, segments)
        if segments:
            self._num_idle = 0
        else:
            self._idle()
        books = self._look()
        if books is not None and self.books is not None:
            self.books.judge_step(segments, books, self.ghost.page_size)
        before = {each.request: self.clients.computed[each.request] for each in segments}
        draws = {each.request: self.clients.draws(each) for each in segments}
        drawn, undo = self.ghost.compute(number, segments, draws)
        self.reached.update(_reached(segments, before, draws))
        if self.in_flight:
            self.reached.add("steps overlap")
        self.clients.computed.update({each.request: each.start + each.count for each in segments})
        departures = {each.request: self.clients[each.request].departures for each in segments}
        self.in_flight.append(Flight(number, segments, drawn, undo, before, departures))
        self.observed.planned(number, segments, draws)

    def _come_back(self) -> None:
        flight = self.in_flight.pop(0)
        self._num_idle = 0 if flight.segments else self._num_idle
        outputs = self.subject.apply(flight.number, flight.drawn, self.ghost.texts.keys())
        self.clients.check_told(flight.drawn, flight.departures, outputs)
        books = self._look()
        self.observed.committed(flight.number, flight.drawn, outputs, books)

    def _lose(self) -> None:
        self._losses_left -= 1
        self.reached.add("steps lost")
        self._num_idle = 0
        for flight in reversed(self.in_flight):
            self.subject.lost(flight.number)
            self.ghost.undo(flight.undo)
            self.clients.computed.update(flight.computed)
            self.observed.lost(flight.number)
        self.in_flight.clear()
        self._look()

    def _look(self) -> Accounting | None:
        """Judge the books as they are now."""
        books = self.subject.pages()
        if books is not None and self.books is not None:
            self.clients.check_named(books)
            self.books.judge(books, self.ghost, self.clients.computed)
            self.ghost.forget(books.free)
        return books

    def _rest(self) -> None:
        """Everybody has ended: a subject may tidy up with one more step, and then nothing is left."""
        step = self.subject.schedule(self.num_steps + 1, self.ghost.texts.keys())
        if step is not None:
            self.clients.planned(self.num_steps + 1, tuple(step.segments))
            outputs: list[Output] = self.subject.apply(self.num_steps + 1, {}, self.ghost.texts.keys())
            self.clients.check_told({}, {}, outputs)
        books = self._look()
        if books is not None and self.books is not None:
            self.books.judge_rest(books, self.clients.how_ended)
        self.observed.stopped(books)


def _reached(segments: tuple[Segment, ...], before: dict[int, int], draws: dict[int, bool]) -> Iterator[str]:
    """What a step shows of what happens."""
    if len(segments) > 1:
        yield "several run"
    for segment in segments:
        if segment.start > before[segment.request]:
            yield "cached prefix"
        if not draws[segment.request]:
            yield "chunk"


def _size(workload: Workload, client: Client) -> str:
    arrival, settings = client.arrival, workload.settings
    return (
        f"{len(arrival.prompt)} prompt tokens and {arrival.max_new_tokens} new ones need {workload.pages_of(arrival)} "
        f"of {settings.num_pages} pages"
    )
