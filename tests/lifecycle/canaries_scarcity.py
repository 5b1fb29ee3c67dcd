"""Planted violations where pages are short, and where prompts begin alike: who gives way, and who waits."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.records import PageCounts, Record
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.canaries import Canary
from tests.lifecycle.story import Segment, Story, token


def short_of_pages(num_pages: int) -> Story:
    """Two requests that each need another page for their next token, of a pool with so many."""
    story = Story()
    story.start()
    story.records[0] = msgspec.structs.replace(story.records[0], num_pages=num_pages)
    for request in (1, 2):
        story.submit(request, request - 1, 4, 6)
        story.admit(request, request - 1)
    story.plan(1, Segment(0, 0, 4, pages=((0, 0),)), Segment(1, 0, 4, pages=((0, 1),)))
    story.commit(1, [Event.FIRST_TOKEN, Event.FIRST_TOKEN], 2, PageCounts(num_pages - 2, 2, 0, 0, 0))
    return story


def younger_goes_on() -> list[Record]:
    """There is one page, and the younger takes it."""
    story = short_of_pages(3)
    story.plan(2, token(1, 4, pages=((1, 2),)))
    return story.records


def gives_way(request: int, num_pages: int) -> list[Record]:
    """One of the two is retracted, and the other goes on."""
    story = short_of_pages(num_pages)
    story.move(request, request - 1, State.DECODING, Event.RETRACT, State.QUEUED, Cause.MEMORY)
    story.plan(2, token(2 - request, 4, pages=((1, 2),)))
    return story.records


def computed_twice() -> list[Record]:
    """Two requests with equal prompts that are admitted together."""
    story = Story()
    story.start()
    story.records[0] = msgspec.structs.replace(story.records[0], config={"loop": {"cache": "radix"}})
    for request in (1, 2):
        story.submit(request, request, 6, 1)
        story.admit(request, request)
    return story.records


SCARCITY_CANARIES: dict[str, Canary] = {
    "the older gives way": Canary("admission_is_monotone", gives_way(1, 3), "request 2, which is younger, stays", 1),
    "gives way without need": Canary(
        "admission_is_monotone", gives_way(2, 4), "2 pages that nobody used were enough for the 2", 2
    ),
    "a page for the younger": Canary(
        "admission_is_monotone", younger_goes_on(), "leaves it out, which decodes, and gives a page to request 2", 1
    ),
    "a page that another computes": Canary(
        "admission_order", computed_twice(), "begins with the page at position 0, which request 1 computes", 2
    ),
}
