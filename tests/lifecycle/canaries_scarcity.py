"""Planted violations where pages are short, and where prompts begin alike: who gives way, and who waits."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.records import Cached, Idled, PageCounts, Record, TierTold
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.canaries import Canary
from tests.lifecycle.story import NUM_PAGES, Segment, Story, removed, stored, token


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


def gives_way(request: int, num_pages: int, *, fetched: int | None = None, idle: bool = False) -> list[Record]:
    """One of the two is retracted, and the other goes on. `fetched`: a third one has so many tokens on the device, and
    waits for what follows; `idle`: nothing could be planned before."""
    story = short_of_pages(num_pages)
    if fetched is not None:
        story.submit(3, 2, 13, 1)
        story.move(3, 2, State.QUEUED, Event.FETCH, State.QUEUED_FETCHING, num_cached=fetched)
    if idle:
        story.add(Idled(story.now()))
    story.move(request, request - 1, State.DECODING, Event.RETRACT, State.QUEUED, Cause.MEMORY)
    story.plan(2, token(2 - request, 4, pages=((1, 2),)))
    return story.records


def gives_way_between_two() -> list[Record]:
    """Of three at work the second is retracted."""
    story = Story()
    story.start()
    for request in (1, 2, 3):
        story.submit(request, request - 1, 4, 6)
        story.admit(request, request - 1)
    story.plan(1, *(Segment(row, 0, 4, pages=((0, row),)) for row in range(3)))
    story.commit(1, [Event.FIRST_TOKEN] * 3, 3, PageCounts(NUM_PAGES - 3, 3, 0, 0, 0))
    story.move(2, 1, State.DECODING, Event.RETRACT, State.QUEUED, Cause.MEMORY)
    return story.records


def brought_in_place() -> list[Record]:
    """A row's page has an equal in the cache and is given back; what comes from below gets it, and leaves again before
    the next step says what the row has instead."""
    story = Story()
    story.start()
    story.add(TierTold("filled", 1, 1, b"", story.now()))
    story.add(Cached((stored("", None, 1),)))
    story.submit(1, 0, 5, 3)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 4, samples=False, pages=((0, 0),)))
    story.commit(1, [Event.CHUNK], 0, PageCounts(NUM_PAGES - 1, 0, 1, 0, 0))
    story.add(TierTold("filled", 2, 1, b"", story.now()), "filled")
    story.add(Cached((stored("salt", None, 0),)))
    story.add(Cached((removed(0),)))
    story.plan(2, Segment(0, 4, 1, pages=((0, 1), (1, 2))))
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


def passed_over(*ended: int) -> list[Record]:
    """The last of six is admitted. The first is at work, and the second begins as it does: it may wait for that. Nobody
    need wait for anything after it; those who have `ended` by then are passed over by nobody."""
    story = Story()
    story.start()
    story.records[0] = msgspec.structs.replace(story.records[0], config={"loop": {"cache": "radix", "policy": "fcfs"}})
    for request in range(1, 7):
        story.submit(request, request, 6 if request < 3 else 3, 1)
    for request in ended:
        story.move(request, request, State.QUEUED, Event.ABORT, State.ABORTED, Cause.CLIENT, num_output=0)
    story.admit(1, 1)
    story.admit(6, 6)
    return story.records


def computed_twice_behind_a_chunk() -> list[Record]:
    """The same of a prompt whose first page is computed and shared, while the second one is."""
    story = Story()
    story.start()
    story.records[0] = msgspec.structs.replace(story.records[0], config={"loop": {"cache": "radix"}})
    story.submit(1, 1, 10, 1)
    story.admit(1, 1)
    story.plan(1, Segment(1, 0, 4, samples=False, pages=((0, 0),)))
    story.commit(1, [Event.CHUNK], 0, PageCounts(NUM_PAGES - 1, 0, 1, 0, 0))
    story.add(Cached((stored("", None, 0),)))
    story.submit(2, 2, 10, 1)
    story.admit(2, 2, num_cached=4)
    return story.records


SCARCITY_CANARIES: dict[str, Canary] = {
    "the older gives way": Canary("admission_is_monotone", gives_way(1, 3), "request 2, which is younger, stays", 1),
    "gives way without need": Canary(
        "admission_is_monotone", gives_way(2, 4), "2 pages that nobody used were enough for the 2", 2
    ),
    "gives way though pages come": Canary(
        "admission_is_monotone", gives_way(2, 4, fetched=0), "2 pages that nobody used were enough for the 2", 2
    ),
    "a page for the younger": Canary(
        "admission_is_monotone", younger_goes_on(), "leaves it out, which decodes, and gives a page to request 2", 1
    ),
    "a page that another computes": Canary(
        "admission_order", computed_twice(), "begins with the page at position 0, which request 1 computes", 2
    ),
    "a page behind those that are shared, that another computes": Canary(
        "admission_order", computed_twice_behind_a_chunk(), "with the page at position 4, which request 1 computes", 2
    ),
    "behind one that waits for a page of another": Canary(
        "admission_order", passed_over(), "request 6 is admitted before it", 3
    ),
    "behind one that has ended as well": Canary(
        "admission_order", passed_over(3, 4), "request 6 is admitted before it", 5
    ),
}
