"""Long prompts that wait for the tokenizer are bounded together; short ones are always let in."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.messages.generate import Accepted, Refused, Submit
from pawl.actors.unread import MOST_UNREAD, SHORT, long_characters
from pawl.lifecycle.states import Cause
from tests.actors.test_gateway import World, done

LONG = "x" * 1_000_000


def prompt(**what: Any) -> Submit:
    return Submit(request=0, rid="", **what)


def refused(world: World, submit: Submit) -> bool:
    (_, (inbox,)) = world.open(submit)
    assert inbox.refusal is None or inbox.refusal.cause is Cause.OVERLOADED
    return inbox.refusal is not None


@pytest.mark.parametrize(
    ("what", "size"),
    [
        ({"text": "x" * SHORT}, 0),
        ({"text": LONG}, 1_000_000),
        ({"token_ids": (1,) * 50_000}, 50_000),
        ({"chat": ({"role": "user", "content": LONG},)}, 1_000_000 + len("rolecontentuser") + 1),
        ({"chat": ({"content": [{"type": "text", "text": LONG}]},)}, 1_000_000 + len("contenttypetexttext") + 2),
        ({"chat": ({"tool_calls": [{"function": {"arguments": LONG}}]},)}, None),
    ],
)
def test_whatever_a_prompt_is_written_in_its_length_counts(what: dict[str, Any], size: int | None) -> None:
    (count,) = long_characters([prompt(**what)])
    assert count == size if size is not None else count > 1_000_000


def test_choices_of_one_prompt_are_one_text() -> None:
    assert long_characters([prompt(text=LONG)] * 3) == [1_000_000, 0, 0]


def test_long_prompts_beyond_the_bound_are_told_to_come_later_and_short_ones_are_let_in() -> None:
    world = World(limit=100)
    assert [refused(world, prompt(text=LONG)) for _ in range(5)] == [False] * 4 + [True]
    assert not refused(world, prompt(text="x" * SHORT))
    world.gateway.check()


def test_many_short_prompts_of_one_call_are_long_together() -> None:
    assert long_characters([prompt(text="x" * 40)] * 3 + [prompt(text="y" * 50)], short=80) == [40, 0, 0, 50]
    assert long_characters([prompt(text="x" * 40)] * 3, short=80) == [0, 0, 0]


def test_one_prompt_may_have_any_length_while_no_other_waits() -> None:
    world = World()
    assert not refused(world, prompt(text="x" * (2 * MOST_UNREAD)))
    assert refused(world, prompt(text=LONG))


@pytest.mark.parametrize("way", ["accepted", "refused", "ended"])
def test_a_prompt_that_was_read_makes_room(way: str) -> None:
    world = World(limit=100)
    ((first, *_), _) = world.open(*[prompt(text="x" * SHORT + str(n) * MOST_UNREAD) for n in range(1)])
    assert refused(world, prompt(text=LONG))
    match way:
        case "accepted":
            world.gateway.receive(Accepted(first, 1_000_000))
        case "refused":
            world.gateway.receive(Refused(first, Cause.TOO_LONG, "too long", 400))
        case _:
            world.output(first, end=done())
    assert world.gateway.requests.num_unread == 0
    assert not refused(world, prompt(text=LONG))
    world.gateway.check()


def test_a_prompt_that_was_read_makes_room_though_its_client_has_gone() -> None:
    world = World(limit=100)
    (first,), _ = world.open(prompt(text="x" * (MOST_UNREAD - 1)))
    assert refused(world, prompt(text=LONG))
    world.gateway.abort((first,), Cause.DISCONNECT)
    world.gateway.receive(Accepted(first, 1_000_000))
    assert not refused(world, prompt(text=LONG))
