"""What a client may say about the form of its output, and the one way from there to a `Grammar`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pawl.actors.text.invalid import InvalidRequest
from pawl.lifecycle.grammar import MAX_GRAMMAR, Grammar, GrammarKind

GrammarText = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR)]
JsonObject = Annotated[dict[str, Any], Meta(max_length=4096)]
Choice = Annotated[list[Annotated[str, Meta(min_length=1, max_length=4096)]], Meta(min_length=1, max_length=1024)]

ANY_OBJECT = '{"type":"object"}'
"""The schema of `json_object`."""


class GrammarFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields that every API names alike; one of them at the most."""

    json_schema: GrammarText | JsonObject | None = None
    regex: GrammarText | None = None
    """The whole output matches it."""
    ebnf: GrammarText | None = None
    """Rules in GBNF; the output is derived from `root`."""
    choice: Choice | None = None
    """The output is one of these."""
    structural_tag: GrammarText | JsonObject | None = None


def grammars_of(fields: GrammarFields) -> dict[str, Grammar]:
    """The grammars that these fields ask for, by name. Raises InvalidRequest."""
    made: dict[str, Grammar] = {}
    if fields.json_schema is not None:
        made["json_schema"] = json_grammar(fields.json_schema, "json_schema")
    if fields.regex is not None:
        made["regex"] = Grammar(GrammarKind.REGEX, fields.regex)
    if fields.ebnf is not None:
        made["ebnf"] = Grammar(GrammarKind.EBNF, fields.ebnf)
    if fields.choice is not None:
        made["choice"] = choice_grammar(fields.choice, "choice")
    if fields.structural_tag is not None:
        made["structural_tag"] = tag_grammar(fields.structural_tag, "structural_tag")
    return made


def the_one(grammars: Mapping[str, Grammar]) -> Grammar | None:
    """The only one, if there is one. Raises InvalidRequest for several."""
    if len(grammars) > 1:
        first, second, *_ = grammars
        raise InvalidRequest(f"{first} and {second} contradict each other; send one of them", param=second)
    return next(iter(grammars.values()), None)


def json_grammar(schema: str | bool | Mapping[str, Any], name: str) -> Grammar:
    """Of a JSON Schema, or its text. Raises InvalidRequest."""
    value = _json(schema, name) if isinstance(schema, str) else schema
    if not isinstance(value, Mapping | bool):
        raise InvalidRequest(f"{name} must be a JSON Schema, which is an object", param=name)
    return Grammar(GrammarKind.JSON_SCHEMA, _text(value, name))


def choice_grammar(choices: list[str], name: str) -> Grammar:
    """Of a list of strings. Raises InvalidRequest."""
    return Grammar(GrammarKind.CHOICE, _text(choices, name))


def tag_grammar(tag: str | Mapping[str, Any], name: str) -> Grammar:
    """Of a structural tag: in the form that has a `format`, or in the older one with `structures` and `triggers`.
    Raises InvalidRequest."""
    value = _json(tag, name) if isinstance(tag, str) else tag
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be an object", param=name)
    if "format" not in value:
        value = _newer_tag(value, name)
    return Grammar(GrammarKind.STRUCTURAL_TAG, _text(value, name))


def _newer_tag(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    structures, triggers = value.get("structures"), value.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list):
        raise InvalidRequest(f"{name} must have a format, or structures and triggers", param=name)
    tags = []
    for structure in structures:
        if not isinstance(structure, Mapping) or not {"begin", "end"} <= structure.keys():
            raise InvalidRequest(f"each of {name}.structures must have begin, schema and end", param=name)
        content = {"type": "json_schema", "json_schema": structure.get("schema") or {}}
        tags.append({"type": "tag", "begin": structure["begin"], "content": content, "end": structure["end"]})
    return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}


def _json(text: str, name: str) -> Any:
    try:
        return msgspec.json.decode(text.encode(errors="surrogatepass"))
    except RecursionError:
        raise InvalidRequest(f"{name} is nested too deeply", param=name) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{name} is not valid JSON: {error}", param=name) from None


def _text(value: Any, name: str) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except RecursionError:
        raise InvalidRequest(f"{name} is nested too deeply", param=name) from None
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise InvalidRequest(f"{name} cannot be read: {error!s:.200}", param=name) from None
    if len(text) > MAX_GRAMMAR:
        raise InvalidRequest(f"{name} must be at most {MAX_GRAMMAR} characters long as JSON", param=name)
    return text
