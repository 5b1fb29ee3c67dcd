"""Structured output in OpenAI's and vLLM's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pawl.actors.grammar_fields import (
    ANY_OBJECT,
    Choice,
    GrammarText,
    JsonObject,
    choice_grammar,
    json_grammar,
    tag_grammar,
    the_one,
)
from pawl.http.call_fields import CallFields
from pawl.http.errors import Problem
from pawl.lifecycle.grammar import Grammar, GrammarKind

Name = Annotated[str, Meta(max_length=1024)]
Structures = Annotated[list[JsonObject], Meta(max_length=1024)]
Triggers = Annotated[list[Annotated[str, Meta(max_length=1024)]], Meta(max_length=1024)]


class JsonSchemaFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`response_format.json_schema`."""

    name: Name | None = None
    description: Name | None = None
    schema: JsonObject | bool | None = None
    strict: bool | None = None
    """Every schema is kept to; what cannot be is refused, whatever this says."""


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's `response_format`, with SGLang's structural tags."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    schema: JsonObject | bool | None = None
    """Of `json_object`, as llama.cpp and others have it."""
    format: JsonObject | None = None
    structures: Structures | None = None
    triggers: Triggers | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`."""

    json: GrammarText | JsonObject | None = None
    regex: GrammarText | None = None
    choice: Choice | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None
    structural_tag: GrammarText | None = None
    # Known, but not supported.
    disable_fallback: Any = None
    disable_any_whitespace: Any = None
    disable_additional_properties: Any = None
    whitespace_pattern: Any = None


class FormatFields(CallFields, kw_only=True):
    """How OpenAI's completions and chats ask for a form."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: GrammarText | JsonObject | None = None
    guided_regex: GrammarText | None = None
    guided_choice: Choice | None = None
    guided_grammar: GrammarText | None = None
    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None


def grammar_of(fields: FormatFields) -> Grammar | None:
    """What these fields ask for. Raises Problem, or InvalidRequest."""
    made: dict[str, Grammar] = {}
    if fields.response_format is not None:
        asked = _asked(fields.response_format)
        if asked is not None:
            made["response_format"] = asked
    if fields.structured_outputs is not None:
        made |= _structured(fields.structured_outputs)
    if fields.guided_json is not None:
        made["guided_json"] = json_grammar(fields.guided_json, "guided_json")
    if fields.guided_regex is not None:
        made["guided_regex"] = Grammar(GrammarKind.REGEX, fields.guided_regex)
    if fields.guided_choice is not None:
        made["guided_choice"] = choice_grammar(fields.guided_choice, "guided_choice")
    if fields.guided_grammar is not None:
        made["guided_grammar"] = Grammar(GrammarKind.EBNF, fields.guided_grammar)
    return the_one(made)


def _asked(wanted: ResponseFormat) -> Grammar | None:
    of_kind = {
        "json_object": ("schema",),
        "json_schema": ("json_schema",),
        "structural_tag": ("format", "structures", "triggers"),
    }
    for name in ("schema", "json_schema", "format", "structures", "triggers"):
        if getattr(wanted, name) is not None and name not in of_kind.get(wanted.type, ()):
            text = f"response_format.{name} says nothing where response_format.type is {wanted.type}"
            raise Problem(400, text, param=f"response_format.{name}")
    match wanted.type:
        case "json_object":
            if wanted.schema is not None:
                return json_grammar(wanted.schema, "response_format.schema")
            return Grammar(GrammarKind.JSON_SCHEMA, ANY_OBJECT)
        case "json_schema":
            if wanted.json_schema is None or wanted.json_schema.schema is None:
                where = "response_format.json_schema"
                raise Problem(400, f"{where}.schema is missing", param=where)
            return json_grammar(wanted.json_schema.schema, "response_format.json_schema.schema")
        case "structural_tag":
            parts = {name: getattr(wanted, name) for name in of_kind["structural_tag"]}
            tag = {name: part for name, part in parts.items() if part is not None}
            return tag_grammar({"type": "structural_tag", **tag}, "response_format")
    return None


def _structured(wanted: StructuredOutputs) -> dict[str, Grammar]:
    made: dict[str, Grammar] = {}
    for name in ("disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"):
        if getattr(wanted, name):
            where = f"structured_outputs.{name}"
            raise Problem(400, f"{where} is not supported", param=where, code="unsupported_field")
    if wanted.json is not None:
        made["structured_outputs.json"] = json_grammar(wanted.json, "structured_outputs.json")
    if wanted.json_object:
        made["structured_outputs.json_object"] = Grammar(GrammarKind.JSON_SCHEMA, ANY_OBJECT)
    if wanted.regex is not None:
        made["structured_outputs.regex"] = Grammar(GrammarKind.REGEX, wanted.regex)
    if wanted.choice is not None:
        made["structured_outputs.choice"] = choice_grammar(wanted.choice, "structured_outputs.choice")
    if wanted.grammar is not None:
        made["structured_outputs.grammar"] = Grammar(GrammarKind.EBNF, wanted.grammar)
    if wanted.structural_tag is not None:
        made["structured_outputs.structural_tag"] = tag_grammar(
            wanted.structural_tag, "structured_outputs.structural_tag"
        )
    return made
