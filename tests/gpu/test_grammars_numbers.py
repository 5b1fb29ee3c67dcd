"""Numbers of JSON Schemas at the edges of what doubles and 64 bits hold: every output is an instance by value."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import jsonschema
import pytest

from pawl.actors.grammar_fields import json_grammar
from pawl.gpu.grammars.base import GrammarRefused
from pawl.gpu.grammars.json_schema import prepared_schema
from tests.gpu.grammar_tools import backend, ghost_words, random_output, text_of

BACKENDS = ("xgrammar", "llguidance")
EDGES = (
    *("0", "-0.0", "1.0", "1e3", "-7", "0.5", "-2.25", "0.1", "1e-7", "0.30000000000000004", "123456789.12345679"),
    *("4294967296", "9007199254740992", "9007199254740993", "-9007199254740993", "9223372036854775806"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809"),
    *("18446744073709551615", "18446744073709551616", "1e20", "1e23", "1e30", "-1e30", f"1{'0' * 30}", "1.5e300"),
    "1.7976931348623157e308",
)
SEED = 11


def is_integer(_: Any, value: Any) -> bool:
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, Decimal) and value == value.to_integral_value())
    )


EXACT = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer),
)


def is_instance(text: str, schema: str) -> bool:
    """By value: exactly, or where numbers with a point or an exponent are the doubles next to them, in both."""
    exact = EXACT(json.loads(schema, parse_float=Decimal)).is_valid(json.loads(text, parse_float=Decimal))
    return exact or jsonschema.Draft202012Validator(json.loads(schema)).is_valid(json.loads(text))


def outputs(name: str, schema: str, count: int = 4) -> list[str] | None:
    """What some draws come to; None: the schema is refused."""
    try:
        compiled = backend(name).compile(json_grammar(schema, "json_schema"))
    except GrammarRefused:
        return None
    drawn = (random_output(compiled, ghost_words(), seed) for seed in range(count))
    return [text_of(output, ghost_words()) for output in drawn if output is not None]


def drawn_schemas() -> list[str]:
    source = random.Random(SEED)
    made = [f'{{"const": {number}}}' for number in EDGES]
    made += [f'{{"enum": [[{number}], {{"a": {number}}}, "z"]}}' for number in EDGES]
    made += [f'{{"type": "{kind}", "const": {number}}}' for number in EDGES for kind in ("integer", "number")]
    for kind in ("integer", "number"):
        for _ in range(40):
            low, high = sorted(source.sample(EDGES, 2), key=float)
            lower, upper = (
                source.choice(["minimum", "exclusiveMinimum"]),
                source.choice(["maximum", "exclusiveMaximum"]),
            )
            bounds = [f'"{lower}": {low}', f'"{upper}": {high}']
            kept = bounds if source.random() < 0.6 else [source.choice(bounds)]
            made.append(f'{{"type": "{kind}", {", ".join(kept)}}}')
    return made


@pytest.mark.parametrize("name", BACKENDS)
def test_every_output_is_an_instance_by_value_whatever_its_numbers_are(name: str) -> None:
    kept = 0
    for schema in drawn_schemas():
        written = outputs(name, schema)
        kept += bool(written)
        for text in written or ():
            assert is_instance(text, schema), (schema, text)
    assert kept > 100


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ('{"const": 1.0}', "1"),
        ('{"type": "integer", "const": 1e3}', "1000"),
        ('{"const": [1.0, {"a": -0.0}]}', '[1,{"a":0}]'),
        ('{"const": 9007199254740991}', "9007199254740991"),
        ('{"type": "integer", "minimum": 2.5, "maximum": 3.5}', "3"),
        ('{"type": "integer", "exclusiveMinimum": 2.5, "exclusiveMaximum": 3.5}', "3"),
        ('{"type": "integer", "minimum": -1e30, "maximum": -9007199254740992}', "-9007199254740992"),
        ('{"type": "array", "items": {"const": 1}, "minItems": 2.0, "maxItems": 2.0}', "[1,1]"),
    ],
)
def test_a_number_is_kept_in_whatever_words_it_comes(schema: str, text: str) -> None:
    for name in BACKENDS if "-1e30" not in schema else ("llguidance",):
        (written, *others) = outputs(name, schema) or ()
        assert json.loads(written) == json.loads(text)
        assert all(json.loads(other) == json.loads(text) for other in others)


@pytest.mark.parametrize(
    ("schema", "merges", "words"),
    [
        ({"const": 2**63}, False, "const with a whole number beyond 9223372036854775807"),
        ({"enum": [[-(10**30)]]}, False, "enum with a whole number beyond"),
        ({"const": 2**53 + 1}, True, "const with a whole number beyond 9007199254740992"),
        ({"const": 0.30000000000000004}, True, "const with a number of more than 15 digits"),
        ({"const": 1e30}, True, "const with a number of more than 15 digits or 22 places"),
        ({"type": "integer", "minimum": 2**64}, False, "minimum with a whole number beyond"),
        ({"type": "integer", "maximum": -(2**64)}, True, "maximum with a whole number beyond"),
        ({"type": "integer", "multipleOf": 10**20}, False, "multipleOf with a whole number beyond"),
        ({"properties": {"a": {"const": 2**70}}}, False, r"at \$.properties.a"),
        ({"type": "string", "minLength": 2.5}, False, "minLength must be 0 or more, and whole"),
        ({"type": "string", "minLength": True}, False, "minLength must be 0 or more, and whole"),
    ],
)
def test_a_number_that_cannot_be_kept_is_refused_by_its_keyword(schema: Any, merges: bool, words: str) -> None:
    with pytest.raises(GrammarRefused, match=words):
        prepared_schema(schema, merges=merges)


def test_a_bound_beyond_what_can_be_counted_is_narrowed() -> None:
    schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}
    assert prepared_schema(schema, merges=True) == schema | {"minimum": -(2**53), "maximum": 2**53}
    assert prepared_schema(schema, merges=False) == schema | {"minimum": 1 - 2**63, "maximum": 2**63 - 1}


def test_a_large_bound_that_is_excluded_is_the_next_double_inwards() -> None:
    schema = {"type": "number", "exclusiveMinimum": 1e20, "maximum": 1e22, "exclusiveMaximum": 1e23}
    made = prepared_schema(schema, merges=False)
    assert made == {"type": "number", "minimum": 100000000000000016384.0, "maximum": 1e22}
    assert prepared_schema({"type": "number", "exclusiveMinimum": 2.0**53}, merges=False) == {
        "type": "number",
        "exclusiveMinimum": 2.0**53,
    }
