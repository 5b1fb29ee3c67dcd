"""Fields of messages that clients send, and the words in which a wrong one is refused."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest

from pawl.actors.fields import convert
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
