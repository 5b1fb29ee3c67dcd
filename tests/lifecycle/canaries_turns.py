"""Planted violations of whose turn it is: to decode in a step of a pipeline, and to have its prompt computed."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.records import Idled, Record, Started, Submitted
from pawl.lifecycle.states import Event
from tests.lifecycle.canaries import Canary
from tests.lifecycle.story import AT_REST, Segment, Story, token

COUNT = 4


def through(stages: int, *steps: tuple[int, ...], come_back: int = 0, mixed: bool = False) -> list[Record]:
    """Four requests that decode after one step, then `steps` of these rows; before the last of them as many as
    `come_back`."""
    story = Story()
    story.start()
    started = story.records[0]
    assert isinstance(started, Started)
    loop = started.config["loop"] | {"pacing": "pipeline", "stages": stages, "mixed": mixed}
    story.records[0] = msgspec.structs.replace(started, config=started.config | {"loop": loop})
    for row in range(COUNT):
        story.submit(row + 1, row, 1, 9)
        story.admit(row + 1, row)
    story.plan(1, *(Segment(row, 0, 1, pages=((0, row),)) for row in range(COUNT)))
    story.commit(1, [Event.FIRST_TOKEN] * COUNT, COUNT)
    starts = dict.fromkeys(range(COUNT), 1)
    for step, rows in enumerate(steps, 2):
        if step == len(steps) + 1:
            for oldest, drew in enumerate(steps[:come_back], 2):
                story.commit(oldest, [Event.TOKEN] * len(drew), len(drew))
        story.plan(step, *(token(row, starts[row]) for row in rows))
        starts |= {row: starts[row] + 1 for row in rows}
    return story.records


PROMPTS = (28, 8, 8, 8)


def prompts(*steps: dict[int, int], priority: int = 0, policy: str = "priority") -> list[Record]:
    """Steps that compute so many tokens of these rows' prompts, in this order. Rows begin with the first step that
    names them. `priority`: of row 0; of the others: 0. Pages are plenty."""
    story = Story()
    story.start()
    started = story.records[0]
    assert isinstance(started, Started)
    loop = started.config["loop"] | {"policy": policy}
    story.records[0] = msgspec.structs.replace(started, config=started.config | {"loop": loop})
    starts: dict[int, int] = {}
    for number, step in enumerate(steps, 1):
        for row in step.keys() - starts.keys():
            story.submit(row + 1, row, PROMPTS[row], 9)
            submitted = story.records[story.labels[f"submitted {row + 1}"]]
            assert isinstance(submitted, Submitted)
            if not row:
                story.records[story.labels["submitted 1"]] = msgspec.structs.replace(submitted, priority=priority)
            story.admit(row + 1, row)
            starts[row] = 0
        segments = []
        for row, count in step.items():
            start, end = starts[row], starts[row] + count
            pages = tuple((index, 7 * row + index) for index in range(start // 4, end // 4))
            segments.append(Segment(row, start, count, samples=end == PROMPTS[row], pages=pages))
            starts[row] = end
        story.plan(number, *segments)
        drawn = [segment.samples for segment in segments]
        story.commit(number, [Event.FIRST_TOKEN if each else Event.CHUNK for each in drawn], sum(drawn), AT_REST)
    return story.records


TURNS_CANARIES: dict[str, Canary] = {
    "a request in two stages at once": Canary(
        "fair_micro_batches", through(3, (0, 1), (2,), (1,)), "step 4 takes it, which waits for what step 2 draws", 2
    ),
    "a micro-batch of everybody": Canary(
        "fair_micro_batches",
        through(2, (0, 1, 2, 3)),
        "step 2 takes 4 of 4 requests that decode .* 2 micro-batches; 4 decode in all",
    ),
    "a micro-batch that leaves nothing for the next": Canary(
        "fair_micro_batches",
        through(3, (0, 1), (2, 3)),
        "step 3 takes 2 of 2 requests that decode .* 2 micro-batches",
    ),
    "a micro-batch of fewer than their share": Canary(
        "fair_micro_batches",
        through(2, (0,)),
        "step 2 takes 1 of 4 requests that decode and could be in it, and none of the others needs a page",
    ),
    "a step of prompts beside those that decode and need nothing": Canary(
        "fair_micro_batches", through(2, (), mixed=True), "step 2 takes 0 of 4 requests that decode and could be in it"
    ),
    "nothing is planned while some could decode": Canary(
        "fair_micro_batches",
        [*through(2, (0, 1)), Idled(9.0)],
        "nothing is planned beside 1 steps in flight, 2 requests that decode are in none of the last 1",
    ),
    "a turn before one that has waited longer": Canary(
        "fair_micro_batches",
        through(2, (0, 1), (2, 3), (0, 2), come_back=2),
        "step 4 leaves it out, whose last turn was step 2",
        2,
    ),
    "more steps than there are stages": Canary(
        "fair_micro_batches", through(2, *((0, 1), (2, 3)) * 2), "4 steps are in flight through 2 stages"
    ),
    "a prompt that is behind others for a third time": Canary(
        "prompts_take_turns",
        prompts({0: 12}, {1: 8, 0: 4}, {2: 8, 0: 4}, {3: 8}),
        "it is behind another prompt in 3 steps running",
        1,
    ),
    "newcomers in the turn of a prompt that was behind others twice": Canary(
        "prompts_take_turns",
        prompts({0: 12}, {1: 8, 0: 4}, {2: 8, 0: 4}, {0: 4, 3: 8}),
        "step 4 leaves some of it, and computes 8 tokens of those that come later",
        1,
    ),
    "a longer prompt that begins before one that has begun goes on": Canary(
        "prompts_take_turns",
        prompts({1: 4}, {0: 12}),
        "step 2 leaves some of it, and computes 12 tokens of those that come later",
        2,
    ),
    "the prompt with most left first": Canary(
        "prompts_take_turns",
        prompts({0: 4, 1: 4}, {0: 8}),
        "step 2 leaves some of it, and computes 8 tokens of those that come later",
        2,
    ),
    "a short prompt before one of higher priority": Canary(
        "prompts_take_turns",
        prompts({0: 12}, {1: 8, 0: 4}, priority=1),
        "step 2 leaves some of it, and computes 8 tokens of those that come later",
        1,
    ),
}
