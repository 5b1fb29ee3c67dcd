"""Backends judge each other: what one accepts the other accepts, over a real tokenizer and over bytes.

Documented differences: keywords that xgrammar does not keep beside others (`tests/gpu/test_grammars_json_schema.py`,
REFUSED); free strings, in which llguidance also takes bytes that are no UTF-8 yet; white space, of which both allow as
much but at other places.
"""

from __future__ import annotations

import json
import os
import random
import re
from functools import lru_cache
from typing import Any

import pytest

from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.grammars import words_of
from pawl.gpu.grammars.base import GrammarBackend, Words
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


def random_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["integer", "boolean", "null", "enum", "string", "bounded", "pattern"]
    kinds += ["object", "array", "anyOf", "tuple"] if depth < 2 else []
    inner = lambda: random_schema(source, depth + 1)  # noqa: E731
    match source.choice(kinds):
        case "enum":
            return {"enum": source.sample(["a", "é", 1, -2.5, None, True, "b\n"], source.randint(1, 4))}
        case "string":
            return {"type": "string", "maxLength": source.randint(0, 6)}
        case "bounded":
            low = source.randint(-20, 20)
            return {"type": "integer", "minimum": low, "maximum": low + source.randint(0, 300)}
        case "pattern":
            return {"type": "string", "pattern": source.choice(["^[a-c]{2,3}$", "^(x|yz)+$", "^[0-9]{3}-[A-Z]$"])}
        case "object":
            names = source.sample(["a", "bb", "c-d", "é"], source.randint(1, 4))
            required = [name for name in names if source.random() < 0.6]
            return {"type": "object", "properties": {name: inner() for name in names}, "required": required}
        case "array":
            return {"type": "array", "items": inner(), "minItems": source.randint(0, 2), "maxItems": 3}
        case "tuple":
            return {"type": "array", "prefixItems": [inner(), inner()], "items": False, "minItems": 2}
        case "anyOf":
            return {"anyOf": [inner(), inner()]}
        case kind:
            return {"type": kind}


@pytest.mark.parametrize("block", range(4))
def test_what_one_library_accepts_of_a_random_schema_the_other_accepts(block: int) -> None:
    vocabulary, words = real_words()
    for seed in range(block, SCHEMAS, 4):
        schema = random_schema(random.Random(seed))
        grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
        compiled = {name: real_backend(name).compile(grammar) for name in ("xgrammar", "llguidance")}
        for name, other in (("xgrammar", "llguidance"), ("llguidance", "xgrammar")):
            for number in range(OUTPUTS):
                output = random_output(compiled[name], words, seed * OUTPUTS + number)
                if output is None:
                    continue
                text = text_of(output, words)
                compact = json.dumps(json.loads(text), ensure_ascii=False)
                for way in (output, vocabulary.encode(compact, add_special=False).tolist()):
                    assert accepts(compiled[other], words, way), (schema, name, text)


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


def test_three_backends_and_python_agree_on_random_regular_expressions() -> None:
    words = ghost_words()
    for seed in range(REGEXES):
        source = random.Random(seed)
        pattern = random_regex(source)
        compiled = {
            name: backend(name).compile(Grammar(GrammarKind.REGEX, pattern))
            for name in ("plain", "xgrammar", "llguidance")
        }
        texts = [bytes(source.choice(b"ab1c") for _ in range(source.randint(0, 6))) for _ in range(20)]
        said = [random_output(compiled["plain"], words, seed + number) for number in range(3)]
        texts += [text_of(output, words).encode() for output in said if output is not None]
        for text in texts:
            judged = {name: accepts(each, words, list(text)) for name, each in compiled.items()}
            expected = re.fullmatch(pattern, text.decode()) is not None
            assert set(judged.values()) == {expected}, (pattern, text, judged)
