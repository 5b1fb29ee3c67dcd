"""Numbers of a checkpoint that no run comes to show, also where nothing that follows depends on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pawl.lifecycle.numbers import Newest
from pawl.lifecycle.records import Checkpoint, Delivered
from pawl.loops.plausible import check_newest, check_numbers
from pawl.loops.replay import Impossible, Replay, replay
from tests.loops.test_snapshot import at, checkpoints, judged, leaves, recorded

ELSEWHERE = {
    *("admissions", "behind", "step", "newest", "newest_long", "memory.epoch", "memory.cache.holds"),
    *("groups.joined", "weights.updates", "residency.moves"),
}
"""What counts something, beside the counters and what the cache counts."""
ADAPTER: dict[str, Any] = {"number": 1, "name": "x", "source": "s", "phase": "ready", "fingerprint": "f"}
ADAPTER |= dict.fromkeys(("ticket", "used", "asker"), 0)
UPDATE = {"ticket": 2}


def with_adapter(**fields: int) -> dict[str, Any]:
    return {"adapters": [ADAPTER | fields], "newest": 1}


def state_of(checkpoint: Checkpoint) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.msgpack.decode(checkpoint.state or b"")
    return plain


def some_checkpoint() -> Checkpoint:
    """Of a run with lost steps, at which requests live."""
    found = [each for _, each in checkpoints(recorded(0, "overlap", "drafts"))]
    return next(each for each in reversed(found) if state_of(each)["table"]["rows"])


def with_state(checkpoint: Checkpoint, plain: dict[str, Any]) -> Checkpoint:
    return msgspec.structs.replace(checkpoint, state=msgspec.msgpack.encode(plain))


@pytest.mark.parametrize("value", [-1, None, True, 1.0])
def test_what_is_no_count_counts_nothing(value: object) -> None:
    checkpoint = some_checkpoint()
    changed = 0
    for path in leaves(state_of(checkpoint)):
        plain = state_of(checkpoint)
        if "counters" not in path and "counts" not in path and ".".join(map(str, path)) not in ELSEWHERE:
            continue
        at(plain, path[:-1])[path[-1]] = value
        changed += 1
        with pytest.raises(Impossible, match=f"a checkpoint counts {value} "):
            Replay.begin(with_state(checkpoint, plain))
    assert changed > 30


def more_causes(plain: dict[str, Any]) -> None:
    plain["counters"]["by_cause"]["length"] += 1


def an_older_step(plain: dict[str, Any]) -> None:
    plain["step"] = plain["counters"]["steps"] - plain["counters"]["steps_lost"] - 1


def more_accepted(plain: dict[str, Any]) -> None:
    plain["counters"]["accepted_tokens"] = plain["counters"]["draft_tokens"] + 1


def more_drafts(plain: dict[str, Any]) -> None:
    plain["counters"]["drafts"] = plain["counters"]["draft_tokens"] + 1


def free_twice(plain: dict[str, Any]) -> None:
    plain["table"]["free"].append(plain["table"]["free"][0])


def no_row(plain: dict[str, Any]) -> None:
    plain["table"]["free"].pop()


def an_older_one(plain: dict[str, Any]) -> None:
    plain["newest"] = 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (more_causes, r"counts \d+ requests that ended, and \d+ by their causes"),
        (an_older_step, r"counts \d+ steps and \d+ lost ones, and step \d+ was the newest"),
        (more_accepted, "counts more drafts, or tokens of them that were accepted"),
        (more_drafts, "counts more drafts, or tokens of them that were accepted"),
        (free_twice, "has a row that is neither free nor one request's"),
        (no_row, "has a row that is neither free nor one request's"),
        (an_older_one, r"has request \d+, and an older one is said to be the newest"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_named_as_that(
    change: Callable[[dict[str, Any]], None], told: str
) -> None:
    checkpoint = some_checkpoint()
    plain = state_of(checkpoint)
    Replay.begin(with_state(checkpoint, plain))
    change(plain)
    forged = with_state(checkpoint, plain)
    with pytest.raises(Impossible, match=told):
        Replay.begin(forged)
    assert judged([forged]), "and an audit says so"


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"groups": {"groups": {"mine": {"number": 3}}, "joined": 2}}, "group 3, and 2"),
        (
            {"companions": [{"adapters": [ADAPTER | {"number": 2, "ticket": 0, "used": 0}], "newest": 1}]},
            "adapter 2, and 1",
        ),
        (
            {"companions": [{"adapters": [ADAPTER | {"number": 1, "ticket": 5, "used": 0}], "newest": 1}]},
            "ticket 5, and 4",
        ),
        (
            {"companions": [{"adapters": [ADAPTER | {"number": 1, "ticket": 0, "used": 9}], "newest": 1}]},
            "use 9, and 8",
        ),
        ({"companions": [{"prefills": [[7, 0, b"", 0]]}]}, "prefill 7, and 4"),
        ({"companions": [{"fetching": {"tickets": 1, "fetches": [[2, 0]]}}]}, "fetch 2, and 1"),
    ],
)
def test_what_has_a_number_is_not_newer_than_the_newest(part: dict[str, Any], told: str) -> None:
    plain = state_of(some_checkpoint())
    check_numbers(plain)
    if "companions" in part:
        (companion,) = part["companions"]
        part = {"companions": [{"tickets": 4, "uses": 8, **companion}]}
    with pytest.raises(ValueError, match=f"has {told} is said to be the newest"):
        check_numbers(plain | part)


def test_long_and_short_prompts_have_numbers_of_their_own() -> None:
    check_newest(Newest(5, 128), [5, 64, 128])
    with pytest.raises(ValueError, match="has request 192"):
        check_newest(Newest(500, 128), [5, 192])


@pytest.mark.parametrize(
    ("adapters", "fits"),
    [
        ([{}, {"number": 2, "name": "y"}], True),
        ([{}, {"number": 2, "phase": "draining"}], True),
        ([{"phase": "loading", "fingerprint": "", "ticket": 3}], True),
        ([{}, {"number": 2}], False),
        ([{"number": 2}, {"number": 1, "name": "y"}], False),
        ([{"number": 0}], False),
        ([{}, {"name": "y"}], False),
        ([{"fingerprint": ""}], False),
        *(([{field: ""}], False) for field in ("name", "source")),
        *(([{field: -1}], False) for field in ("ticket", "used", "asker")),
    ],
)
def test_adapters_are_told_apart_and_known_once_they_are_ready(adapters: list[dict[str, Any]], fits: bool) -> None:
    there = [ADAPTER | each for each in adapters]
    companion = {"adapters": there, "newest": 3, "tickets": 4, "uses": 8}
    judged_as(state_of(some_checkpoint()) | {"companions": [companion]}, fits, "a checkpoint has (the|two|adapters)")


@pytest.mark.parametrize(
    ("weights", "fits"),
    [
        ({"state": "serving", "update": None, "updates": 2}, True),
        ({"state": "staging", "update": UPDATE, "updates": 2}, True),
        ({"state": "staging", "update": UPDATE, "updates": 1}, False),
        ({"state": "staging", "update": UPDATE, "updates": 3}, False),
        ({"state": "staging", "update": None, "updates": 2}, False),
        ({"state": "serving", "update": UPDATE, "updates": 2}, False),
    ],
)
def test_an_update_of_the_weights_is_the_newest_and_there_while_there_is_one(
    weights: dict[str, Any], fits: bool
) -> None:
    judged_as(state_of(some_checkpoint()) | {"weights": weights}, fits, "a checkpoint (has weights|counts)")


@pytest.mark.parametrize(
    "part",
    [
        {"try_again": None},
        {"sessions": [[None, 1, 0.0, False, "open", 1, [], []]]},
        {"sessions": [["mine", 1, 0.0, False, "shut", 1, [], []]]},
        {"companions": [{"ready": [None]}]},
        {"companions": [{"decided": [None]}]},
        {"companions": [{"fetching": {"resume_at": None, "tickets": 0, "fetches": []}}]},
    ],
)
def test_what_is_of_another_type_than_a_loop_has_is_not_taken(part: dict[str, Any]) -> None:
    judged_as(state_of(some_checkpoint()) | part, False, r"Expected|Invalid")


def judged_as(plain: dict[str, Any], fits: bool, told: str) -> None:
    if fits:
        check_numbers(plain)
        return
    with pytest.raises(ValueError, match=told):
        check_numbers(plain)


@pytest.mark.parametrize(("numbers", "wrong"), [((1, 0, 2, 5), None), ((1, 1), 1), ((3, 0, 2), 2), ((0, -1), -1)])
def test_whoever_waits_for_an_order_has_a_number_of_its_own(numbers: tuple[int, ...], wrong: int | None) -> None:
    started = recorded(0, "overlap", "drafts")[0]
    orders = [Delivered("continue", {}, number, 0.0) for number in numbers]
    if wrong is None:
        replay([started, *orders])
        return
    with pytest.raises(Impossible, match=f"order {wrong} comes behind order {max(numbers)}"):
        replay([started, *orders])
