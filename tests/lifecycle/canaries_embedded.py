"""Planted violations of what requests get that want a vector."""

from __future__ import annotations

import msgspec
import numpy as np

from pawl.lifecycle.columns import Embedded
from pawl.lifecycle.records import PageCounts, Record, StepCommitted, Submitted
from pawl.lifecycle.states import Cause, Event, State
from pawl.lifecycle.step import DIGEST_BYTES
from tests.lifecycle.canaries import Canary
from tests.lifecycle.story import Segment, Story, changed

ROOM = PageCounts(16, 0, 0, 0, 0)
D, OTHER = b"d" * DIGEST_BYTES, b"o" * DIGEST_BYTES


def vectors(*given: tuple[int, bytes]) -> Embedded:
    """Of these (row, digest)."""
    return Embedded(np.array([row for row, _ in given], np.int32), b"".join(digest for _, digest in given))


def embeddings() -> Story:
    """Requests 1 and 2 are equal and want vectors, 3 wants a token. The first is computed in two steps, the second in
    one beside the third."""
    story = Story()
    story.start()
    for request, row, wanted in ((1, 0, 0), (2, 1, 0), (3, 2, 1)):
        story.submit(request, row, 6, wanted)
        at = story.labels[f"submitted {request}"]
        submitted = story.records[at]
        assert isinstance(submitted, Submitted)
        sampling = msgspec.structs.replace(submitted.sampling, embed=not wanted)
        story.records[at] = msgspec.structs.replace(submitted, sampling=sampling)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 4, samples=False, pages=((0, 0),)))
    _commit(story, 1, [Event.CHUNK])
    story.plan(2, Segment(0, 4, 2, samples=False, pages=((1, 1),)))
    _commit(story, 2, [Event.CHUNK], embedded=vectors((0, D)))
    story.move(1, 0, State.PREFILLING, Event.FINISH, State.FINISHED, Cause.EMBEDDED, num_output=0)
    story.admit(2, 1)
    story.admit(3, 2)
    both = Segment(1, 0, 6, samples=False, pages=((0, 2), (1, 3))), Segment(2, 0, 6, pages=((0, 4), (1, 5)))
    story.plan(3, *both)
    _commit(story, 3, [Event.CHUNK, Event.FIRST_TOKEN], (9,), vectors((1, D)))
    story.move(2, 1, State.PREFILLING, Event.FINISH, State.FINISHED, Cause.EMBEDDED, num_output=0)
    story.move(3, 2, State.DECODING, Event.FINISH, State.FINISHED, Cause.LENGTH, num_output=1)
    return story


def _commit(
    story: Story, step: int, events: list[Event], tokens: tuple[int, ...] = (), embedded: Embedded | None = None
) -> None:
    columns = np.array(events, np.uint8), np.array(tokens, np.int32), ROOM
    story.add(StepCommitted(step, story.now(), *columns, embedded=embedded), f"commit {step}")


def _with_a_token() -> list[Record]:
    records = changed(STORY, "plan 2", samples=np.ones(1, np.bool_))
    drawn = {"events": np.array([Event.FIRST_TOKEN], np.uint8), "tokens": np.array([9], np.int32)}
    at = STORY.labels["commit 2"]
    records[at] = msgspec.structs.replace(records[at], **drawn)
    return records


STORY = embeddings()
EMBEDDED_CANARIES: dict[str, Canary] = {
    "a vector for one who wants a token": Canary(
        "embedded_once", changed(STORY, "commit 3", embedded=vectors((1, D), (2, D))), "nobody wants one"
    ),
    "a token drawn for one who wants a vector": Canary(
        "embedded_once",
        _with_a_token(),
        "a token for a request that wants a vector",
        1,
    ),
    "no vector": Canary("embedded_once", changed(STORY, "commit 2", embedded=None), "its vector is not recorded", 1),
    "a vector twice": Canary(
        "embedded_once", changed(STORY, "commit 2", embedded=vectors((0, D), (0, D))), "a second vector", 1
    ),
    "a vector before the prompt is computed": Canary(
        "embedded_once", changed(STORY, "commit 1", embedded=vectors((0, D))), "whose end this step does not", 1
    ),
    "a vector that its equal has not": Canary(
        "embedded_once", changed(STORY, "commit 3", embedded=vectors((1, OTHER))), "not that of request 1, its equal", 2
    ),
    "an end by length of one who wants a vector": Canary(
        "embedded_once", changed(STORY, "finish 2", cause=Cause.LENGTH), "wants a vector, and finished by length", 2
    ),
    "an end by a vector that nobody wanted": Canary(
        "embedded_once", changed(STORY, "finish 3", cause=Cause.EMBEDDED), "wants no vector, and finished", 3
    ),
    "a vector of a prompt that the cache has": Canary(
        "embedded_once", changed(STORY, "admit 2", num_cached=4), "4 positions of its prompt come from the cache", 2
    ),
}
