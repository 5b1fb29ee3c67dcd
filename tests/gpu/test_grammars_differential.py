"""Backends judge each other: what one accepts the other accepts, over a real tokenizer and over bytes.

What differs, beside what one of them refuses, is in docs/grammars.md ("JSON Schema"); `said_by_both` leaves it
out.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from datetime import datetime, time
from functools import lru_cache
from typing import Any

import jsonschema
import pytest

from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.grammars import words_of
from pawl.gpu.grammars.base import Compiled, GrammarBackend, GrammarRefused, Words
from pawl.gpu.grammars.select import choose_backend
from pawl.gpu.weights.source import resolve_source
from pawl.lifecycle.grammar import Grammar, GrammarKind
from tests.gpu.grammar_tools import accepts, backend, ghost_words, random_output, text_of

NIGHTLY = os.environ.get("PAWL_HYPOTHESIS") == "nightly"
SCHEMAS = 10_000 if NIGHTLY else 40
REGEXES = 2_000 if NIGHTLY else 60
OUTPUTS = 3


@lru_cache(maxsize=1)
def real_words() -> tuple[Vocabulary, Words]:
    source = resolve_source("smollm2")
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    words = words_of(vocabulary)
    assert words is not None
    return vocabulary, words


@lru_cache(maxsize=2)
def real_backend(name: str) -> GrammarBackend:
    return choose_backend(name)[1](real_words()[1])


NAMES = ("a", "bb", "c-d", "é", 'q"')
VALUES = ("a", "é", 1, -2.5, None, True, "b\n", 'x"\\y', "", {"k": [0]}, [])
PATTERNS = ("^[a-c]{2,3}$", "^(x|yz)+$", "^[0-9]{3}-[A-Z]$", "b", "^a", "^a.c$", "^[^x]{2}$", "^\\w+$|^$")


def random_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema that at least one of the libraries keeps."""
    kinds = ["integer", "boolean", "null", "enum", "const", "string", "bounded", "float", "pattern", "format", "types"]
    kinds += ["object", "object", "map", "array", "anyOf", "oneOf", "tuple", "allOf"] if depth < 2 else []
    kinds += ["$ref"] if depth else []
    inner = lambda: random_schema(source, depth + 1)  # noqa: E731
    match source.choice(kinds):
        case "enum":
            return {"enum": source.sample(VALUES, source.randint(1, 4))}
        case "const":
            return {"const": source.choice(VALUES)}
        case "types":
            return {"type": source.sample(["integer", "boolean", "null"], 2)}
        case "string":
            shortest = source.randint(0, 3)
            return {"type": "string", "minLength": shortest, "maxLength": shortest + source.randint(0, 4)}
        case "bounded":
            low, ends = source.randint(-200, 20), source.choice([("minimum", "maximum"), _EXCLUSIVE])
            return {"type": "integer", ends[0]: low, ends[1]: low + source.choice([3, 40, 300])}
        case "float":
            low, ends = source.choice([-2.5, -1, 0, 0.25, 7]), source.choice([("minimum", "maximum"), _EXCLUSIVE])
            return {"type": "number", ends[0]: low, ends[1]: low + source.choice([0.5, 3, 110.75])}
        case "pattern":
            return {"type": "string", "pattern": source.choice(PATTERNS)}
        case "format":
            return {"type": "string", "format": source.choice(["date", "time", "date-time", "uuid", "ipv4", "ipv6"])}
        case "object":
            names = source.sample(NAMES, source.randint(1, 4))
            required = [name for name in names if source.random() < 0.6]
            made = {"type": "object", "properties": {name: inner() for name in names}, "required": required}
            closed = {"additionalProperties": False, "minProperties": source.randint(0, 2)}
            return made | source.choice([{}, {}, {"additionalProperties": {"type": "boolean"}}, closed])
        case "map":
            others = source.choice([{"additionalProperties": inner()}, {"patternProperties": {"^x": inner()}}])
            return {"type": "object", "additionalProperties": False, **others, "maxProperties": source.randint(0, 2)}
        case "array":
            return {"type": "array", "items": inner(), "minItems": source.randint(0, 2), "maxItems": 3}
        case "tuple":
            return {"type": "array", "prefixItems": [inner(), inner()], "items": False, "minItems": 2}
        case "$ref":
            return {"$ref": source.choice(["#/$defs/leaf", "#/$defs/list"])}
        case "oneOf":
            choices = [{"type": "integer"}, {"type": "string", "maxLength": 2}, {"type": "null"}]
            return {"oneOf": choices[: source.randint(1, 3)]}
        case "anyOf" | "allOf" as name:
            return {name: [inner(), inner()][: source.randint(1, 2)]}
        case kind:
            return {"type": kind}


_EXCLUSIVE = ("exclusiveMinimum", "exclusiveMaximum")
FORMATS = jsonschema.FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))


@FORMATS.checks("date-time", ValueError)
def _is_date_time(value: Any) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(_spelled(value)).tzinfo is not None


@FORMATS.checks("time", ValueError)
def _is_time(value: Any) -> bool:
    return not isinstance(value, str) or time.fromisoformat(_spelled(value)).tzinfo is not None


def _spelled(text: str) -> str:
    """Small letters, leap seconds and many digits are right, and Python does not read them."""
    return re.sub(r"(\.\d{1,6})\d*", r"\1", text.upper().replace(":60", ":59"))


DEFINITIONS = {
    "leaf": {"enum": [1, "leaf"]},
    "list": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
}
OTHER_SPELLINGS = re.compile(r"-0(?![.\d])|\\(u|/|b|f)|[eE][+-]?\d")
"""The same values in other words: one library writes them, and the other need not."""


def _inner(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and those in it."""
    if isinstance(schema, dict):
        yield schema
    for one in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _inner(one)


def said_by_both(schema: dict[str, Any]) -> bool:
    """Whether its instances are the same for both. Numbers with bounds are written with as many digits as each likes,
    names once or twice, constants with white space or without it; xgrammar takes a pattern with alternatives for the
    whole."""
    return not any(
        "|" in one.get("pattern", "")
        or (one.get("type") == "number" and len(one) > 1)
        or "patternProperties" in one
        or any(isinstance(value, dict | list) for value in (*one.get("enum", ()), one.get("const")))
        for one in _inner(schema)
    )


def differences(seed: int) -> Iterator[str]:
    """What is wrong with one random schema: outputs that are no instances of it, and instances that one library says
    and the other refuses."""
    vocabulary, words = real_words()
    schema = random_schema(random.Random(seed)) | {"$defs": DEFINITIONS}
    judge = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    compiled: dict[str, Compiled] = {}
    for name in ("xgrammar", "llguidance"):
        try:
            compiled[name] = real_backend(name).compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
        except GrammarRefused as refused:
            if not any(reason in str(refused) for reason in REASONS):
                yield f"{name} refuses {schema}: {refused}"
    for name, made in compiled.items():
        for number in range(OUTPUTS):
            output = random_output(made, words, seed * OUTPUTS + number)
            if output is None:
                continue
            text = text_of(output, words)
            value = json.loads(text)
            if "\ufffd" in text or "Infinity" in json.dumps(value):
                continue  # bytes that are no text, and numbers that Python does not read
            if not judge.is_valid(value):
                yield f"{name} says {text!r}, which is no instance of {schema}"
                continue
            if not said_by_both(schema) or _has_escapes(value):
                continue
            ways = [vocabulary.encode(json.dumps(value, ensure_ascii=False), add_special=False).tolist()]
            ways += [] if OTHER_SPELLINGS.search(text) else [output]
            for other in compiled.keys() - {name}:
                if not all(accepts(compiled[other], words, way) for way in ways):
                    yield f"{name} says {text!r} of {schema}, and {other} refuses it"


def _has_escapes(value: Any) -> bool:
    """Whether a string in it is written with a backslash, or may be."""
    return any(mark in json.dumps(value, ensure_ascii=False) for mark in "\\\x7f")


REASONS = (
    "is not supported in a json_schema",
    "has no instance",
    "Unsatisfiable schema",
    "minProperties is greater",
    "min/maxProperties only",
)


@pytest.mark.parametrize("block", range(4))
def test_outputs_of_random_schemas_are_instances_and_both_libraries_say_so(block: int) -> None:
    assert [wrong for seed in range(block, SCHEMAS, 4) for wrong in differences(seed)] == []


def random_regex(source: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(source.randint(1, 3)):
        kinds = ["a", "b", "[ab]", "[^a]" if depth else "c", "\\d"]
        part = f"({random_regex(source, depth + 1)})" if depth < 2 and source.random() < 0.4 else source.choice(kinds)
        part += source.choice(["", "", "*", "+", "?", "{2}", "{1,3}"])
        parts.append(part)
    return "|".join(
        ["".join(parts), *([random_regex(source, depth + 1)] if depth < 2 and source.random() < 0.3 else [])]
    )


def test_backends_and_python_agree_on_random_regular_expressions_and_patterns() -> None:
    words = ghost_words()
    for seed in range(REGEXES):
        source = random.Random(seed)
        pattern = random_regex(source)
        compiled = {
            name: backend(name).compile(Grammar(GrammarKind.REGEX, pattern))
            for name in ("plain", "xgrammar", "llguidance")
        }
        schema = Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": f"^({pattern})$"}))
        strings = {name: backend(name).compile(schema) for name in ("xgrammar", "llguidance")}
        texts = [bytes(source.choice(b"ab1c") for _ in range(source.randint(0, 6))) for _ in range(20)]
        said = [random_output(compiled["plain"], words, seed + number) for number in range(3)]
        texts += [text_of(output, words).encode() for output in said if output is not None]
        for text in texts:
            judged = {name: accepts(each, words, list(text)) for name, each in compiled.items()}
            if text.isalnum() or not text:  # what needs no escape
                string = list(b'"%b"' % text)
                judged |= {f"{name}, string": accepts(each, words, string) for name, each in strings.items()}
            expected = re.fullmatch(pattern, text.decode()) is not None
            assert set(judged.values()) == {expected}, (pattern, text, judged)
