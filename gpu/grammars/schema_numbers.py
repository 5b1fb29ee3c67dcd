"""Numbers in JSON Schemas as the backends keep them. One with a point or an exponent is the double next to it, as
almost every reader of JSON has it; one without is exact, or refused by its keyword.

What a backend reads wrongly is narrowed or refused here: xgrammar has integers of 64 bits and writes larger constants
as doubles; llguidance has doubles, which it does not always read to the last digit, and ended the process at some
bounds near -2^63.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from pawl.gpu.grammars.base import GrammarRefused

DOUBLE = 1 << 53
"""Whole numbers up to here are exact as doubles."""
LONG = (1 << 63) - 1
DIGITS, PLACES = 15, 22
"""A double of no more digits, moved by no more places, is read to its last bit by the simplest of readers."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
CONSTANTS = ("const", "enum")


def reworded_numbers(schema: dict[str, Any], where: str, *, merges: bool) -> dict[str, Any]:
    """One schema with its own numbers in other words; see `prepared` for `merges`. Raises GrammarRefused, with the
    keyword."""
    made = {name: _counted(value) if name in (*COUNTS, "multipleOf") else value for name, value in schema.items()}
    most = DOUBLE if merges else LONG
    for name in CONSTANTS:
        if name in made:
            made[name] = _constant(made[name], name, where, most, merges)
    if _size(made.get("multipleOf")) > most:
        raise _beyond("multipleOf", most, where)
    kinds = made.get("type", ["integer", "number"])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    for name in (*LOWER, *UPPER):
        if name in made:
            bound = _inwards(made[name], name) if "integer" in kinds and "number" not in kinds else made[name]
            made[name] = _narrowed(bound, name, where, most) if merges or "integer" in kinds else bound
            if merges and not _is_short(made[name]):
                raise _digits(name, where)
    if not merges and "number" in kinds:
        _include(made)
    return made


def _counted(value: Any) -> Any:
    """A whole number without its point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _size(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else 0


def _inwards(bound: Any, name: str) -> Any:
    """A bound of integers as an integer."""
    return math.ceil(bound) if name in ("minimum", "exclusiveMaximum") else math.floor(bound)


def _include(made: dict[str, Any]) -> None:
    """Bounds that are excluded, and so large that what is written behind the point is lost to who reads doubles, become
    the next doubles inwards."""
    for (included, excluded), inwards, stricter in ((LOWER, math.inf, max), (UPPER, -math.inf, min)):
        if abs(made.get(excluded, 0)) > DOUBLE:
            bound = math.nextafter(float(made.pop(excluded)), inwards)
            made[included] = stricter(made.get(included, bound), bound)


def _narrowed(bound: Any, name: str, where: str, most: int) -> Any:
    """A bound that no number reaches which the backend can count to becomes the last one that it can."""
    outer = -most if name in LOWER else most
    if abs(bound) <= most:
        return bound
    if (bound < 0) != (outer < 0):
        raise _beyond(name, most, where)
    return outer


def _constant(value: Any, name: str, where: str, most: int, merges: bool) -> Any:
    """A value of `const` or `enum`, or what is in it."""
    if isinstance(value, list):
        return [_constant(one, name, where, most, merges) for one in value]
    if isinstance(value, dict):
        return {key: _constant(one, name, where, most, merges) for key, one in value.items()}
    if isinstance(value, int) and abs(value) > most:
        raise _beyond(name, most, where)
    if isinstance(value, float):
        if value.is_integer() and abs(value) <= DOUBLE:
            return int(value)
        if merges and not _is_short(value):
            raise _digits(name, where)
    return value


def _is_short(value: float) -> bool:
    if isinstance(value, int):
        return True
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    return len(digits) <= DIGITS and isinstance(exponent, int) and abs(exponent) <= PLACES


def _beyond(name: str, most: int, where: str) -> GrammarRefused:
    return GrammarRefused(
        f"{name} with a whole number beyond {most} is not supported in a json_schema (at {where[:200]})"
    )


def _digits(name: str, where: str) -> GrammarRefused:
    text = f"{name} with a number of more than {DIGITS} digits or {PLACES} places is not supported in a json_schema"
    return GrammarRefused(f"{text} (at {where[:200]})")
