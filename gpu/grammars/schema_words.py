"""What the keywords of a JSON Schema may say: what says something else is no schema, and libraries read what they like
from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """Of the value of a keyword."""

    holds: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


COUNT = Rule(lambda value: _is_number(value) and value >= 0 and value == int(value), "0 or more, and whole")
NUMBER = Rule(_is_number, "a number")
TEXT = Rule(lambda value: isinstance(value, str), "a string")
SOME = Rule(lambda value: isinstance(value, list) and bool(value), "a list that is not empty")
BY_NAME = Rule(lambda value: isinstance(value, dict), "an object")
TYPES = Rule(
    lambda value: isinstance(value, str) or (bool(value) and _is_list_of(value, str)),
    "the name of a type, or a list of such that is not empty",
)
RULES: Mapping[str, Rule] = {
    "type": TYPES,
    **dict.fromkeys(("enum", "anyOf", "oneOf", "allOf"), SOME),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), COUNT),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBER),
    "multipleOf": Rule(lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("pattern", "format"), TEXT),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), BY_NAME),
    "required": Rule(lambda value: _is_list_of(value, str), "a list of strings"),
}
"""By keyword. Notes such as `title` may say anything: they change nothing."""


def misstated(schema: Mapping[str, Any]) -> str:
    """What is wrong with one schema, apart from those inside; empty: nothing."""
    wrong = (
        f"{name} must be {rule.words}"
        for name, rule in RULES.items()
        if name in schema and not rule.holds(schema[name])
    )
    return next(wrong, "")
