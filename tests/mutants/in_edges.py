"""Defects that show at an edge of what is asked, in what is told last, and in the order of those who wait."""

from __future__ import annotations

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.gateway import Gateway
from pawl.actors.open_requests import OpenRequests
from pawl.actors.scheduler import Scheduler
from pawl.actors.text.stop import StopMatcher
from pawl.loops.intake import Intake
from pawl.loops.loop import Loop
from pawl.loops.orders.requests import Drain
from pawl.loops.pacing import Pacing
from pawl.loops.policy import DepthFirstWeight, LongestPrefixMatch
from pawl.loops.queues import Queues
from pawl.loops.requests import Requests
from pawl.loops.runs import cut_runs
from pawl.memory.memory import Memory
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(group: Group, name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, group, broken, "", what, edits)


EDGES = (
    _mutant(
        Group.MEMORY,
        "more_leaves_than_is_wanted",
        "cache_as_stated",
        "As many pages leave the cache as are wanted, and those that are free are not counted.",
        Edit(Memory.make_room, "self.cache.evict(short)", "self.cache.evict(count)"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "what_just_fits_is_refused",
        "fault_isolation",
        "A request that needs all the memory that one may have is refused.",
        Edit(Requests._refusal, "if need > most:", "if need >= most:"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "taken_while_the_engine_drains",
        "abort_is_total",
        "A request that comes to a scheduler that drains is served like any other.",
        Edit(Intake.submit, "end = (Cause.DRAINED, STOPPING)", "pass"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "abort_is_told_twice",
        "abort_is_total",
        "A request that is being aborted already is aborted again.",
        Edit(Gateway.abort, "entry.aborting = True", "pass"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "namesakes_are_forgotten",
        "abort_is_total",
        "When one request of several with a name has ended, nobody finds the others by it.",
        Edit(OpenRequests._forget, "if others:", "if False:"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "name_of_a_live_request_is_taken",
        "incarnation",
        "A request may have the name of one that is live.",
        Edit(OpenRequests.why_not, "if name in self._named:", "if False:"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "shortest_prefix_first",
        "policy_as_stated",
        "The policy that prefers what is cached prefers what is not.",
        Edit(LongestPrefixMatch.order, "-len(waiting.cached_pages(row))", "len(waiting.cached_pages(row))"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "lightest_subtree_first",
        "policy_as_stated",
        "The policy that goes through the tree begins where the fewest wait.",
        Edit(DepthFirstWeight.order, "(-weight[page], page)", "(weight[page], page)"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "undone_admission_is_offered_first",
        "policy_as_stated",
        "A request whose admission was undone is offered before those that came earlier.",
        Edit(Queues._unadmitted, "sorted((row, *self.waiting), key=arrival.__getitem__)", "(row, *self.waiting)"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "micro_batches_are_rounded_down",
        "fair_micro_batches",
        "Where those that decode cannot be shared out evenly, one of them waits though there is room for it.",
        Edit(Pacing.micro_batch, "-(-len(free) // to_come)", "max(1, len(free) // to_come)"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "token_is_waited_for_a_step_longer",
        "fair_micro_batches",
        "Who was in as many steps ago as there are stages is thought to be on its way still.",
        Edit(Pacing.micro_batch, "ahead[1 - self.stages :]", "ahead[-self.stages :]"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "watchdog_hears_one_heartbeat",
        "bounded_progress",
        "A scheduler tells its watchdog once that it handles messages, and never again.",
        Edit(Scheduler._beat, "self._next_beat = self.context.after(HEARTBEAT_S, HeartbeatDue())", "pass"),
    ),
    _mutant(
        Group.OUTPUTS,
        "last_stop_string_wins",
        "stop_semantics",
        "Of stop strings that end at one character the shortest counts.",
        Edit(StopMatcher.push, "min(ends)", "max(ends)"),
    ),
    _mutant(
        Group.OUTPUTS,
        "stop_token_within_a_run_is_dropped",
        "stop_semantics",
        "A run of tokens ends before the stop token in it.",
        Edit(cut_runs, "int(stops[0]) + 1 if len(stops)", "max(1, int(stops[0])) if len(stops)"),
    ),
    _mutant(
        Group.OUTPUTS,
        "first_token_of_a_stopped_text_is_not_told",
        "observability_conservation",
        "A client whose text ends with a stop string is not told when it had its first token.",
        Edit(Detokenizer._special, "if stream.num_output == 1:", "if stream.num_output == 0:"),
    ),
    _mutant(
        Group.OUTPUTS,
        "stopped_at_its_end_knows_less",
        "retraction_transparency",
        "A client whose last token completes a stop string is not told what the scheduler knows of its request.",
        Edit(Detokenizer._end, "self._replace_done(stream, end, outputs, place)", "pass"),
    ),
    _mutant(
        Group.CONTROL,
        "flush_is_not_recorded",
        "observability_conservation",
        "The cache is emptied, and the trace does not say so.",
        Edit(Loop.flush, "self.journal.flushed(now)", "pass"),
    ),
    _mutant(
        Group.CONTROL,
        "drain_has_no_end",
        "bounded_progress",
        "Nobody ends what is left when the grace of a drain is over.",
        Edit(Drain.apply, "intake.remind(self.grace_s, EndAll())", "pass"),
    ),
)
