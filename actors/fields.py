"""From what a client wrote to a typed struct, with refusals that name the field and say what it may hold.

The bounds of a field stand in its annotation and nowhere else: they are what is checked, and what a refusal says.
"""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from pawl.actors.text.invalid import InvalidRequest, quoted

T = TypeVar("T")

GOT = {
    "int": "an integer",
    "float": "a fraction",
    "str": "a string",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}
"""msgspec's names of JSON types in a person's words."""


def decode(data: bytes | bytearray, kind: type[T]) -> T:
    """`data`, JSON, as a value of type `kind`. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None


def convert(value: Any, kind: type[T], name: str = "", *, strict: bool = True) -> T:
    """A Python value as one of type `kind`, as strictly as JSON, or (not `strict`) with numbers and truth values as
    text; `name` is what the caller calls it. Raises InvalidRequest."""
    try:
        return msgspec.convert(value, kind, strict=strict, str_keys=True)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), kind, name) from None
    except RecursionError:
        raise InvalidRequest(f"{name or 'the value'} is nested too deeply", param=name or None) from None


def _refusal(text: str, kind: Any, root: str = "") -> InvalidRequest:
    """msgspec's words as ours: `temperature must be a number from 0 to 1, not a string`."""
    place = re.search(r" - at (?:`key` in )?`\$\.?([^`]*)`$", text)
    path = place[1] if place else ""
    where = f"{root}.{path}".replace(".[", "[") if root and path else root or path
    unknown = re.search(r"unknown field `([^`]*)`", text)
    if unknown is not None:
        return _unknown(f"{where}.{unknown[1]}" if where else unknown[1], unknown[1], _type_at(kind, path))
    outer, _, leaf = path.rpartition(".")
    if _is_own_tag(leaf, _type_at(kind, outer)):
        return _unknown(where, leaf, _type_at(kind, outer))
    missing = re.search(r"required field `([^`]*)`", text)
    if missing is not None:
        name = f"{where}.{missing[1]}" if where else missing[1]
        return InvalidRequest(f"the field {name!r} is missing", param=name, code="missing_field")
    found = _type_at(kind, path)
    subject = where or "the body"
    if "`key` in" in text:
        keys = [option.key_type for option in _options(found) if isinstance(option, inspect.DictType)]
        found, subject = keys[0], f"each key of {subject}"
    got = re.search(r"got `(\w+)`", text)
    ending = f", not {GOT.get(got[1], got[1])}" if got else ""
    return InvalidRequest(f"{subject} must be {words(found)}{ending}", param=where or None, code="wrong_type")


def _unknown(where: str, name: str, outer: inspect.Type) -> InvalidRequest:
    """The refusal of a field that `outer` does not have."""
    close = difflib.get_close_matches(name[:100], _names(outer), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InvalidRequest(f"unknown field {quoted(where)}{hint}", param=where[:200], code="unknown_field")


def _is_own_tag(name: str, outer: inspect.Type) -> bool:
    """Whether this is what our own messages tell a struct by, which is no field of a body."""
    tagged = [option for option in _options(outer) if isinstance(option, inspect.StructType)]
    return len(tagged) == 1 and tagged[0].tag is not None and tagged[0].tag_field == name


@lru_cache(maxsize=64)
def _type_info(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _type_at(kind: Any, path: str) -> inspect.Type:
    """The type of what stands at a path such as `sampling_params[0].stop[...]`."""
    found = _type_info(kind)
    for name, index in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path.replace("[...]", "[*]")):
        found = _inside(found, name, index)
    return found


def _inside(outer: inspect.Type, name: str, index: str) -> inspect.Type:
    """The type of a member (by `name`) or an item of `outer`; `outer` itself where it has none."""
    for option in _options(outer):
        if isinstance(option, inspect.StructType):
            for field in option.fields:
                if field.encode_name == name:
                    return field.type
            if name and name == option.tag_field:
                return inspect.LiteralType(tuple(o.tag for o in _options(outer) if isinstance(o, inspect.StructType)))
        elif isinstance(option, inspect.ListType | inspect.VarTupleType) and index not in ("", "*"):
            return option.item_type
        elif isinstance(option, inspect.DictType) and index == "*":
            return option.value_type
    return outer


def _options(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return tuple(option for option in options if not isinstance(option, inspect.NoneType))


def _names(kind: inspect.Type) -> list[str]:
    return [f.encode_name for o in _options(kind) if isinstance(o, inspect.StructType) for f in o.fields]


def words(kind: inspect.Type) -> str:
    """What a value of this type may be: `an integer from 0 to 20`."""
    match kind:
        case inspect.UnionType():
            return " or ".join(dict.fromkeys(words(option) for option in _options(kind)))
        case inspect.Metadata(type=inner):
            return words(inner)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"an integer{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.StrType():
            form = f" that matches {kind.pattern}" if kind.pattern else ""
            return "a string" + _length(kind.min_length, kind.max_length, "characters") + form
        case inspect.ListType() | inspect.VarTupleType():
            items = f", each {words(kind.item_type)}" if not isinstance(kind.item_type, inspect.AnyType) else ""
            return "a list" + _length(kind.min_length, kind.max_length, "entries") + items
        case inspect.DictType():
            return "an object" + _length(kind.min_length, kind.max_length, "members")
        case inspect.StructType():
            return "an object"
        case inspect.LiteralType():
            return "one of " + ", ".join(map(repr, kind.values))
    return "something else"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.gt is not None:
        return f" above {_number(kind.gt)}" + (f" and at most {_number(kind.le)}" if kind.le is not None else "")
    if kind.ge is not None and kind.le is not None:
        return f" from {_number(kind.ge)} to {_number(kind.le)}"
    if kind.le is not None:
        return f" of at most {_number(kind.le)}"
    return f" of at least {_number(kind.ge)}" if kind.ge is not None else ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _length(low: int | None, high: int | None, unit: str) -> str:
    if low and high is not None:
        return f" of {low} to {high} {unit}"
    if high is not None:
        return f" of at most {high} {unit}"
    return f" of at least {low} {unit}" if low else ""
