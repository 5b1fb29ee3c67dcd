"""An exception at any line: which lines the actors of a simulated run go through, and that run with one that raises.

    found = places_of(workload)                  # every line that handlers went through, with how often
    outcome = inject(workload, found[7], hit=1)  # the first time that line is reached, it raises

Whatever the line is, at most one request ends by it, with cause `internal`; every other one gets exactly its tokens,
all books are empty at rest, every property of the records holds, and no actor is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from types import CodeType, FrameType
from typing import Any, NamedTuple

from pawl.actors.control.requests import AbortRequests
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Refused
from pawl.actors.messages.memory import MemoryReleased
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.open_requests import HTTP_INTERNAL
from pawl.actors.runtime.dead_letters import DeadLetter
from pawl.actors.runtime.receiver import Phase
from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.faults import FaultKind, Faults
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.simple import Fair, Strategy
from pawl.actors.simulation.system import ActorFailure
from pawl.lifecycle.records import Record, StepPlanned, StepRolledBack, Submitted, int32s
from pawl.lifecycle.states import Cause
from pawl.loops.recovery import FAILED, FAILED_ORDER
from pawl.testing.at_rest import EndChecks
from pawl.testing.clients import Arrive, Client, FrontDesk, Leave, Steer, Undo
from pawl.testing.cluster import NO_FAULTS, Cluster, system_of
from pawl.testing.expectations import PropertyFailed
from pawl.testing.lines import lines_that_raise, watched
from pawl.testing.models import GHOST
from pawl.testing.named import may_end
from pawl.testing.replica import raise_first, record_properties
from pawl.testing.tracer import Tracer
from pawl.testing.workload import Arrival, Workload

MISSED = "does not know"
"""So ends what is told of replicas that differ: one that has failed at an order, as its sender is told, does."""


class InjectedValue(ValueError):
    """Raised where a place says so."""


class InjectedKey(KeyError):
    """Raised where a place says so."""


class InjectedMemory(MemoryError):
    """Raised where a place says so."""


class InjectedRecursion(RecursionError):
    """Raised where a place says so."""


INJECTED: tuple[type[Exception], ...] = (InjectedValue, InjectedKey, InjectedMemory, InjectedRecursion)
SECRET = "what a client wrote"


class Place(NamedTuple):
    """One line of a handler, or of what a handler calls."""

    file: str
    """Below the package."""
    function: str
    line: int
    hits: int = 0
    """How often the run came by."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


class InjectedChecks(EndChecks):
    """A request may be lost to the failure that was planted, and a prefill may take its lease. What failed in the
    middle may be counted or not."""

    run: InjectedCluster

    def check_pairs(self) -> None:
        if not self.run.has_failed:
            super().check_pairs()

    def check_counted(self) -> None:
        if not self.run.has_failed:
            super().check_counted()

    def check_agreement(self) -> None:
        answers = (answer for answers in self.run.desk.answers for answer in answers)
        # Who has failed at an order differs from the others, as its sender is told.
        if not (self.run.has_failed and any(FAILED_ORDER in answer.message for answer in answers)):
            super().check_agreement()

    def _may_be_lost(self, letter: DeadLetter) -> bool:
        # A scheduler that goes on says again what it serves, perhaps when who is to hear it has stopped.
        again = self.run.has_failed and isinstance(letter.message, MemoryReleased | WeightsServed)
        return again or super()._may_be_lost(letter)

    def check_cause(self, client: Client, arrival: Arrival, cause: Cause) -> None:
        budget = self.run.system.faults
        # What was planted may be the second strike of a request that the worker has lost a step of.
        second = cause is Cause.WORKER_LOST and budget.left[FaultKind.STRIKE] < budget.faults.strike
        if not self.run.has_failed or not (cause is Cause.INTERNAL or second):
            super().check_cause(client, arrival, cause)

    def excuses(self, answer: Reply) -> bool:
        told = *(kind.__name__ for kind in INJECTED), FAILED_ORDER
        return self.run.has_failed and not answer.ok and any(words in answer.message for words in told)

    def check_output(self, client: Client) -> None:
        if self.run.has_failed and _internal(client):  # cut off anywhere
            arrival = self.understood(client) or client.arrival
            self.run.model.expectations.check_beginning(
                arrival, client.drawn_by, client.tokens, client.text, client.request
            )
        else:
            super().check_output(client)


class InjectedDesk(FrontDesk):
    """Its clients get a 500 where a call of the gateway raises, as HTTP clients do."""

    def spares(self, message: Any, error: Exception) -> bool:
        match message:
            case Arrive(index):
                for client in self.calls[index]:
                    client.refused(Refused(0, Cause.INTERNAL, FAILED, HTTP_INTERNAL))
            case Leave(index):
                client = self.clients[index]
                entry = self.requests.get(client.request or 0)
                client.left = entry is None or entry.sink is None
            case Steer(index):
                self._steered(index, Reply(0, False, FAILED_ORDER))
            case Undo(index):
                self._undone(index, Reply(0, False, FAILED_ORDER))
            case _:
                return super().spares(message, error)
        self.told_of(error)
        return True


class InjectedCluster(Cluster):
    """A run that may lose one request, to the failure that was planted."""

    make_checks = InjectedChecks
    make_desk = InjectedDesk
    has_failed = True
    """Whether it may be that what was planted has been raised."""

    def tolerates(self, failure: ActorFailure) -> bool:
        cell = self.system.find(failure.name)
        return _is_injected(failure.error) and cell is not None and cell.phase is not Phase.ENDED

    def _report(self, name: str, explanation: str, request: int | None) -> None:
        # A plan that fails is told as a property that does not hold, by the name of what was raised, in a policy too.
        raised = explanation.removeprefix("PolicyFailed: ").startswith(tuple(kind.__name__ for kind in INJECTED))
        if not raised and not explanation.endswith(MISSED):
            super()._report(name, explanation, request)

    def judge_whole(self) -> None:
        if not self.has_failed:
            super().judge_whole()
            return
        # A replay ends where the scheduler survived a failure, and every property where a record could not be written.
        for replica in self.replicas:
            if not replica.lost:
                raise_first(replica.monitor.finish())

    def at_rest(self) -> None:
        super().at_rest()
        if not self.has_failed:
            return
        struck = set().union(*(_struck(replica.trace.records) for replica in self.replicas))
        if len(self._calls_lost(struck)) > 1:
            lost = self.ended_internally()
            raise PropertyFailed("fault_isolation", f"one failure ended requests {lost}", lost[0])

    def _calls_lost(self, struck: Set[int]) -> list[int]:
        """Calls of clients that were told of a failure: who sends several requests in one may lose them all. Those are
        left out that were `struck` before: whoever is part of two failures ends, whosever the second one is; and those
        that an order was to end, which may be several by one message."""
        return [
            index
            for index, clients in enumerate(self.desk.calls.values())
            if any(
                _internal(client) and client.request not in struck and not self._was_to_end(client)
                for client in clients
            )
        ]

    def _was_to_end(self, client: Client) -> bool:
        orders = [each for each in self.workload.controls if isinstance(each.body, AbortRequests)]
        return any(may_end(order, client) for order in orders)

    def ended_internally(self) -> list[int]:
        """Requests whose clients were told of a failure of the server."""
        return [client.request or 0 for client in self.desk.clients if _internal(client)]


def _is_injected(error: BaseException | None) -> bool:
    """What was planted, or what came of that on the way."""
    while error is not None and not isinstance(error, INJECTED):
        error = error.__context__
    return error is not None


def _struck(records: Sequence[Record]) -> set[int]:
    """Requests that were in flight when the worker lost a step."""
    struck, request_of, planned = set[int](), dict[int, int](), dict[int, list[int]]()
    for record in records:
        match record:
            case Submitted():
                request_of[record.row] = record.request
            case StepPlanned():
                planned[record.step] = [request_of[row] for row in int32s(record.rows).tolist()]
            case StepRolledBack() if not record.blameless:
                struck.update(planned[record.step])
    return struck


def _internal(client: Client) -> bool:
    ends = (client.refusal, client.done)
    return any(end is not None and end.cause is Cause.INTERNAL for end in ends)


def injected_cluster(workload: Workload, source: Strategy, faults: Faults = NO_FAULTS) -> InjectedCluster:
    """The engine that serves `workload`."""
    return InjectedCluster(system_of(workload, source, faults), workload, record_properties, GHOST)


def places_of(
    workload: Workload, strategy: Callable[[int], Strategy] = lambda seed: Fair(), faults: Faults = NO_FAULTS
) -> Sequence[Place]:
    """Every place that the run of this workload, with these faults, goes through in its handlers, in the order of the
    source."""
    hits: Counter[Place] = Counter()

    def seen(frame: FrameType) -> None:
        code, file = frame.f_code, watched(frame.f_code.co_filename)
        if file is not None and frame.f_lineno in lines_that_raise(code):
            hits[Place(file, code.co_qualname, frame.f_lineno)] += 1

    _run(workload, strategy, faults, Tracer(lambda code: watched(code.co_filename) is not None, seen))
    return [place._replace(hits=count) for place, count in sorted(hits.items())]


class Injection(NamedTuple):
    """What came of one exception."""

    struck: bool
    """The place was reached."""
    error: Exception | None
    """What did not hold, None where all did."""
    ended: tuple[int, ...] = ()
    """Requests that it ended."""


def inject(
    workload: Workload,
    place: Place,
    hit: int,
    raised: type[Exception] = InjectedValue,
    strategy: Callable[[int], Strategy] = lambda seed: Fair(),
    faults: Faults = NO_FAULTS,
) -> Injection:
    """Run the workload with an exception when `place` is reached for the `hit`-th time, counted from 1. `faults` are of
    the world, and strike as the strategy has it."""
    left, struck = hit, False

    def strike(frame: FrameType) -> None:
        nonlocal left, struck
        if frame.f_lineno == place.line and not struck:
            left -= 1
            if not left:
                struck = True
                raise raised(SECRET)

    def wants(code: CodeType) -> bool:
        return not struck and code.co_qualname == place.function and watched(code.co_filename) == place.file

    try:
        run = _run(workload, strategy, faults, Tracer(wants, strike))
    except Exception as error:
        return Injection(struck, error)
    return Injection(struck, None, tuple(run.ended_internally()))


def _run(workload: Workload, strategy: Callable[[int], Strategy], faults: Faults, tracer: Tracer) -> InjectedCluster:
    """Raises what a property says."""
    source = strategy(0)
    source.begin()
    with silence(), tracer.on():
        run = injected_cluster(workload, source, faults)
        drive(run)
    return run
