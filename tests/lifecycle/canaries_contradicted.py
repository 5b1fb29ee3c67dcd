"""Planted violations that take more than one record, or more than one number, to be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle.columns import Scores
from pawl.lifecycle.records import Answered, Checkpoint, Contained, Record, Started
from pawl.lifecycle.states import Cause
from tests.lifecycle.canaries import STORY, Canary
from tests.lifecycle.canaries_shared import ANSWERS, answered, scored
from tests.lifecycle.story import changed


def of_a_distribution(change: Callable[[Scores], Scores]) -> list[Record]:
    """Request 2 gets its token's log-probability, those of the three likeliest, and of token 7; all but what is changed
    might be of one distribution."""
    records = scored({"top_logprobs": 3, "token_ids_logprob": (7,)}, (1, 5, 4))
    at = STORY.labels["commit 2"]
    record: Any = records[at]
    tokens, top = np.array([50, 201, 51, 7], np.int32), np.array([-1.0, -1.5, -1.5, -4.0], np.float32)
    sound = record.scores._replace(chosen=np.array([-1.5], np.float32), top_tokens=tokens, top=top)
    records[at] = msgspec.structs.replace(record, scores=change(sound))
    return records


def top(*numbers: float) -> list[Record]:
    return of_a_distribution(lambda scores: scores._replace(top=np.array(numbers, np.float32)))


def of_token(*tokens: int) -> list[Record]:
    return of_a_distribution(lambda scores: scores._replace(top_tokens=np.array(tokens, np.int32)))


def started(**about: object) -> list[Record]:
    """The story of an engine that says this of itself, or this of its loop."""
    first = STORY.records[0]
    assert isinstance(first, Started)
    return changed(STORY, "started", config=first.config | about)


def as_prefill_replica(records: list[Record]) -> list[Record]:
    loop = {"loop": {**STORY.records[0].config["loop"], "role": "prefill"}}  # type: ignore[union-attr]
    return [started(**loop)[0], *records[1:]]


def unwritten() -> list[Record]:
    """The failure that the story survives, and no checkpoint."""
    return [record for record in STORY.records if not isinstance(record, Checkpoint)]


NUMBER = "logprobs_as_asked"
CONTRADICTED_CANARIES: dict[str, Canary] = {
    "a log-probability above zero": Canary(
        NUMBER,
        of_a_distribution(lambda scores: scores._replace(chosen=np.array([0.5], np.float32))),
        "position 5 the log-probability of token 201 is 0.5",
        2,
    ),
    "a log-probability that is no number": Canary(
        NUMBER, top(-1.0, -1.5, float("nan"), -4.0), "the log-probability of token 51 is nan", 2
    ),
    "another log-probability of the token among the likeliest": Canary(
        NUMBER, top(-1.0, -1.4, -1.5, -4.0), "token 201 has the log-probabilities -1.5 and -1.39", 2
    ),
    "one of the likeliest twice": Canary(NUMBER, of_token(50, 50, 51, 7), "token 50 has .* -1.0 and -1.5", 2),
    "two that are equally likely and the same": Canary(NUMBER, of_token(50, 51, 51, 7), "stands there twice", 2),
    "the likeliest in another order": Canary(NUMBER, top(-1.6, -1.5, -1.55, -4.0), "not stand in falling order", 2),
    "a named token above the likeliest": Canary(
        NUMBER, top(-1.0, -1.5, -1.5, -0.9), "has -1.0, and another .* -0.8", 2
    ),
    "more than all": Canary(NUMBER, top(-0.3, -1.5, -1.5, -0.4), "are 1.85[0-9]+ together", 2),
    "a reply of output before the request came": Canary(
        "stream_equals_result",
        [*STORY.records, Answered(3, Cause.STOP_STRING, 1, 0.5, 1)],
        "at 0.5 its client had been told 1 tokens",
        3,
    ),
    "a time that was over before the request came": Canary(
        "time_order", changed(STORY, "submitted 2", deadline=0.5), "its time was over at 0.5", 2
    ),
    "a step behind a failure of which no checkpoint was taken": Canary(
        "fault_isolation", unwritten(), "step 6 is planned, and of the failure survived at .* no checkpoint"
    ),
    "a failure that ended nobody": Canary(
        "fault_isolation",
        [msgspec.structs.replace(each, request=3) if isinstance(each, Contained) else each for each in STORY.records],
        "said to have ended it, and it is live",
        3,
    ),
    "an engine that is not ours": Canary("start_agrees", started(outside="mine 1.0"), "a scheduler that is not ours"),
    "a prefill replica with output": Canary("start_agrees", as_prefill_replica(STORY.records), "asked for output", 1),
    "a prefill replica with clients": Canary(
        "start_agrees", as_prefill_replica([STORY.records[0], *answered(*ANSWERS)[-4:]]), "a client of a prefill", 1
    ),
}
