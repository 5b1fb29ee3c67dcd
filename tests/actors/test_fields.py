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
    (Annotated[str, Meta(pattern="^[a-z]+$")], "a string that matches ^[a-z]+$"),
    (Annotated[str, Meta(max_length=2, pattern="^a")], "a string of at most 2 characters that matches ^a"),
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


class First(msgspec.Struct, tag_field="kind", tag="first"):
    """One of two that a word tells apart."""

    size: Annotated[int, Meta(ge=1)] = 1


class Second(msgspec.Struct, tag_field="kind", tag="second", forbid_unknown_fields=True):
    """The other one."""

    names: Annotated[list[Annotated[str, Meta(max_length=2)]], Meta(max_length=3)]
    deep: Annotated[dict[Annotated[str, Meta(max_length=1)], Annotated[float, Meta(gt=0.0)]], Meta(max_length=2)] = {}


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """One of those, or several."""

    one: First | Second | None = None
    several: tuple[Second, ...] | None = None
    fixed: tuple[int, bool] = (1, True)


def second(**fields: Any) -> dict[str, Any]:
    return {"kind": "second", "names": []} | fields


WRONG: list[tuple[Any, str, str | None, str]] = [
    ({"one": 5}, "one must be an object, not an integer", "one", "wrong_type"),
    ({"one": {"kind": "third"}}, "one.kind must be one of 'first', 'second'", "one.kind", "wrong_type"),
    ({"one": {"kind": "first", "size": 0}}, "one.size must be an integer of at least 1", "one.size", "wrong_type"),
    ({"one": second(names=3)}, "NAMES, not an integer", "one.names", "wrong_type"),
    ({"one": second(names=["a", "abc"])}, "one.names[1] must be TWO", "one.names[1]", "wrong_type"),
    ({"one": second(names=[None])}, "one.names[0] must be TWO, not null", "one.names[0]", "wrong_type"),
    ({"one": {"kind": "second"}}, "the field 'one.names' is missing", "one.names", "missing_field"),
    ({"one": second(name=[])}, "unknown field 'one.name'; did you mean 'names'?", "one.name", "unknown_field"),
    ({"one": second(x=[])}, "unknown field 'one.x'", "one.x", "unknown_field"),
    ({"one": second(deep={"k": -1.0})}, "one.deep[...] must be a number above 0", "one.deep[...]", "wrong_type"),
    ({"one": second(deep={"key": 1.0})}, "each key of one.deep must be ONE", "one.deep", "wrong_type"),
    ({"several": [second(), second(names={})]}, "SEVERAL, not an object", "several[1].names", "wrong_type"),
    ({"several": [second(), {"kind": "second"}]}, "MISSING", "several[1].names", "missing_field"),
    ({"fixed": [1, 2]}, "fixed[1] must be something else, not an integer", "fixed[1]", "wrong_type"),
    ({"ones": 1}, "unknown field 'ones'; did you mean 'one'?", "ones", "unknown_field"),
    ([], "the body must be an object, not a list", None, "wrong_type"),
]
LONG = {
    "NAMES": "one.names must be a list of at most 3 entries, each TWO",
    "SEVERAL": "several[1].names must be a list of at most 3 entries, each TWO",
    "MISSING": "the field 'several[1].names' is missing",
    "TWO": "a string of at most 2 characters",
    "ONE": "a string of at most 1 characters",
}


@pytest.mark.parametrize(("value", "said", "param", "code"), WRONG, ids=[said for _, said, _, _ in WRONG])
@pytest.mark.parametrize("root", ["", "given"])
def test_what_is_wrong_is_named_by_its_place_with_what_may_stand_there(
    value: Any, said: str, param: str | None, code: str, root: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert(value, Choice, root)
    for short, long in LONG.items():
        said = said.replace(short, long)
    if root:
        place = param or "the body"
        said, param = (
            said.replace(place, f"given.{param}" if param else "given"),
            f"given.{param}" if param else "given",
        )
    assert (caught.value.message, caught.value.param, caught.value.code) == (said, param, code)
