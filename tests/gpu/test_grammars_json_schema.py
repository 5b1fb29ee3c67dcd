"""A corpus of JSON Schemas, a few for each keyword: outputs are instances of what the client sent, and what a backend
cannot keep is refused by the keyword's name."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from pawl.gpu.grammars.base import GrammarRefused
from pawl.gpu.grammars.json_schema import MAX_DEPTH, prepared
from pawl.lifecycle.grammar import Grammar, GrammarKind
from tests.gpu.grammar_tools import accepts, backend, ghost_words, random_output, text_of

BOTH = ("xgrammar", "llguidance")
OUTPUTS = 12
STRING = {"type": "string"}


def an_object(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}}, **more}


NODE = {"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "required": ["n"]}
KEPT: dict[str, list[Any]] = {
    "type": [{"type": kind} for kind in ("string", "number", "array", "object", ["integer", "null"])],
    "enum": [
        {"enum": ["a", 1, None, {"x": [1]}]},
        {"type": "integer", "enum": ["a", 1, 2]},
        {"enum": ['a"b\\c\n', "é"]},
    ],
    "const": [{"const": {"a": 1}}, {"const": "é"}, {"type": "string", "const": "x"}],
    "multipleOf": [{"type": "integer", "multipleOf": 3}],
    "maximum": [{"type": "integer", "maximum": 17}, {"type": "number", "minimum": 0.5, "maximum": 2.25}],
    "minimum": [{"type": "integer", "minimum": -5}],
    "exclusiveMaximum": [{"type": "integer", "exclusiveMaximum": 10}, {"type": "number", "exclusiveMaximum": 1}],
    "exclusiveMinimum": [{"type": "integer", "exclusiveMinimum": 3}, {"type": "number", "exclusiveMinimum": 0}],
    "maxLength": [{"type": "string", "maxLength": 4}],
    "minLength": [{"type": "string", "minLength": 3}],
    "pattern": [{"type": "string", "pattern": "^[a-c]{2,3}$"}, {"type": "string", "pattern": "b"}],
    "pattern, optional parts": [{"type": "string", "pattern": "^a(bc+)?(d[0-9]{1,2})?[?]?$"}],
    "format": [{"type": "string", "format": name} for name in ("date", "date-time", "email", "uuid", "ipv4", "ipv6")],
    "maxItems": [{"type": "array", "items": {"type": "boolean"}, "maxItems": 2}],
    "minItems": [{"type": "array", "items": {"type": "boolean"}, "minItems": 2}],
    "items": [{"type": "array", "items": {"type": "integer"}}],
    "prefixItems": [
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}]},
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "boolean"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
    ],
    "properties": [an_object(), an_object(additionalProperties=True)],
    "required": [
        an_object(required=["b", "a"]),
        an_object(required=["z"]),
        {"type": "object", "required": ["z"], "additionalProperties": {"type": "integer"}},
    ],
    "additionalProperties": [
        an_object(additionalProperties=False),
        {"type": "object", "additionalProperties": {"type": "boolean"}},
    ],
    "patternProperties": [
        {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False}
    ],
    "minProperties": [an_object(minProperties=1, additionalProperties=False)],
    "maxProperties": [{"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 1}],
    "anyOf": [{"anyOf": [{"type": "integer"}, an_object(required=["a"])], "title": "either"}],
    "oneOf": [
        {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
        {
            "oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}],
            "$defs": {
                name: {"type": "object", "properties": {"k": {"const": name}}, "required": ["k"]} for name in "xy"
            },
        },
    ],
    "allOf": [{"allOf": [{"type": "integer"}]}, {"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": an_object()}}],
    "$ref": [
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "boolean"}}},
        {"$ref": "#/definitions/x", "definitions": {"x": {"type": "boolean"}}},
        {"$ref": "#/$defs/n", "$defs": {"n": NODE}},
        {"type": "object", "properties": {"n": {"$ref": "#"}}},
    ],
    "annotations": [
        {"type": "boolean", "title": "x", "description": "y", "default": True, "examples": [True], "$comment": "z"},
        {
            "type": "boolean",
            "x-order": 1,
            "deprecated": True,
            "$schema": "https://json-schema.org/draft/2020-12/schema",
        },
        {"type": "string", "format": "password", "maxLength": 3},
        {},
    ],
}
NARROW = {"type": "array", "items": {"enum": [1, 2]}}
REFUSED: list[tuple[str, Any, tuple[str, ...]]] = [
    ("uniqueItems", {**NARROW, "uniqueItems": True}, BOTH),
    ("contains", {**NARROW, "contains": {"const": 1}}, BOTH),
    ("minContains", {**NARROW, "minContains": 2}, BOTH),
    ("maxContains", {**NARROW, "maxContains": 2}, BOTH),
    ("unevaluatedItems", {**NARROW, "unevaluatedItems": {"type": "null"}}, BOTH),
    ("unevaluatedProperties", an_object(unevaluatedProperties={"type": "null"}), BOTH),
    ("dependentRequired", an_object(dependentRequired={"a": ["b"]}), BOTH),
    ("dependentSchemas", an_object(dependentSchemas={"a": {"required": ["b"]}}), BOTH),
    ("dependencies", an_object(dependencies={"a": ["b"]}), BOTH),
    ("not", {"type": "integer", "not": {"const": 5}}, BOTH),
    ("if", an_object(**{"if": {"required": ["a"]}, "then": {"required": ["b"]}}), BOTH),
    ("$dynamicRef", {"$dynamicRef": "#foo", "$defs": {"x": {"$dynamicAnchor": "foo"}}}, BOTH),
    ("$ref to another document", {"$ref": "http://example.com/x"}, BOTH),
    ("$ref to another document or an anchor", {"$ref": "#foo", "$defs": {"x": {"$anchor": "foo"}}}, BOTH),
    ("minProperties", {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2}, BOTH),
    ("oneOf", {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]}, BOTH),
    ("exclusiveMinimum", {"type": "number", "exclusiveMinimum": 7, "maximum": 7.5}, ("llguidance",)),
    ("exclusiveMaximum", {"type": "number", "minimum": -2.5, "exclusiveMaximum": -2}, ("llguidance",)),
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^a"}}, ("llguidance",)),
    ("pattern together with minLength", {"type": "string", "pattern": "^a+$", "minLength": 3}, ("xgrammar",)),
    ("anyOf together with type", {"type": "integer", "anyOf": [{"minimum": 5}]}, ("xgrammar",)),
    ("allOf of several schemas", {"allOf": [{"type": "integer"}, {"minimum": 3}]}, ("xgrammar",)),
    ("pattern with a quotation mark", {"type": "string", "pattern": '^"x"$'}, ("xgrammar",)),
    ("$ref together with maximum", {"$ref": "#/$defs/x", "maximum": 3, "$defs": {"x": {}}}, ("xgrammar",)),
    ("multipleOf", {"type": "number", "multipleOf": 1.5}, ("xgrammar",)),
    ("multipleOf", {"type": "integer", "multipleOf": 0.5}, ("xgrammar",)),
    ("multipleOf", {"multipleOf": 3}, ("xgrammar",)),
    ("format together with pattern", {"type": "string", "format": "date", "pattern": "^x$"}, ("xgrammar",)),
    ("format together with maxLength", {"type": "string", "format": "email", "maxLength": 3}, ("xgrammar",)),
    ("'z' is required, and may not be there", an_object(required=["a", "z"], additionalProperties=False), BOTH),
    ("'z' is required", {"type": "object", "required": ["z"], "additionalProperties": False}, BOTH),
]
NO_SCHEMAS: list[tuple[str, Any]] = [
    *((name, value) for name in ("anyOf", "oneOf", "allOf", "enum") for value in ([], {}, "x", None, 5)),
    *(("type", value) for value in ([], [1], [["string"]], {}, None, 5)),
    *((name, value) for name in ("minLength", "maxItems", "minProperties") for value in ("", "3", -1, True, None, [])),
    *((name, value) for name in ("minimum", "exclusiveMaximum") for value in ("3", True, None, [])),
    *(("multipleOf", value) for value in (0, -1, "3", True)),
    *((name, value) for name in ("pattern", "format") for value in (5, [], {}, None, True)),
    *((name, value) for name in ("properties", "patternProperties", "$defs") for value in (5, [], "x", None)),
    *(("required", value) for value in (5, "a", [1], [[]], [{}], None, True)),
]
"""Keywords that say what they may not."""


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("keyword", KEPT)
def test_every_output_is_an_instance_of_the_clients_schema(name: str, keyword: str) -> None:
    words, judge = ghost_words(), jsonschema.FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))
    for schema in KEPT[keyword]:
        compiled = backend(name).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
        validator = jsonschema.Draft202012Validator(schema, format_checker=judge)
        for seed in range(OUTPUTS):
            output = random_output(compiled, words, seed)
            if output is not None:
                text = text_of(output, words)
                assert validator.is_valid(json.loads(text)), (schema, text)


@pytest.mark.parametrize("name", BOTH)
def test_instances_that_a_person_would_write_are_accepted(name: str) -> None:
    words = ghost_words()
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "size": {"type": "number", "minimum": 0},
        },
        "required": ["name", "tags"],
    }
    compiled = backend(name).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
    value = {"name": 'Ann \u00e9 "x"', "tags": ["a", "b"], "size": 1.5}
    for indent in (None, 2, 4):
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        assert accepts(compiled, words, list(text.encode())), text
    assert not accepts(compiled, words, list(json.dumps({**value, "more": 1}).encode()))
    assert not accepts(compiled, words, list(json.dumps({"name": "Ann"}).encode()))


@pytest.mark.parametrize("name", BOTH)
def test_a_pattern_may_be_found_anywhere(name: str) -> None:
    words = ghost_words()
    for pattern, texts in (("b", ("b", "abba")), ("^ab", ("ab", "abc")), ("b$", ("b", "ab")), ("a.c", ("xabcx",))):
        compiled = backend(name).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"pattern": pattern} | STRING)))
        for text in texts:
            assert accepts(compiled, words, list(json.dumps(text).encode())), (pattern, text)
        assert not accepts(compiled, words, list(b'"zz"'))
    named = {"type": "object", "patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False}
    compiled = backend(name).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(named)))
    assert accepts(compiled, words, list(b'{"xyz":null}'))
    assert not accepts(compiled, words, list(b'{"y":null}'))


@pytest.mark.parametrize("name", BOTH)
def test_dates_and_times_are_those_of_a_calendar(name: str) -> None:
    words = ghost_words()
    for form, right, wrong in (
        ("date-time", "2024-02-28T23:59:00.25+05:30", "2024-02-31T23:59:00Z"),
        ("date", "0990-12-31", "0000-12-31"),
        ("time", "00:00:00Z", "24:00:00Z"),
    ):
        compiled = backend(name).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"format": form} | STRING)))
        assert accepts(compiled, words, list(json.dumps(right).encode()))
        assert not accepts(compiled, words, list(json.dumps(wrong).encode()))


@pytest.mark.parametrize("merges", [True, False])
def test_schemas_that_take_long_to_tell_apart_are_refused(merges: bool) -> None:
    branch = {"type": "object", "properties": {"k": {"const": 0}}, "required": ["k"]}
    for branches in ([branch | {"title": str(n)} for n in range(5000)], [{"enum": list(range(2000))}] * 2):
        with pytest.raises(GrammarRefused, match="too large"):
            prepared(json.dumps({"oneOf": branches}), merges=merges)


@pytest.mark.parametrize("merges", [True, False])
def test_a_keyword_that_says_what_it_may_not_makes_no_schema(merges: bool) -> None:
    """Libraries read what they like from it: text that is no JSON at all, or nothing."""
    for keyword, value in NO_SCHEMAS:
        inside = {"type": "object", "properties": {"deep": {"type": "array", "items": {keyword: value}}}}
        with pytest.raises(GrammarRefused, match=re.escape(f"not valid: {keyword} must be")):
            prepared(json.dumps(inside), merges=merges)
    notes = {"type": "null", "title": 5, "description": [], "examples": None, "default": {}, "x-order": [1]}
    assert json.loads(prepared(json.dumps(notes), merges=merges)) == notes


@pytest.mark.parametrize(("keyword", "schema", "backends"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_a_backend_cannot_keep_is_refused_by_its_keyword(
    keyword: str, schema: Any, backends: tuple[str, ...]
) -> None:
    inside = {"type": "object", "properties": {"deep": {"type": "array", "items": schema}}}
    for name in backends:
        for text in (json.dumps(schema), json.dumps(inside)):
            with pytest.raises(GrammarRefused) as caught:
                backend(name).compile(Grammar(GrammarKind.JSON_SCHEMA, text))
            assert keyword in str(caught.value)


def test_schemas_without_end_are_refused_before_they_are_compiled() -> None:
    deep: Any = {"type": "string"}
    for _ in range(MAX_DEPTH + 1):
        deep = {"type": "array", "items": deep}
    with pytest.raises(GrammarRefused, match="too large"):
        prepared(json.dumps(deep), merges=True)
