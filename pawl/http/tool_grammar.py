"""Grammars that make a model call tools, and call them as their schemas say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pawl.actors.grammar_fields import json_grammar, tag_grammar
from pawl.actors.text.invalid import InvalidRequest
from pawl.http.tool_fields import Tool
from pawl.lifecycle.grammar import Grammar

MOST_CALLS = 8
"""A small model that must call something would otherwise go on with it for ever."""
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_OBJECT: dict[str, Any] = {"type": "object"}
VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords that hold values, not schemas."""
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Keywords that hold schemas by names, which may be words of schemas themselves."""
NOTES = frozenset({"title", "description", "$comment"})
"""Keywords that say nothing about what is an instance: descriptions of 128 tools are longer than a grammar may be."""


def forced_calls(tools: Sequence[Tool], most: int) -> Grammar:
    """One call of these tools or several, at the most `most`, in a list and nothing else. Raises InvalidRequest."""
    # Each schema has a place of its own, so that what it refers to is found: its root is not the grammar's.
    places = [f"#/$defs/{index}" for index in range(len(tools))]
    defs = {str(index): _schema(tool, places[index]) for index, tool in enumerate(tools)}
    calls = [_call(tool.function.name, place) for tool, place in zip(tools, places, strict=True)]
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return json_grammar({"type": "array", "minItems": 1, "maxItems": most, "items": items, "$defs": defs}, "tools")


def strict_calls(tools: Sequence[Tool]) -> Grammar:
    """Free text, in which calls in Hermes' words have arguments as their schemas say. Raises InvalidRequest."""
    tags = [
        {
            "type": "tag",
            "begin": f'<tool_call>\n{{"name": {json.dumps(tool.function.name)}, "arguments": ',
            "content": {
                "type": "json_schema",
                "json_schema": _schema(tool, "#") if tool.function.strict else ANY_OBJECT,
            },
            "end": "}\n</tool_call>",
        }
        for tool in tools
    ]
    form = {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": tags}
    return tag_grammar({"type": "structural_tag", "format": form}, "tools")


def _schema(tool: Tool, place: str) -> dict[str, Any]:
    """Of the arguments, to stand at `place`."""
    try:
        schema: dict[str, Any] = _moved(tool.function.parameters or NO_ARGUMENTS, place)
    except RecursionError:
        raise InvalidRequest("the parameters of tools are nested too deeply", param="tools") from None
    return schema


def _call(name: str, place: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": {"$ref": place}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str, *, names: bool = False) -> Any:
    """`schema` with what it refers to within itself now below `place`, and without notes. `names`: its keys are names,
    not keywords."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if names:
            moved[key] = _moved(value, place)
        elif key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = place + value[1:]
        elif key in VALUES:
            moved[key] = value
        elif key not in NOTES or not isinstance(value, str):
            moved[key] = _moved(value, place, names=key in NAMED)
    return moved
