"""Workloads that were drawn for the sake of something else, brought to edges that chance alone seldom meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pawl.actors.control import row_of
from pawl.actors.control.adapters import NAMES, drawn_load, drawn_unload
from pawl.actors.control.limits import SetInternalState
from pawl.actors.control.requests import AbortRequests
from pawl.actors.control.scaling import ScaleReplicas
from pawl.actors.control.weights import AGAIN, SendWeights
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.features.request import GRAMMARS, LIKELY, RIVALS, TOKENS
from pawl.features.row import Seeded, Source
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.weights import NAMES as WEIGHT_NAMES
from pawl.gpu.ghost.weights import GhostWeights
from pawl.loops.orders.weights import RenameWeights, UpdateWeights
from pawl.testing.expectations import BROKEN
from pawl.testing.workload import Arrival, Closing, Control, Workload

SCORED: tuple[dict[str, Any], ...] = tuple(
    {**each, "prompt_logprobs": scored} for each in RIVALS for scored in (True, False)
)
SAMPLED: tuple[dict[str, Any], ...] = (
    {"seed": 1},
    {"seed": 2, "top_k": 3},
    {"repetition_penalty": 1.5, "presence_penalty": 0.5},
    {"frequency_penalty": -0.5, "seed": 3},
    {},
)
ALIKE: tuple[tuple[dict[str, Any], ...], ...] = (
    SCORED,
    tuple({"grammar": grammar} for grammar in GRAMMARS),
    ({"embed": True, "max_new_tokens": 0}, {"embed": True, "max_new_tokens": 0}, {}),
    SAMPLED,
)
"""What is asked for side by side: scores, grammars, vectors, other draws than the likeliest."""
OF_WEIGHTS = ("weight_epochs", "weight_groups")
"""Properties that orders about weights are a matter of."""
LONG_ENOUGH = 10
"""Tokens of a request whose output is to repeat itself."""
MOST_FILLED = 256
"""Tokens of a request for an edge's sake: who has fixed a larger server would wait for them in each schedule."""
MOST_OUTLIVED = 12
"""Tokens of a request that is to outlive its replica."""
MOST_LOOKED_AT = 64
"""Prompts of which one is to be gone on with by a certain text."""
replace = msgspec.structs.replace


def edged(workload: Workload, seed: int) -> Workload:
    """The same workload, or, as `seed` has it, one with one of these edges in it."""
    source = Seeded((seed << 32) + 1)
    for edge, share in EDGES:
        if source.chance(share):
            return edge(workload, source)
    return workload


def _fills_its_room(workload: Workload, source: Source) -> Workload:
    """Somebody wants all that one request may have."""
    shape, at = workload.shape, source.within(0, len(workload.arrivals) - 1)
    arrival = workload.arrivals[at]
    # The last token is computed by nobody: where the context is longer than the pages hold, there may be one more.
    output = min(shape.room + 1, shape.max_context or shape.room) - len(arrival.prompt)
    if not 1 <= output <= MOST_FILLED or arrival.embed or arrival.session:
        return workload
    return _with(workload, at, replace(arrival, max_new_tokens=output))


def _stops_alike(workload: Workload, source: Source) -> Workload:
    """Several stop strings of somebody end at the same character, or begin at one."""
    at = source.within(0, len(workload.arrivals) - 1)
    arrival = workload.arrivals[at]
    text = ghost_vocabulary().decode(expected(arrival.prompt, arrival.max_new_tokens))
    end = source.within(1, len(text))
    stops = {text[max(0, end - count) : end] for count in (1, 2, 3)} | {text[end - 1 : end + 1]}
    if arrival.embed or not all(stops):
        return workload
    stop = tuple(sorted(stops))[: source.within(2, 4)]
    return _with(workload, at, replace(arrival, stop=stop, stop_after=None, include_stop=source.chance(0.5)))


def _stops_within_a_run(workload: Workload, source: Source) -> Workload:
    """Where there are drafts, somebody whose output repeats itself has drawn a stop token once so many are drawn."""
    at = source.within(0, len(workload.arrivals) - 1)
    arrival, room = workload.arrivals[at], min(workload.shape.room, MOST_FILLED)
    if workload.shape.speculate == "none" or room < LONG_ENOUGH or arrival.embed:
        return workload
    prompt = tuple(source.pick(TOKENS) for _ in range(source.within(4, room // 2)))
    output = source.within(4, room - len(prompt))
    repeating = Arrival(
        prompt=prompt,
        max_new_tokens=output,
        logit_bias=tuple((token, LIKELY) for token in TOKENS),
        stop_token_ids=(source.pick(TOKENS),),
        min_new_tokens=source.within(1, output - 1),
        include_stop=source.chance(0.3),
    )
    return _with(workload, at, repeating)


def _late_for_the_drain(workload: Workload, source: Source) -> Workload:
    """The engine drains, and some are sent just before that: the scheduler hears of the drain first."""
    after = source.within(0, 4)
    last = workload.arrivals[-source.within(1, 2) :]
    early = workload.arrivals[: len(workload.arrivals) - len(last)]
    late = [replace(arrival, after_tokens=after, at_s=0.0, turn_of=None, leaves_after=None) for arrival in last]
    closing = Closing(after_tokens=after, grace_s=source.pick((0.0, 0.2, 2.0)))
    return replace(workload, arrivals=(*early, *late), closing=closing)


def _have_names(workload: Workload, source: Source) -> Workload:
    """Requests have names, some that of the one before, with which they are sent, or of another one, and somebody ends
    some of them by these."""
    arrivals: list[Arrival] = []
    for number, arrival in enumerate(workload.arrivals):
        if number and not arrival.session and source.chance(0.4):
            arrivals.append(replace(arrival, rid=arrivals[-1].rid, with_previous=True))
        else:
            namesake = source.within(0, number) if source.chance(0.15) else number
            arrivals.append(replace(arrival, rid=f"name {namesake}"))
    known = [f"turn {n}" if each.session else each.rid for n, each in enumerate(arrivals)]
    orders = [
        Control(
            body=AbortRequests(rid=_named(source, known)),
            after_tokens=source.within(1, 8) if source.chance(0.6) else 0,
            at_s=source.pick((0.0, 0.001, 0.1)),
        )
        for _ in range(source.within(1, 2))
    ]
    return replace(workload, arrivals=tuple(arrivals), controls=(*workload.controls, *orders))


def _named(source: Source, known: Sequence[str]) -> str | list[str]:
    name = source.pick(known)
    return name if source.chance(0.5) else list(dict.fromkeys((name, source.pick(known), "nobody")))


def _leave_in_their_prompts(workload: Workload, source: Source) -> Workload:
    """Prompts are scored, and time is short, or somebody ends them all: some end when a part of their prompt is."""
    times = (None, 0.05, 0.2) if workload.shape.steps_take_time else (None,)
    arrivals = [
        replace(arrival, prompt_logprobs=not arrival.embed, timeout_s=source.pick(times))
        for arrival in workload.arrivals
    ]
    order = Control(body=AbortRequests(abort_all=True), after_tokens=source.within(1, 4))
    orders = () if len(times) > 1 else (order,)
    return replace(workload, arrivals=tuple(arrivals), controls=(*workload.controls, *orders))


def _side_by_side(workload: Workload, source: Source) -> Workload:
    """Most ask for the same rare thing, each in another way: what is of one in a step must not go to another."""
    ways = source.pick(ALIKE)
    arrivals = [replace(each, **source.pick(ways)) if _is_plain(each) else each for each in workload.arrivals]
    return replace(workload, arrivals=tuple(arrivals))


def _is_plain(arrival: Arrival) -> bool:
    return not (arrival.embed or arrival.session or arrival.grammar or arrival.stop_after or arrival.stop)


def _adapters_come_and_go(workload: Workload, source: Source) -> Workload:
    """Where there are adapters all requests name some, which are loaded first, and unloaded under them or only make way
    for each other, where fewer may be loaded."""
    if not workload.shape.max_loras:
        return workload
    loads = [Control(body=drawn_load(source, name)) for name in NAMES]
    gone = [drawn_unload(source, source.pick(NAMES)) for _ in range(source.within(0, 2))]
    # Where they only make way some come when all have been read.
    begins_s = (0.001,) if gone else (0.001, 0.5, 1.0)
    arrivals = [
        each
        if each.session
        else replace(each, adapter=source.pick(("", *NAMES, *NAMES)), at_s=each.at_s or source.pick(begins_s))
        for each in workload.arrivals
    ]
    unloads = [Control(body=body, after_tokens=source.within(0, 6), at_s=0.002) for each in gone for body in each]
    others = [each for each in workload.controls if gone or row_of(each.body).proves != "adapter_references"]
    return replace(workload, arrivals=tuple(arrivals), controls=(*loads, *others, *unloads))


def _weights_keep_their_names(workload: Workload, source: Source) -> Workload:
    """The weights of the start are read and sent again, in parts, under another name or under none, and are renamed:
    the tokens stay the same, and what has no name keeps the one before. Then there may be more replicas."""
    others = [each for each in workload.controls if row_of(each.body).proves not in OF_WEIGHTS]
    orders = [_of_the_start(source) for _ in range(source.within(2, 5))]
    if workload.shape.max_replicas:
        more = ScaleReplicas(workload.shape.max_replicas, grace_s=0.0, on_load=False)
        orders.append(Control(body=more, at_s=source.pick((0.1, 0.5, 2.5))))
    return replace(workload, controls=(*others, *orders))


def _few_may_wait(workload: Workload, source: Source) -> Workload:
    """Only one or two may wait, and most come when others are at work, or have lost their memory."""
    most = min(source.within(1, 2), workload.shape.max_queued)
    arrivals = [
        each if each.session or each.with_previous else replace(each, after_tokens=source.within(0, 6))
        for each in workload.arrivals
    ]
    order = Control(body=SetInternalState({"max_queued": most}))
    return replace(workload, arrivals=tuple(arrivals), controls=(order, *workload.controls))


def _outlive_their_replica(workload: Workload, source: Source) -> Workload:
    """Where there are several replicas requests are long, each a process, so that who is lost has given out a part."""
    shape = workload.shape
    if not shape.replicas > 1 or workload.closing is not None:
        return workload
    arrivals = [
        replace(each, max_new_tokens=source.within(min(4, most), most))
        if (most := min(shape.room - len(each.prompt), MOST_OUTLIVED)) > 0 and not each.embed
        else each
        for each in workload.arrivals
    ]
    return replace(workload, arrivals=tuple(arrivals), processes=True)


def _stops_at_a_character(workload: Workload, source: Source) -> Workload:
    """A stop string of somebody ends with, or begins with, a character that is more than one byte, and more than one
    token."""
    at = source.within(0, len(workload.arrivals) - 1)
    arrival = workload.arrivals[at]
    if arrival.embed or arrival.session or arrival.grammar or not arrival.prompt:
        return workload
    for _ in range(MOST_LOOKED_AT):
        letters = source.within(ord("a"), ord("z")), source.within(ord("a"), ord("z"))
        prompt = (*arrival.prompt[:-2], *letters)[-len(arrival.prompt) :]
        text = ghost_vocabulary().decode(expected(prompt, arrival.max_new_tokens))
        places = [place for place, each in enumerate(text) if not each.isascii() and each != BROKEN]
        if places:
            first = source.pick(places)
            stop = source.pick((text[first], text[max(0, first - 1) : first + 1], text[first : first + 2]))
            return _with(workload, at, replace(arrival, prompt=prompt, stop=(stop,), include_stop=source.chance(0.3)))
    return workload


def _of_the_start(source: Source) -> Control:
    name, weights = source.pick((None, None, *AGAIN)), GhostWeights()
    aborts = source.chance(0.2)
    parts = [(weights.file(part), last) for part in WEIGHT_NAMES for last in (False, False, True)]
    file, last = source.pick((*parts, (weights.file(), True)))
    body: Any = source.pick(
        (
            UpdateWeights(model_path=AGAIN["again"], weight_version=name, abort_all_requests=aborts),
            SendWeights(safetensors=file, last=last, weight_version=name, abort_all_requests=aborts),
            RenameWeights(source.pick(tuple(AGAIN)), abort_all_requests=aborts),
        )
    )
    in_work = source.within(1, 8) if source.chance(0.3) else 0
    return Control(body=body, after_tokens=in_work, at_s=source.pick((0.0, 0.001, 0.1, 0.5, 1.0)))


def _with(workload: Workload, at: int, arrival: Arrival) -> Workload:
    return replace(workload, arrivals=(*workload.arrivals[:at], arrival, *workload.arrivals[at + 1 :]))


EDGES: tuple[tuple[Callable[[Workload, Source], Workload], float], ...] = (
    (_fills_its_room, 0.08),
    (_stops_alike, 0.05),
    (_stops_within_a_run, 0.08),
    (_late_for_the_drain, 0.04),
    (_have_names, 0.07),
    (_leave_in_their_prompts, 0.04),
    (_side_by_side, 0.08),
    (_adapters_come_and_go, 0.25),
    (_weights_keep_their_names, 0.08),
    (_few_may_wait, 0.08),
    (_stops_at_a_character, 0.08),
    (_outlive_their_replica, 0.8),
)
"""What makes it, and in what share of those that have none of the edges before."""
