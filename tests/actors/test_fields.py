"""Fields of messages that clients send, and the words in which a wrong one is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from pawl.actors.fields import convert, words
from pawl.actors.text.invalid import InvalidRequest


class Body(msgspec.Struct):
    """One field, of a few words."""

    mode: Literal["fast", "slow"]


def test_a_word_that_is_none_of_those_offered_is_refused_with_all_of_them() -> None:
    with pytest.raises(InvalidRequest, match="mode must be one of 'fast', 'slow'") as caught:
        convert({"mode": "odd"}, Body)
    assert caught.value.param == "mode"


class Tagged(msgspec.Struct, tag="ours"):
    """One that our own messages tell by its tag."""

    mode: str = ""


class Outer(msgspec.Struct):
    """Has one of those."""

    inner: Tagged


def test_what_our_own_messages_tell_a_struct_by_is_no_field_of_it() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown field 'inner\.type'") as caught:
        convert({"inner": {"type": "theirs"}}, Outer)
    assert (caught.value.param, caught.value.code) == ("inner.type", "unknown_field")


class Nested(msgspec.Struct):
    """Has another one."""

    inner: Nested | None


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: dict[str, object] | None = None
    for _ in range(100_000):
        value = {"inner": value}
    with pytest.raises(InvalidRequest, match="given is nested too deeply"):
        convert(value, Nested, "given")


WORDS: list[tuple[Any, str]] = [
    (int, "an integer"),
    (Annotated[int, Meta(ge=2)], "an integer of at least 2"),
    (Annotated[int, Meta(le=3)], "an integer of at most 3"),
    (Annotated[int, Meta(ge=2, le=3)], "an integer from 2 to 3"),
    (Annotated[float, Meta(gt=0.5)], "a number above 0.5"),
    (Annotated[float, Meta(gt=0.0, le=1.5)], "a number above 0 and at most 1.5"),
    (Annotated[float, Meta(ge=-2.0, le=2.0)] | None, "a number from -2 to 2"),
    (str | bool, "a string or true or false"),
    (Annotated[str, Meta(min_length=1)], "a string of at least 1 characters"),
    (Annotated[str, Meta(max_length=2)], "a string of at most 2 characters"),
    (Annotated[str, Meta(min_length=0, max_length=2)], "a string of at most 2 characters"),
    (Annotated[list[int], Meta(min_length=1, max_length=2)], "a list of 1 to 2 entries, each an integer"),
    (Annotated[list[Any], Meta(max_length=2)], "a list of at most 2 entries"),
    (tuple[Annotated[int, Meta(ge=0)], ...], "a list, each an integer of at least 0"),
    (Annotated[dict[str, int], Meta(max_length=1)], "an object of at most 1 members"),
    (Body, "an object"),
    (Literal["fast", "slow"], "one of 'fast', 'slow'"),
    (bytes, "something else"),
]


@pytest.mark.parametrize(("kind", "said"), WORDS, ids=[said for _, said in WORDS])
def test_what_may_be_given_is_said_with_every_bound_that_it_has(kind: Any, said: str) -> None:
    assert words(msgspec.inspect.type_info(kind)) == said
