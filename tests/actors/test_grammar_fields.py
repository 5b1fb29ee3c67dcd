"""Grammars as the fields of a request say them: one of each kind, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pawl.actors.fields import convert
from pawl.actors.grammar_fields import GrammarFields, grammars_of, json_grammar, tag_grammar, the_one
from pawl.actors.text.invalid import InvalidRequest
from pawl.lifecycle.grammar import MAX_GRAMMAR, Grammar, GrammarKind

FORMS: dict[str, tuple[Any, Grammar]] = {
    "json_schema": ({"type": "null"}, Grammar(GrammarKind.JSON_SCHEMA, '{"type":"null"}')),
    "regex": ("a+", Grammar(GrammarKind.REGEX, "a+")),
    "ebnf": ('root ::= "a"', Grammar(GrammarKind.EBNF, 'root ::= "a"')),
    "choice": (["a", "b"], Grammar(GrammarKind.CHOICE, '["a","b"]')),
    "structural_tag": ({"format": {}}, Grammar(GrammarKind.STRUCTURAL_TAG, '{"format":{}}')),
}


def test_each_field_has_its_form_here() -> None:
    assert [*FORMS] == [*GrammarFields.__struct_fields__]


@pytest.mark.parametrize("name", FORMS)
def test_a_field_gives_the_grammar_of_its_kind_and_no_other(name: str) -> None:
    value, grammar = FORMS[name]
    found = grammars_of(convert({name: value}, GrammarFields))
    assert found == {name: grammar}
    assert the_one(found) == grammar


def test_two_grammars_contradict_each_other_and_none_is_none() -> None:
    made = grammars_of(convert({"regex": "a", "ebnf": "b"}, GrammarFields))
    with pytest.raises(InvalidRequest, match="regex and ebnf contradict each other"):
        the_one(made)
    assert the_one({}) is None


@pytest.mark.parametrize("structure", ["text", {"begin": "<"}, {"end": ">"}])
def test_a_structure_without_its_ends_is_refused(structure: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"each of tag\.structures must have begin, schema and end"):
        tag_grammar({"structures": [structure], "triggers": ["<"]}, "tag")


@pytest.mark.parametrize("schema", [{}, {"type": "null"}])
def test_a_structure_has_its_schema_and_one_without_is_any_object(schema: dict[str, Any]) -> None:
    given = {"schema": schema} if schema else {}
    found = tag_grammar({"structures": [{"begin": "<", "end": ">", **given}], "triggers": ["<"]}, "tag")
    content = {"type": "json_schema", "json_schema": schema}
    tags = [{"type": "tag", "begin": "<", "content": content, "end": ">"}]
    wanted = {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<"], "tags": tags}}
    assert (found.kind, json.loads(found.text)) == (GrammarKind.STRUCTURAL_TAG, wanted)


@pytest.mark.parametrize("schema", ["3", "[]", "null"])
def test_a_schema_that_is_no_object_is_refused(schema: str) -> None:
    with pytest.raises(InvalidRequest, match="json_schema must be a JSON Schema, which is an object") as caught:
        json_grammar(schema, "json_schema")
    assert caught.value.param == "json_schema"


@pytest.mark.parametrize("schema", ["[" * 100_000, '{"items":' * 100_000])
def test_a_schema_that_is_nested_too_deeply_is_refused(schema: str) -> None:
    with pytest.raises(InvalidRequest, match="json_schema is nested too deeply"):
        json_grammar(schema, "json_schema")


def test_a_schema_is_as_long_as_it_may_be() -> None:
    longest = {"const": "x" * (MAX_GRAMMAR - len('{"const":""}'))}
    assert len(json_grammar(longest, "json_schema").text) == MAX_GRAMMAR
    with pytest.raises(InvalidRequest, match="characters long"):
        json_grammar({"const": longest["const"] + "x"}, "json_schema")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        json_grammar({"const": object()}, "json_schema")
