"""Defects of several replicas behind a router."""

from __future__ import annotations

from pawl.actors.fleet import Fleet
from pawl.actors.fleet_size import FleetSize
from pawl.actors.joining import Joining
from pawl.actors.known_replicas import KnownReplicas
from pawl.actors.placement import PrefixAffinity, RoundRobin, ShortestQueue
from pawl.actors.present import Held, Present
from pawl.actors.replica_asks import ReplicaAsks
from pawl.actors.routed import Routed, named_by_all
from pawl.actors.router import Router
from pawl.actors.scaling import scaled
from pawl.actors.scheduler import Scheduler
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.numbers import passed
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, breaks: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, breaks, "", what, edits)


REPLICAS = (
    _mutant(
        "resubmitted_without_known_tokens",
        "stream_equals_result",
        "A request of a lost replica begins anew: its client has the tokens once more.",
        Edit(Routed.again, "np.array(self.tokens, np.int32)", "np.array(self.tokens[:0], np.int32)"),
    ),
    _mutant(
        "last_token_is_drawn_twice",
        "stream_equals_result",
        "The token that was passed on last is not among those that the next replica knows.",
        Edit(Routed.again, "np.array(self.tokens, np.int32)", "np.array(self.tokens[:-1], np.int32)"),
    ),
    _mutant(
        "last_known_token_is_another",
        "observability_conservation",
        "The token that was passed on last is told to the next replica as the first one.",
        Edit(
            Routed.again,
            "output=np.array(self.tokens, np.int32)",
            "output=np.array([*self.tokens[:-1], *self.tokens[: len(self.tokens) > 0]], np.int32)",
        ),
    ),
    _mutant(
        "what_came_with_a_request_is_recorded_as_its_prompt",
        "observability_conservation",
        "The next replica goes on from what it was told, and its trace has the beginning of the prompt in that place.",
        Edit(Journal.submitted, "output=output,", "output=tokens[: len(output)],"),
    ),
    _mutant(
        "affinity_takes_a_shorter_prefix",
        "placement",
        "Where the replica that had the longest part of a prompt is too busy, one that had a shorter is taken.",
        Edit(
            PrefixAffinity.place,
            "chosen = known.replica\n            break",
            "chosen = known.replica\n                break",
        ),
    ),
    _mutant(
        "tokens_of_equal_queues_are_not_compared",
        "placement",
        "Of several replicas with as few open requests the first one is taken, however long its requests are.",
        Edit(ShortestQueue.place, "(load.num_open, load.num_tokens)", "load.num_open"),
    ),
    _mutant(
        "bound_of_affinity_is_ignored",
        "placement",
        "A request goes where its prefix was seen last, however busy that replica is.",
        Edit(PrefixAffinity.place, "if known.num_open <= most:", "if True:"),
    ),
    _mutant(
        "everybody_gets_the_first_replica",
        "placement",
        "Taking turns never gets beyond the first replica.",
        Edit(RoundRobin.place, "next(later, loads[0].replica)", "loads[0].replica"),
    ),
    _mutant(
        "turn_goes_to_any_replica",
        "session_atomicity",
        "A turn is placed as other requests are, and not where its session is.",
        Edit(Router._owner, "if owner in self.replicas and not self.replicas[owner].leaving:", "if False:"),
    ),
    _mutant(
        "turn_of_a_session_that_is_gone_is_given_to_any_replica",
        "session_atomicity",
        "Nobody says that a session ended with its replica: another one is asked to go on with it, and knows of none.",
        Edit(Router._place, "if message.session is not None and (ended :=", "if False and (ended :="),
    ),
    _mutant(
        "new_request_at_a_dead_replica_is_refused",
        "fault_isolation",
        "A request whose replica is gone, and nobody has said so yet, is refused as if all were busy.",
        Edit(Router._place, "self.context.after(AGAIN_S, PlaceAgain())", "self._end(routed, Cause.OVERLOADED, FAILED)"),
    ),
    _mutant(
        "router_forgets_aborts_of_long_prompts",
        "abort_is_total",
        "A short prompt passes a long one that is still being read: its abort, which came early, is dropped.",
        Edit(passed, " and is_long(other) == is_long(request)", ""),
    ),
    _mutant(
        "load_is_never_taken_off",
        "observability_conservation",
        "A replica counts as having requests that have ended.",
        Edit(Router._forget, "replica.num_open -= 1", "pass"),
    ),
    _mutant(
        "who_leaves_is_given_requests",
        "scaling",
        "A replica that is to leave takes requests for as long as it has any.",
        Edit(Fleet.loads, "self.size.taking", "self.replicas.values()"),
    ),
    _mutant(
        "who_leaves_takes_its_requests_along",
        "bounded_progress",
        "Requests of a replica that has had its time to leave go on nowhere.",
        Edit(Fleet._left, "self._place_again(replica.number)", "pass"),
    ),
    _mutant(
        "who_leaves_is_not_called_back",
        "scaling",
        "A replica leaves though the one that stayed is lost, as yet another is being started: requests wait for that.",
        Edit(FleetSize.call_back, "self.wanted - len(self.taking)", "self.num_missing"),
    ),
    _mutant(
        "trouble_of_who_left_stays",
        "auxiliary_conservation",
        "A recorder that is gone, of a replica that leaves, is missed for ever.",
        Edit(KnownReplicas.part, "self._losses.give_up(left.gone)", "pass"),
    ),
    _mutant(
        "low_load_ends_a_replica_at_once",
        "scaling",
        "One replica less is wanted as soon as there is little to do, and not after a while of it.",
        Edit(scaled, "since.low + rule.down_s <= now", "since.low <= now"),
    ),
    _mutant(
        "a_start_that_is_refused_is_waited_for",
        "bounded_progress",
        "Where no more replicas are started, as there were enough starts, one is believed to be coming for ever.",
        Edit(Fleet._replaced, "if not why_not:\n", "if True:\n"),
    ),
    _mutant(
        "started_replica_is_not_counted",
        "scaling",
        "Whoever is started because the load is high does not count as one that comes: more and more are started.",
        Edit(FleetSize._set, "self.num_starting += not (why_not := self._add())", "why_not = self._add(); break"),
    ),
    _mutant(
        "joined_replica_is_not_told_adapters",
        "adapter_references",
        "A replica that is started again has no adapters: requests may name none any more.",
        Edit(Present.orders, "orders += self._adapters.values()", "pass"),
    ),
    _mutant(
        "joined_replica_is_not_told_of_a_pause",
        "quiescent_flush",
        "A replica that is started again serves while generation is paused.",
        Edit(Present.orders, "[*orders, Pause()] if self.paused else orders", "orders"),
    ),
    _mutant(
        "joined_replica_has_the_weights_of_the_start",
        "weight_epochs",
        "A replica that is started again is not told to read the weights that the others have read since.",
        Edit(Held.done, "self.update, self.sent = order, False", "self.update, self.sent = None, False"),
    ),
    _mutant(
        "weights_of_who_is_gone_are_named",
        "weight_epochs",
        "Weights that only one replica had taken go on being named, and told to who joins, once it is gone.",
        Edit(Fleet._keep_to_the_weights_without, "if left is not None and", "if False and"),
    ),
    _mutant(
        "refused_weights_are_told_to_who_joins",
        "weight_epochs",
        "New weights that all have refused, as others were being read, are read by a replica that joins.",
        Edit(ReplicaAsks._carried_out, "if done:\n", "if True:\n"),
    ),
    _mutant(
        "what_is_ordered_while_one_joins_is_not_told",
        "weight_epochs",
        "A replica that joins is told what was ordered before it was started, and nothing of what came meanwhile.",
        Edit(Joining.ordered, "told.orders.append(order)", "pass"),
    ),
    _mutant(
        "pause_that_was_over_is_told_to_who_joins",
        "quiescent_flush",
        "Of a pause and the order to go on that the one counts that was answered last: who joins is paused.",
        Edit(ReplicaAsks._carried_out, "done = number > self._last_serving", "pass"),
    ),
    _mutant(
        "adapter_that_rests_in_one_replica_is_unknown",
        "fault_isolation",
        "An adapter that one replica has let make way before another one has read it is told to be loaded, and nobody "
        "may name it.",
        Edit(named_by_all, "each not in listed", "False"),
    ),
    _mutant(
        "adapters_of_who_is_left_are_not_told",
        "adapter_references",
        "An adapter that only a lost replica had not loaded yet may not be named, though all others have it.",
        Edit(Fleet._not_among, "self._tell_adapters()", "pass"),
    ),
    _mutant(
        "late_token_of_a_lost_replica_is_passed_on",
        "observability_conservation",
        "What a replica says after it was given up goes to clients, who have it from another one as well.",
        Edit(
            Router._pass_on,
            "replica = self.replicas.get(message.replica)",
            'self.known = tuple({*getattr(self, "known", ()), *self.replicas.values()}); '
            "replica = next((each for each in self.known if each.number == message.replica), None)",
        ),
    ),
    _mutant(
        "request_of_a_lost_replica_is_given_away_twice",
        "incarnation",
        "A request whose replica is lost is given to two others, or to one twice.",
        Edit(
            Router._go_on,
            "self._place(routed, routed.again(now))",
            "[self._place(routed, routed.again(now)) for _ in range(2)]",
        ),
    ),
    _mutant(
        "requests_of_a_lost_replica_stay_there",
        "bounded_progress",
        "A replica that stands still is given up, and its requests are not taken back from it.",
        Edit(Fleet._lose, "partial(self._place_again, replica.number),", ""),
    ),
    _mutant(
        "reply_overtakes_what_it_tells_of",
        "weight_epochs",
        "That new weights serve is said in another lane than which they are: who joins is compared too soon.",
        Edit(Scheduler.__init__, "partial(self._send, lane=Lane.CONTROL)", "self._send"),
    ),
    _mutant(
        "busiest_replica_leaves",
        "scaling",
        "Of more replicas than are wanted, those with the most requests are told to leave.",
        Edit(
            FleetSize.dismiss,
            "(each.num_open, each.num_tokens, -each.number)",
            "(-each.num_open, -each.num_tokens, -each.number)",
        ),
    ),
    _mutant(
        "abort_dies_with_its_replica",
        "abort_is_total",
        "A request whose replica was lost while it was to end goes on in the next one, which is told nothing.",
        Edit(Router._opened, "elif routed.aborted is not None:", "elif False:"),
    ),
)
