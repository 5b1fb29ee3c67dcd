"""What is checked of a simulated engine that rests, and of one that has ended: clients, books, letters, answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

import msgspec

from pawl.actors.control import Ask, row_of
from pawl.actors.fleet import OTHER_WEIGHTS
from pawl.actors.messages.control import LATE, Reply, Stalled
from pawl.actors.messages.generate import Usage
from pawl.actors.messages.hand_over import DecoderDown, DecoderUp, PrefillerDown, PrefillerUp
from pawl.actors.messages.links import ToLinker
from pawl.actors.messages.replicas import Parted
from pawl.actors.messages.transfer import Saved
from pawl.actors.names import NAMES
from pawl.actors.simulation.faults import FaultKind
from pawl.actors.storage import Storage
from pawl.features.request import BAD_GRAMMAR
from pawl.lifecycle.properties.base import ENDS
from pawl.lifecycle.records import Submitted, Transition, WeightsMoved, int32s
from pawl.lifecycle.states import ABORT_CAUSES, Cause
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.requests import Abort, Finish
from pawl.loops.requests import MAX_STRIKES
from pawl.memory.tiers.keys import split_keys
from pawl.memory.violation import MemoryViolation
from pawl.testing.agreement import check_agreement, weights_refused
from pawl.testing.asked import check_aborts, check_accepted, check_asked, check_times, ended_with_its_text
from pawl.testing.books import needless_timers, open_books
from pawl.testing.clients import GONE, LEFT, Client
from pawl.testing.counted import check_counted
from pawl.testing.expectations import PropertyFailed, check_refusal, check_usage
from pawl.testing.named import may_end
from pawl.testing.pairs import check_pairs, unlinked
from pawl.testing.profiles import profile_at_rest

if TYPE_CHECKING:
    from pawl.actors.runtime.dead_letters import DeadLetter
    from pawl.testing.cluster import Cluster
    from pawl.testing.replica import SimulatedReplica
    from pawl.testing.workload import Arrival

NARRATORS = frozenset({NAMES.scheduler, NAMES.gateway, NAMES.recorder})
"""Actors without which a trace has no end."""

WHILE_STOPPING = (Parted, DecoderUp, DecoderDown, PrefillerUp, PrefillerDown, Stalled, *get_args(ToLinker))
"""While all stop two replicas may find each other, or part, and a step may be slow: those who are told may be gone."""


class EndChecks:
    """The checks of one run."""

    def __init__(self, run: Cluster) -> None:
        self.run = run

    def check_rest(self) -> None:
        """Nothing is live: every owner's books are empty. The scheduler looks through its own when it stops."""
        run = self.run
        try:
            run.desk.check()
        except Exception as error:
            raise PropertyFailed("auxiliary_conservation", f"at rest: {error}") from error
        if run.crashed:
            return
        self.check_agreement()
        gone = {name for replica in run.replicas if replica.lost or replica.left for name in replica.names.own}
        actors = {name: actor for name, actor in run.actors.items() if name not in gone}
        for left in (*open_books(actors), *needless_timers(run.system), *unlinked(run)):
            raise PropertyFailed("auxiliary_conservation", f"at rest: {left}")
        for replica in run.replicas:
            if not replica.lost:
                self._check_replica(replica)

    def check_agreement(self) -> None:
        """What lasts is the same everywhere."""
        check_agreement(self.run)

    def _check_replica(self, replica: SimulatedReplica) -> None:
        """Nothing is left in it."""
        intake, names = replica.scheduler.intake, replica.names
        late = list(filter(intake._newest.has_been, intake._ended_early))
        if late:
            raise PropertyFailed("auxiliary_conservation", f"at rest: aborts of {late}, which have come, are kept")
        counted, seen = replica.scheduler.loop.counters.cached_tokens, replica.usage.total_cached
        if counted != seen:
            raise PropertyFailed("observability_conservation", f"{counted} tokens are counted as cached, {seen} were")
        num_open = replica.actors[names.grammar].num_open
        if num_open:
            raise PropertyFailed("auxiliary_conservation", f"at rest: {num_open} grammars are held")
        misprofiled = profile_at_rest(replica.actors[names.worker].profiler)
        if misprofiled is not None:
            raise PropertyFailed("auxiliary_conservation", f"at rest: a profile: {misprofiled}")
        for fault in self._below(replica):
            raise PropertyFailed("observability_conservation", fault)
        if replica.mirror.content != replica.scheduler.loop.memory.cache.content():
            raise PropertyFailed("observability_conservation", "the cache is not what its events tell")

    def _below(self, replica: SimulatedReplica) -> Iterator[str]:
        """What the scheduler believes of pages below the device, and is not so. Everything has been told."""
        storage = replica.actors.get(replica.names.storage)
        for companion in replica.scheduler.loop.companions:
            if isinstance(companion, LowerTiers) and isinstance(storage, Storage):
                gone = [key for key in split_keys(companion.index.snapshot()) if key not in storage.store]
                if gone:
                    yield f"{len(gone)} pages are known below the device, and are not there"
                try:
                    storage.store.host.check_all()
                except MemoryViolation as broken:
                    yield f"host memory: {broken}"
                if storage.era != companion.era:
                    yield f"the storage has heard of {storage.era} flushes, and {companion.era} were made"

    def check_pairs(self) -> None:
        """At a moment when nothing is on its way: prefill and decode replicas speak of the same prefills."""
        check_pairs(self.run.replicas)

    def check_end(self) -> None:
        """Everybody has had what they must get, from an engine that has stopped."""
        for client in self.run.desk.clients:
            self._check_answered(client)
            self.check_output(client)
            check_asked(self.run, client)
            check_times(self.run, client)
        check_aborts(self.run)
        self._check_answers()
        self._check_letters()
        if not self.run.crashed:
            self.check_counted()
        others = any(OTHER_WEIGHTS in reason for reason in self.run.desk.replicas.not_replaced)
        if others and not (weights_refused(self.run) and self._weights_differ):
            raise PropertyFailed("weight_epochs", "a replica that was started again did not get the weights that serve")
        if self.run.desk.totals.violations:
            raise PropertyFailed("legal_lifecycle", str(dict(self.run.desk.totals.violations)))
        if not self.run.crashed & NARRATORS:
            self.run.judge_whole()

    def check_counted(self) -> None:
        """What is counted is what has happened."""
        check_counted(self.run)

    @property
    def _weights_differ(self) -> bool:
        """Whether those that took part have not all served the same weights, as far as is recorded."""
        refused = [reason for reason in self.run.desk.replicas.not_replaced if OTHER_WEIGHTS in reason]
        served = {
            frozenset({record.fingerprint for record in replica.trace.records if isinstance(record, WeightsMoved)})
            | {replica.scheduler.intake.weights.served.fingerprint}
            for replica in self.run.serving
            if not any(f"replica {replica.names.replica} " in reason for reason in refused)
        }
        return len(served) > 1

    def _cut_short(self) -> bool:
        """Whether the engine was stopped, or lost an actor, before everybody had come."""
        return bool(self.run.crashed) or self.run.desk.wants_stop

    def _check_answered(self, client: Client) -> None:
        request = client.request
        if not client.num_ends and not client.left and not (request is None and self._cut_short()):
            raise PropertyFailed("bounded_progress", "the run has ended and the client was never answered", request)
        if client.num_ends > 1:
            raise PropertyFailed("legal_lifecycle", f"{client.num_ends} terminal replies", request)

    def check_output(self, client: Client) -> None:
        """The client saw what its request implies: all of it, or a beginning where somebody ended it early."""
        arrival, request = self.understood(client), client.request
        if arrival is None:
            return
        check_accepted(client, arrival)
        drawn_by = client.drawn_by
        expectations = self.run.model.expectations
        expectations.check_beginning(arrival, drawn_by, client.tokens, client.text, request)
        ended = client.done is not None and not client.left and client.done.cause not in ABORT_CAUSES
        scores = client.scores, client.prompt_scores
        expectations.check_scores(arrival, drawn_by, *scores, request, count=len(client.tokens), ended=ended)
        if client.refusal is not None:
            self.check_cause(client, arrival, client.refusal.cause)
        elif client.done is not None and not client.left:
            cause = client.done.cause
            if cause in ABORT_CAUSES:
                self.check_cause(client, arrival, cause)
            else:
                expectations.check_whole(arrival, drawn_by, client.tokens, client.text, cause, request)
                expectations.check_vectors(arrival, drawn_by, client.vectors, request)
            if cause is not Cause.INTERNAL and not (cause is Cause.DRAINED and self.run.desk.wants_stop):
                # Else the gateway may have answered, which does not know it.
                check_usage(self._usage(client, arrival, cause, client.done.usage), client.done.usage, request)

    def _usage(self, client: Client, arrival: Arrival, cause: Cause, told: Usage) -> Usage:
        """What the client must be told."""
        request = client.request or 0
        replica = self._had(request)
        seen = replica.usage
        cached, retractions = seen.cached.get(request, 0), seen.retractions[request]
        drafts = seen.drafted[request], seen.accepted[request]
        if replica.lost:  # and nobody had it after that, when it ended: the loss is one more
            retractions = told.retractions
        if cause is Cause.STOP_STRING and not ended_with_its_text(replica, client):  # else the detokenizer ends it
            retractions, drafts = told.retractions, (told.draft_tokens, told.accepted_tokens)
        if self._unrecorded:
            cached, retractions = told.cached_tokens, told.retractions
            drafts = told.draft_tokens, told.accepted_tokens
        return Usage(len(arrival.prompt), len(client.tokens), cached, retractions, *drafts)

    def _had(self, request: int) -> SimulatedReplica:
        """The replica that had the request last, as their traces say."""
        had = [
            ((record.num_retractions, not replica.lost, record.time, replica.names.replica), replica)
            for replica in self.run.serving
            for record in replica.trace.records
            if isinstance(record, Submitted) and record.request == request
        ]
        return max(had, key=lambda each: each[0])[1] if had else self.run.serving[0]

    def understood(self, client: Client) -> Arrival | None:
        """What its request implies. A turn's prompt is the one that is recorded, which `session_atomicity` judges; None
        where nothing is."""
        arrival = client.arrival
        if not arrival.session:
            return arrival
        stops = self.run.model.expectations.stop_strings(arrival)
        plain = msgspec.structs.replace(arrival, stop=stops, stop_after=None)
        for replica in reversed(self.run.serving):
            for record in replica.trace.records:
                if isinstance(record, Submitted) and record.request == client.request:
                    return msgspec.structs.replace(plain, prompt=tuple(int32s(record.tokens).tolist()))
        return None if self._unrecorded else plain

    @property
    def _unrecorded(self) -> bool:
        """Whether records may be missing of a replica that clients had to do with: who has them was lost, or they were
        on their way."""
        return bool(self.run.crashed) or any(each.names.recorder in self.run.failed for each in self.run.replicas)

    def check_cause(self, client: Client, arrival: Arrival, cause: Cause) -> None:
        """An abort must have had a reason in the workload or in the faults."""
        workload = self.run.workload
        if cause is Cause.GRAMMAR and arrival.grammar != BAD_GRAMMAR:
            raise PropertyFailed("grammar_is_a_fold", "its grammar refused what was drawn for it", client.request)
        if cause is Cause.TIMEOUT and arrival.timeout_s is None and not self._time_flew():
            raise PropertyFailed("bounded_progress", "it was given up at rest, and had set no limit", client.request)
        reasons = {
            Cause.TIMEOUT: True,
            Cause.WORKER_LOST: len(self.run.system.faults.struck) >= MAX_STRIKES,
            Cause.DISCONNECT: arrival.leaves_after is not None,
            Cause.DRAINED: workload.closing is not None,
            Cause.INTERNAL: bool(self.run.crashed) or "no numbers" in self.run.system.faults.struck,
            Cause.INVALID: arrival.session or self._may_miss_adapter(client) or client.had_namesake,
            Cause.ADAPTER: bool(arrival.adapter) and "adapter" in self.run.system.faults.struck,
            # The tokenizer has not seen what it goes on from.
            Cause.NEVER_FITS: arrival.session and len(arrival.prompt) + arrival.max_new_tokens > workload.shape.room,
            Cause.CLIENT: arrival.session and any(other.replace for other in workload.arrivals),
            # A receiver that is gone looks like one that is full, until the gateway hears of it.
            Cause.OVERLOADED: bool(self.run.crashed),
        }
        orders = [control for control in workload.controls if may_end(control, client)]
        ended = any(cause in row_of(control.body).ends for control in orders)
        if not ended and not reasons.get(cause, False):
            check_refusal(arrival, workload.shape, len(self.run.desk.clients), cause, client.request)

    def _may_miss_adapter(self, client: Client) -> bool:
        desk = self.run.desk
        return desk.may_miss_adapter(client.index) or (bool(client.adapter) and bool(self.run.crashed))

    def _time_flew(self) -> bool:
        """Whether a fault made time pass while there was work: then requests may be given up that were being served."""
        budget = self.run.system.faults
        return any(budget.left[kind] < budget.faults.budget(kind) for kind in (FaultKind.RUSH, FaultKind.LATE))

    def _check_letters(self) -> None:
        """Nothing was sent to nobody, the heartbeats told of no stall, and actors stopped so that none was left with
        messages: unless the engine was cut short, or time was made to fly past the end of a stop."""
        faults = self.run.system.faults.faults
        if self._cut_short() or faults.rush or faults.late:
            return
        letters = [each for each in self.run.system.dead_letters.recent() if not self._may_be_lost(each)]
        if letters and not self.run.failed:
            letter = letters[0]
            lost = f"{type(letter.message).__name__} from {letter.sender} to {letter.to}: {letter.reason}"
            raise PropertyFailed("auxiliary_conservation", f"a message that nobody took: {lost}")
        pace = self.run.desk.pace
        if pace.seconds or (pace.silent_s and not self.run.failed):
            raise PropertyFailed("bounded_progress", f"the watchdog saw a stall: {pace}")

    def _may_be_lost(self, letter: DeadLetter) -> bool:
        """A worker whose ranks are lost cannot read pages, and says so itself: it does not know that its scheduler has
        stopped, as the storage does."""
        if any(replica.lost and letter.to in replica.names.own for replica in self.run.replicas):
            return True  # what it was at when it was given up is left as it is
        if any(self._after_it_left(letter, replica) for replica in self.run.replicas if replica.left):
            return True
        if isinstance(letter.message, Saved):
            return not letter.message.keys and letter.sender in {replica.names.worker for replica in self.run.replicas}
        return isinstance(letter.message, WHILE_STOPPING)

    def _after_it_left(self, letter: DeadLetter, replica: SimulatedReplica) -> bool:
        """Whether it was for the scheduler of a replica whose time to leave was over: what the router asked of it, or
        its own actors were at, or a word to a request that has ended by itself."""
        names, message = replica.names, letter.message
        if isinstance(message, Ask):
            return letter.to in names.own
        if letter.to != names.scheduler:
            return False
        return letter.sender in names.own or (isinstance(message, Abort | Finish) and self._has_ended(replica, message))

    def _has_ended(self, replica: SimulatedReplica, message: Abort | Finish) -> bool:
        """Whether all that the message is to end has ended in this replica."""
        ended: set[int | None] = {
            record.request
            for record in replica.trace.records
            if isinstance(record, Transition) and record.event in ENDS
        }
        ended |= {client.request for client in self.run.desk.clients if client.refusal is not None}
        return ended.issuperset(message.requests if isinstance(message, Abort) else (message.request,))

    def excuses(self, answer: Reply) -> bool:
        """Whether a control message may be answered so, whatever its row says."""
        return False

    def _is_owed_by_nobody(self, answer: Reply) -> bool:
        """Whether whoever was to answer is gone."""
        gone = GONE if self.run.failed else ()
        left = (LEFT,) if any(replica.left for replica in self.run.replicas) else ()
        return any(words in answer.message for words in (*gone, *left))

    def _check_answers(self) -> None:
        """Each control message was answered once, and as its row says it must be. Where time was made to fly, or the
        engine was cut short, the gateway may have answered in place of the scheduler; where steps take time, because
        its own was over, perhaps before all had ended."""
        for_another = self.run.system.faults.faults.rush > 0 or self._cut_short()
        for control, answers in zip(self.run.workload.controls, self.run.desk.answers, strict=True):
            row = row_of(control.body)
            if len(answers) > 1 or (not answers and not self._cut_short()):
                raise PropertyFailed(row.proves, f"{row.name} was answered {len(answers)} times")
            gone = bool(answers) and self._is_owed_by_nobody(answers[0])
            late = bool(answers) and (LATE in answers[0].message or answers[0].body.get("num_pending", 0) > 0)
            excused = for_another or gone or (self.run.workload.shape.work_takes_time and late)
            wrong = None if excused or self.excuses(answers[0]) else row.check(control.body, answers[0])
            if wrong is not None:
                raise PropertyFailed(row.proves, f"{row.name}: {wrong}")
