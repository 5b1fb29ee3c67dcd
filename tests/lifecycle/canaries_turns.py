"""Planted violations of who is in which step of a pipeline."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.records import Record, Started
from pawl.lifecycle.states import Event
from tests.lifecycle.canaries import Canary
from tests.lifecycle.story import Segment, Story, token

COUNT = 4


def through(stages: int, *steps: tuple[int, ...], come_back: int = 0) -> list[Record]:
    """Four requests that decode after one step, then `steps` of these rows; before the last of them as many as
    `come_back`."""
    story = Story()
    story.start()
    started = story.records[0]
    assert isinstance(started, Started)
    loop = started.config["loop"] | {"pacing": "pipeline", "stages": stages}
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
    "a turn before one that has waited longer": Canary(
        "fair_micro_batches",
        through(2, (0, 1), (2, 3), (0, 2), come_back=2),
        "step 4 leaves it out, whose last turn was step 2",
        2,
    ),
    "more steps than there are stages": Canary(
        "fair_micro_batches", through(2, *((0, 1), (2, 3)) * 2), "4 steps are in flight through 2 stages"
    ),
}
