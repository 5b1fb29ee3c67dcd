"""Planted violations of what steps with drafts may be."""

from __future__ import annotations

import msgspec
import numpy as np

from pawl.lifecycle.records import Record, Started, StepCommitted
from pawl.lifecycle.states import Event
from tests.lifecycle.canaries import Canary
from tests.lifecycle.story import PAGES, Segment, Story, planned


def drafting(*segments: Segment, behind: bool = False, **loop: object) -> list[Record]:
    """A request of 6 tokens that wants 6 more, with a step of these segments once it decodes; `behind`: and a second
    one that is planned before that is resolved. `loop`: settings."""
    story = Story()
    story.start()
    started = story.records[0]
    assert isinstance(started, Started)
    settings = started.config["loop"] | {"speculation": {"num_speculative_tokens": 3, "max_positions": 9}} | loop
    story.records[0] = msgspec.structs.replace(started, config=started.config | {"loop": settings})
    story.submit(1, 0, 6, 6)
    story.submit(2, 1, 5, 6)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 6, pages=((0, 0), (1, 1))))
    story.commit(1, [Event.FIRST_TOKEN], 1)
    if any(segment.row == 1 for segment in segments):
        story.admit(2, 1)
    story.plan(2, *segments)
    if behind:
        story.admit(2, 1)
        story.plan(3, Segment(1, 0, 5, pages=((0, 4), (1, 5))))
    return story.records


def drafts(length: int, pages: tuple[tuple[int, int], ...] = ((2, 2),)) -> Segment:
    """A run of the first request."""
    return Segment(0, 6, length, chained=True, pages=pages)


def drafting_again() -> list[Record]:
    """A draft behind one of which nothing was right."""
    none, more = np.array([1], np.int32), Segment(0, 7, 2, chained=True, pages=())
    events, drawn = np.array([Event.TOKEN], np.uint8), np.array([200], np.int32)
    return [*drafting(drafts(2)), StepCommitted(2, 9.0, events, drawn, PAGES, counts=none), planned(3, 9.5, more)]


DRAFTED_CANARIES: dict[str, Canary] = {
    "a draft that nobody set up": Canary(
        "drafts_in_bounds", drafting(drafts(2), speculation=None), "draft of 1 tokens, where 0 are allowed", 1
    ),
    "a draft that is too long": Canary(
        "drafts_in_bounds", drafting(drafts(5)), "draft of 4 tokens, where 3 are allowed", 1
    ),
    "a draft beside a prompt": Canary(
        "drafts_in_bounds",
        drafting(drafts(2), Segment(1, 0, 5, pages=((0, 4), (1, 5)))),
        "step 2 has drafts and computes 7 positions, prompts or more than 9",
        1,
    ),
    "a draft in a step that is too large": Canary(
        "drafts_in_bounds", drafting(drafts(4), prefill_chunk=3), "computes 4 positions, prompts or more than 3", 1
    ),
    "a draft for positions that are never computed": Canary(
        "drafts_in_bounds",
        drafting(drafts(6), speculation={"num_speculative_tokens": 8, "max_positions": 9}),
        "positions that are never computed",
        1,
    ),
    "a draft at once behind one of which nothing was right": Canary(
        "drafts_in_bounds", drafting_again(), "has a draft at 8 tokens, and was to have none before 12", 1
    ),
    "a step behind drafts": Canary(
        "drafts_in_bounds", drafting(drafts(3), behind=True), "step 3 is planned before .* drafts of step 2"
    ),
}
