"""Planted violations of what requests share, of what they get, and of what is owed to them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from pawl.lifecycle.records import (
    Answered,
    AnswersClosed,
    Cached,
    Contained,
    Delivered,
    PageCounts,
    Record,
    Scores,
    StepCommitted,
    StepRolledBack,
    Submitted,
)
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.canaries import STORY, Canary, replanned
from tests.lifecycle.story import NUM_PAGES, Segment, Story, changed, removed, stored, token

ROOM = PageCounts(16, 0, 0, 0, 0)


def planted(label: str, *records: Record) -> list[Record]:
    """The story with `records` after the one with this label."""
    at = STORY.labels[label] + 1
    return [*STORY.records[:at], *records, *STORY.records[at:]]


def sampled(label: str, **fields: object) -> list[Record]:
    """The story, one request asking for something else."""
    submitted = STORY.records[STORY.labels[label]]
    assert isinstance(submitted, Submitted)
    return changed(STORY, label, sampling=msgspec.structs.replace(submitted.sampling, **fields))


def scored(asked: dict[str, object], *places: tuple[int, int, int]) -> list[Record]:
    """The story, request 2 asking for log-probabilities, and its only step giving those of (row, position, number of
    the likeliest), of tokens 1000, 1001, …"""
    rows, positions, num_top = np.array(places, np.int32).reshape(-1, 3).T.copy()
    others = np.concatenate([np.arange(count, dtype=np.int32) for *_, count in places] or [np.zeros(0, np.int32)])
    chosen = np.full(len(places), -3.0, np.float32)
    scores = Scores(rows, positions, chosen, num_top, 1000 + others, -1 - others.astype(np.float32) / 2)
    records = sampled("submitted 2", **asked)
    at = STORY.labels["commit 2"]
    records[at] = msgspec.structs.replace(records[at], scores=scores if places else None)
    return records


def twins(first: Sequence[int], second: Sequence[int]) -> list[Record]:
    """Two equal requests with these outputs: one alone and undisturbed, the other beside a third, begun with a page of
    the first, retracted, and begun again."""
    story = Story()
    story.start()
    story.submit(1, 0, 6, len(first))
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 6, pages=((0, 0), (1, 1))))
    _commit(story, 1, [Event.FIRST_TOKEN], first[:1])
    story.add(Cached((stored("", None, 0),)))
    _tokens(story, 0, 6, first)
    story.move(1, 0, State.DECODING, Event.FINISH, State.FINISHED, Cause.LENGTH, num_output=len(first))
    story.submit(2, 0, 6, len(second))
    story.submit(3, 1, 5, 1)
    story.admit(3, 1)
    story.admit(2, 0, num_cached=4)
    step = story.step + 1
    story.plan(step, Segment(1, 0, 5, pages=((0, 2), (1, 3))), Segment(0, 4, 2, pages=((0, 0), (1, 4))))
    _commit(story, step, [Event.FIRST_TOKEN, Event.FIRST_TOKEN], [50, second[0]], cached=1)
    story.add(Contained(0, "OSError at planner.py:40", story.now()))
    story.move(2, 0, State.DECODING, Event.RETRACT, State.QUEUED, Cause.STEP_LOST)
    story.move(3, 1, State.DECODING, Event.FINISH, State.FINISHED, Cause.LENGTH, num_output=1)
    story.write_down()
    story.admit(2, 0)
    story.plan(step + 1, Segment(0, 0, 7, pages=((0, 5), (1, 6))))
    _commit(story, step + 1, [Event.FIRST_TOKEN], second[1:2], cached=1)
    _tokens(story, 0, 7, second[1:])
    story.move(2, 0, State.DECODING, Event.FINISH, State.FINISHED, Cause.LENGTH, num_output=len(second))
    return story.records


def shared_and_left() -> list[Record]:
    """Two requests read a cached page, the first is done, the page leaves the cache, and a third takes it."""
    story = Story()
    story.start()
    story.submit(1, 0, 6, 1)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 6, pages=((0, 0), (1, 1))))
    _commit(story, 1, [Event.FIRST_TOKEN], [50])
    story.add(Cached((stored("", None, 0),)))
    story.submit(2, 1, 6, 3)
    story.admit(2, 1, num_cached=4)
    story.plan(2, Segment(1, 4, 2, pages=((0, 0), (1, 2))))
    _commit(story, 2, [Event.FIRST_TOKEN], [60], cached=1)
    story.move(1, 0, State.DECODING, Event.FINISH, State.FINISHED, Cause.LENGTH, num_output=1)
    story.add(Cached((removed(0),)))
    story.submit(3, 2, 4, 1)
    story.admit(3, 2)
    story.plan(3, Segment(2, 0, 4, pages=((0, 0),)))
    return story.records


def _tokens(story: Story, row: int, start: int, tokens: Sequence[int]) -> None:
    """One step for each of `tokens` but the first."""
    for index, each in enumerate(tokens[1:]):
        step = story.step + 1
        story.plan(step, token(row, start + index))
        _commit(story, step, [Event.TOKEN], [each], cached=1)


def _commit(story: Story, step: int, events: Sequence[Event], tokens: Sequence[int], cached: int = 0) -> None:
    pages = ROOM._replace(free=ROOM.free - cached, cached=cached)
    drawn = np.array(tokens, np.int32)
    story.add(StepCommitted(step, story.now(), np.array(events, np.uint8), drawn, pages))


def without_runner(times: int = 1, *, in_flight: bool = False, told: bool = True) -> list[Record]:
    """What computes is lost so many times between two steps, or while one is in flight, when it is not for an order to
    say so: one request runs, and one waits for pages."""
    story = Story()
    story.start()
    story.submit(1, 0, 8, 2)
    story.submit(2, 1, 4, 2)
    for step in range(1, times + 1):
        story.admit(1, 0)
        story.plan(step, Segment(0, 0, 4, samples=False, pages=((0, step % NUM_PAGES),)))
        if not in_flight:
            _commit(story, step, [Event.CHUNK], [])
        story.move(2, 1, State.QUEUED, Event.FETCH, State.QUEUED_FETCHING)
        if told:
            story.add(Delivered("runner_gone", {}, step, story.now()))
        story.move(1, 0, State.PREFILLING, Event.RETRACT, State.QUEUED, Cause.STEP_LOST)
        story.move(2, 1, State.QUEUED_FETCHING, Event.RESTORE, State.QUEUED, Cause.WORKER_LOST)
    return story.records


def never_done() -> list[Record]:
    """A request of one token that is retracted again and again."""
    story = Story()
    story.start()
    story.submit(1, 0, 1, 1)
    for step in range(1, 11):
        story.admit(1, 0)
        story.plan(step, Segment(0, 0, 1, pages=((0, step),)))
        story.move(1, 0, State.PREFILLING, Event.RETRACT, State.QUEUED, Cause.STEP_LOST)
        _commit(story, step, [Event.STALE_TOKEN], [9])
    return story.records


def given_up(cause: Cause) -> list[Record]:
    """A fetch that is given up, and nothing has happened."""
    story = Story()
    story.start()
    story.submit(1, 0, 4, 1)
    story.move(1, 0, State.QUEUED, Event.FETCH, State.QUEUED_FETCHING)
    story.move(1, 0, State.QUEUED_FETCHING, Event.RESTORE, State.QUEUED, cause)
    return story.records


def squeezed() -> list[Record]:
    """A request that is retracted for memory, and an order comes instead of a plan."""
    story = Story()
    story.start()
    story.submit(1, 0, 4, 1)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 4, pages=((0, 1),)))
    story.move(1, 0, State.PREFILLING, Event.RETRACT, State.QUEUED, Cause.MEMORY)
    story.add(abort_of(1))
    return story.records


def overtaken(policy: str, *, undone: bool = False, retracted: bool = False, compiled: bool = False) -> list[Record]:
    """Of two requests the second is admitted before the first, which may have been at work before."""
    story = Story()
    story.start()
    story.records[0] = msgspec.structs.replace(story.records[0], config={"loop": {"policy": policy}})
    story.submit(1, 0, 3, 1)
    if compiled:
        story.records.pop()
        story.move(1, 0, State.NEW, Event.SUBMIT_GRAMMAR, State.QUEUED_COMPILING)
    story.submit(2, 1, 3, 1)
    if compiled:
        story.move(1, 0, State.QUEUED_COMPILING, Event.GRAMMAR_READY, State.QUEUED)
    if undone or retracted:
        story.admit(1, 0)
        story.plan(1, Segment(0, 0, 3, pages=((0, 1),)))
    if undone:
        story.add(StepRolledBack(1, "the worker was lost", story.now()))
    if retracted:
        _commit(story, 1, [Event.FIRST_TOKEN], [9])
        story.move(1, 0, State.DECODING, Event.RETRACT, State.QUEUED, Cause.MEMORY)
    story.admit(2, 1)
    return story.records


def lost_twice() -> list[Record]:
    """A request that is tried again after two lost steps."""
    story = Story()
    story.start()
    story.submit(1, 0, 4, 1)
    for step in range(1, 4):
        story.admit(1, 0)
        story.plan(step, Segment(0, 0, 4, pages=((0, step),)))
        if step < 3:
            story.add(StepRolledBack(step, "the worker was lost", story.now()))
    return story.records


def abort_of(*requests: int) -> Delivered:
    """Somebody asks for the end of `requests`; at a time that fits wherever it is planted."""
    return Delivered("abort", {"requests": list(requests)}, 0, float("inf"))


def without_failure(records: list[Record]) -> list[Record]:
    """The same, as if nothing had failed."""
    return [record for record in records if not isinstance(record, Contained)]


def answered(*answers: tuple[int, Cause, int], count: int | None = None, time: float = 1e9) -> list[Record]:
    """The story, and what the gateway told its clients: (request, cause, output tokens)."""
    replies = [Answered(*each, time, number) for number, each in enumerate(answers, 1)]
    return [*STORY.records, *replies, AnswersClosed(len(replies) if count is None else count, time)]


def stopped(request: int, num_output: int) -> Delivered:
    """The text of a request stops it."""
    return Delivered("finish", {"request": request, "num_output": num_output}, 0, 0.0)


ANSWERS = ((1, Cause.LENGTH, 3), (2, Cause.CLIENT, 1), (3, Cause.STOP_STRING, 1))
"""As they should be."""

_CACHE_CANARIES = {
    "a page cached twice": Canary(
        "single_owner", planted("cached 0", Cached((stored("", None, 0),))), "page 0 came into the cache, which had it"
    ),
    "a page given back twice": Canary(
        "single_owner", planted("cached 0", Cached((removed(7),))), "page 7 left the cache, which did not have it"
    ),
    "a page taken that the cache has": Canary(
        "single_owner",
        replanned(7, Segment(1, 0, 10, pages=((0, 0), (1, 8), (2, 9)))),
        "page 0 was taken as free while the cache has it",
    ),
    "a page taken that another of its two readers still has": Canary(
        "conservation", shared_and_left(), "page 0 was taken as free while a request uses it", 2
    ),
    "a page taken, after one that is free, that the cache has": Canary(
        "single_owner",
        replanned(7, Segment(1, 0, 10, pages=((0, 8), (1, 0), (2, 9)))),
        "page 0 was taken as free while the cache has it",
    ),
    "a page evicted while in use": Canary(
        "hold_accounting", planted("plan 4", Cached((removed(0),))), "page 0 left the cache while a request uses it", 1
    ),
    "a page cached below one that is not": Canary(
        "hold_accounting", planted("plan 2", Cached((stored("", 9, 1),))), "page 1 of the cache is out of reach"
    ),
    "a page evicted before those below it": Canary(
        "hold_accounting",
        planted("commit 2", Cached((stored("", 0, 1), removed(0)))),
        "page 1 of the cache is out of reach|page 0 of the cache is out of reach",
    ),
    "a page cached that nobody wrote": Canary(
        "read_after_commit", planted("cached 0", Cached((stored("", 0, 12),))), "page 12 .* nobody has written it"
    ),
    "a page cached before it was computed": Canary(
        "read_after_commit", planted("plan 2", Cached((stored("", 0, 1),))), "only 4 positions are committed", 1
    ),
    "a page read that the cache has lost": Canary(
        "read_after_commit", planted("submitted 3", Cached((removed(0),))), "page 0, which the cache does not have", 3
    ),
    "a page cached for others": Canary(
        "namespace_isolation",
        changed(STORY, "cached 0", changes=(stored("another", None, 0),)),
        "page 0 was written in namespace '' and is cached in 'another'",
        1,
    ),
    "a page of others read": Canary(
        "namespace_isolation",
        changed(STORY, "submitted 3", namespace="another"),
        "page 0 is cached in namespace '' and is used in 'another'",
        3,
    ),
    "a page below one of others": Canary(
        "namespace_isolation",
        planted("cached 0", Cached((stored("another", 0, 12),))),
        "page 12 goes on from a page of another namespace",
    ),
    "a request for other weights": Canary(
        "weight_epochs",
        changed(STORY, "submitted 3", namespace="weights=2"),
        "served under weights '2', the engine has ''",
        3,
    ),
    "a page of other weights": Canary(
        "weight_epochs",
        changed(STORY, "cached 0", changes=(stored("weights=2", None, 0),)),
        "page 0 was written under weights '2' and is read under ''",
        3,
    ),
    "a cached page that nobody counted": Canary(
        "observability_conservation",
        planted("commit 2", Cached((stored("", 0, 12),))),
        "1 pages are counted as cached, 2 are by what was told",
    ),
}

_REPLY_CANARIES = {
    "a second reply": Canary("legal_lifecycle", answered(*ANSWERS, ANSWERS[0]), "a second terminal reply", 1),
    "no reply": Canary("legal_lifecycle", answered(*ANSWERS[1:]), "no terminal reply", 1),
    "a reply that was left out": Canary(
        "legal_lifecycle",
        [each for each in answered(*ANSWERS) if not isinstance(each, Answered) or each.request != 2],
        "reply 3 of the gateway follows reply 1",
        3,
    ),
    "a reply that is not recorded": Canary(
        "legal_lifecycle", answered(*ANSWERS, count=4), "counts 4 terminal replies, 3 are recorded"
    ),
    "a result for a request that never ended": Canary(
        "legal_lifecycle", answered(*ANSWERS, (9, Cause.LENGTH, 3)), "told length, and it has not ended", 9
    ),
    "tokens for a request that never ran": Canary(
        "legal_lifecycle",
        answered(*ANSWERS, (9, Cause.INVALID, 3)),
        "3 tokens left .* and it never ran",
        9,
    ),
    "a token after an abort": Canary(
        "silence_after_abort", answered((2, Cause.CLIENT, 2)), "2 tokens left, but 1 were committed", 2
    ),
    "a reply of another length": Canary(
        "stream_equals_result", answered((1, Cause.LENGTH, 2)), "ends with 3 output tokens, 2 left for its client", 1
    ),
    "a reply with another reason": Canary(
        "stream_equals_result", answered((1, Cause.EOS, 3)), "ended by length, its client was told eos", 1
    ),
    "a reply in place of the scheduler, which has not failed": Canary(
        "stream_equals_result", without_failure(answered((1, Cause.INTERNAL, 3), *ANSWERS[1:])), "was told internal", 1
    ),
    "a reply that calls it drained before the engine stops": Canary(
        "stream_equals_result", answered((1, Cause.DRAINED, 3), *ANSWERS[1:]), "was told drained", 1
    ),
    "a reply before the end": Canary(
        "stream_equals_result", answered((1, Cause.LENGTH, 3), time=1.5), "its client was told at 1.5", 1
    ),
    "a reply of less than nothing": Canary(
        "legal_lifecycle", answered((1, Cause.DRAINED, -1), *ANSWERS[1:]), "-1 tokens left for its client", 1
    ),
    "a stop of a request that is still to come": Canary(
        "incarnation", planted("commit 2", stopped(3, 1)), "stops a request that was never submitted", 3
    ),
    "a stop that the scheduler is told twice": Canary(
        "stream_equals_result", planted("finish 3", stopped(3, 1)), "told twice where its text stops", 3
    ),
    "a stop at another place than its client was told": Canary(
        "stream_equals_result",
        [stopped(3, 2) if getattr(each, "kind", "") == "finish" else each for each in answered(*ANSWERS)],
        "stopped it after 2 tokens, its client was told of 1 tokens",
        3,
    ),
    "a stop of a request whose client was told another end": Canary(
        "stream_equals_result",
        [*planted("finish 1", stopped(1, 3)), *answered(*ANSWERS)[len(STORY.records) :]],
        "stopped it after 3 tokens, its client was told of another end",
        1,
    ),
    "a word of the gateway after its last": Canary(
        "legal_lifecycle", [*answered(*ANSWERS), AnswersClosed(3, 1e9)], "after its last word"
    ),
    "a stop beyond the end": Canary(
        "stream_equals_result", answered((1, Cause.STOP_STRING, 4)), "ended by length, its client was told stop", 1
    ),
    "a log-probability that nobody asked for": Canary(
        "logprobs_as_asked", scored({}, (1, 5, 0)), "position 5 of row 1, .* where no log-probability belongs", 2
    ),
    "a log-probability that is left out": Canary(
        "logprobs_as_asked", scored({"top_logprobs": 0}), "no log-probability, where .* position 5 of row 1", 2
    ),
    "a log-probability of another position": Canary(
        "logprobs_as_asked", scored({"top_logprobs": 1}, (1, 4, 1)), "position 4 .* where .* position 5", 2
    ),
    "a log-probability of another request": Canary(
        "logprobs_as_asked", scored({"top_logprobs": 1}, (0, 5, 1)), "of row 0, .* where .* of row 1", 1
    ),
    "a log-probability of nobody": Canary(
        "logprobs_as_asked", scored({"top_logprobs": 1}, (1, 5, 1), (9, 5, 1)), "of row 9, .* where no log-prob"
    ),
    "another number of likely tokens": Canary(
        "logprobs_as_asked", scored({"top_logprobs": 2}, (1, 5, 1)), "with 1 likeliest .* with 2 likeliest", 2
    ),
    "a log-probability of a token that was not named": Canary(
        "logprobs_as_asked",
        scored({"top_logprobs": 1, "token_ids_logprob": (7,)}, (1, 5, 2)),
        "1 likeliest .* named 1001, where .* 1 likeliest tokens and those named 7",
        2,
    ),
    "a prompt whose log-probabilities are left out": Canary(
        "logprobs_as_asked", scored({"prompt_logprobs": True}, (1, 2, 0)), "position 2 .* where .* position 1 ", 2
    ),
    "a finish instead of an abort": Canary("abort_is_total", planted("commit 7", abort_of(3)), "it finished", 3),
    "work for a request to be aborted": Canary(
        "abort_is_total", planted("submitted 3", abort_of(3)), "step 5 is planned and the request", 3
    ),
    "an abort that nobody asked for": Canary(
        "abort_is_total",
        changed(STORY, "finish 1", event=Event.ABORT, target=State.ABORTED, cause=Cause.CLIENT),
        "nobody had asked for that",
        1,
    ),
    "an event for a request that has ended": Canary(
        "incarnation", planted("submitted 3", STORY.records[STORY.labels["admit 2"]]), "ADMIT for a request that has", 2
    ),
    "an event for a request that never was": Canary(
        "incarnation", changed(STORY, "admit 1", request=9), "ADMIT for a request that was never submitted", 9
    ),
}

_OUTPUT_CANARIES = {
    f"another output, by {name}": Canary(name, twins((7, 8), (7, 9, 9)), r"its output is \[7, 9, 9\]; request 1", 2)
    for name in ("schedule_equivalence", "retraction_transparency", "cache_hit_equivalence", "batch_independence")
} | {
    "a token after a stop token": Canary(
        "stop_semantics", sampled("submitted 1", stop_token_ids=(200,)), "a token after stop token 200", 1
    ),
    "a stop without a stop token": Canary(
        "stop_semantics", changed(STORY, "finish 1", cause=Cause.EOS), "ended by eos, and its last token is none", 1
    ),
    "a stop token that is called the length": Canary(
        "stop_semantics", sampled("submitted 1", stop_token_ids=(400,)), "its last token 400 is a stop token", 1
    ),
}

_ORDER_CANARIES = {
    "a retraction for a step that nobody lost": Canary("true_causes", never_done(), "lost step, and none was lost", 1),
    "a runner that is gone while a step is in flight, which will say so": Canary(
        "true_causes", without_runner(in_flight=True), "lost step, and none was lost", 1
    ),
    "memory taken for no plan": Canary("true_causes", squeezed(), "retracted for memory, and no plan followed", 1),
    **{
        f"a fetch given up by {cause}": Canary("true_causes", given_up(cause), f"given up by {cause}, and nothing", 1)
        for cause in (Cause.TIMEOUT, Cause.WORKER_LOST)
    },
    "a stop string that nobody found": Canary(
        "true_causes",
        [each for each in STORY.records if not isinstance(each, Delivered) or each.kind != "finish"],
        "ended by a stop string, and no order says so",
        3,
    ),
    "a length without a step": Canary(
        "true_causes", changed(STORY, "finish 3", cause=Cause.LENGTH), "by length, and no step had come back", 3
    ),
    **{
        f"{cause} that did not happen": Canary(
            "true_causes", changed(STORY, "abort 2", cause=cause), f"by {cause}, and nothing of the kind", 2
        )
        for cause in (Cause.TIMEOUT, Cause.DRAINED, Cause.DISCONNECT)
    },
    "a later arrival first": Canary("admission_order", overtaken("fcfs"), "request 2 is admitted before it", 1),
    "a later one that wants as much": Canary("admission_order", overtaken("lof"), "request 2 is admitted before it", 1),
    "a newcomer before one whose grammar is compiled": Canary(
        "admission_order", overtaken("fcfs", compiled=True), "request 2 is admitted before it", 1
    ),
    "a newcomer before one whose admission was undone": Canary(
        "admission_order", overtaken("fcfs", undone=True), "request 2 is admitted before it", 1
    ),
    "a newcomer before one that lost its memory": Canary(
        "admission_order", overtaken("lpm", retracted=True), "request 2 is admitted before it", 1
    ),
    "a chunk that ends within a page": Canary(
        "stream_positions", replanned(1, Segment(0, 0, 3, samples=False, pages=((0, 0),))), "ends within a page", 1
    ),
    "a step that computes nothing": Canary(
        "bounded_progress", replanned(1, Segment(0, 0, 0, samples=False)), "step 1 computes nothing"
    ),
    "a request that is never done": Canary(
        "bounded_progress", never_done(), "10 steps since the last rest; 9 are enough", 1
    ),
    "an end for a step of others": Canary(
        "fault_isolation",
        changed(STORY, "abort 2", cause=Cause.WORKER_LOST),
        "a lost step that it was no part of",
        2,
    ),
    "a third try": Canary("fault_isolation", lost_twice(), "step 3 is planned and the request, part of 2 lost", 1),
    "a refusal after the admission": Canary(
        "admission_is_monotone", changed(STORY, "abort 2", cause=Cause.OVERLOADED), "an admission limit: overloaded", 2
    ),
    "the oldest gives way": Canary(
        "admission_is_monotone", changed(STORY, "retract 3", cause=Cause.MEMORY), "nobody else is at work", 3
    ),
}

SHARED_CANARIES: dict[str, Canary] = _CACHE_CANARIES | _REPLY_CANARIES | _OUTPUT_CANARIES | _ORDER_CANARIES
