"""What the output of a request must look like: a kind of grammar and its text. The same value in every API's words."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_GRAMMAR = 1 << 18
"""Characters of a grammar's text."""


class GrammarKind(StrEnum):
    """How the text of a grammar is to be read."""

    JSON_SCHEMA = "json_schema"
    """A JSON Schema. The output is an instance."""
    REGEX = "regex"
    """A regular expression that the whole output matches."""
    EBNF = "ebnf"
    """Rules in GBNF (llama.cpp's form of EBNF); the output is derived from `root`."""
    CHOICE = "choice"
    """A JSON list of strings. The output is one of them."""
    STRUCTURAL_TAG = "structural_tag"
    """Free text in which tags, once begun, hold what their schemas say: xgrammar's JSON form."""


class Reasoning(msgspec.Struct, frozen=True):
    """A model's thoughts, which may come before an output with a grammar: any tokens but those that end an output."""

    end: int
    """The token that ends it; what follows is derived from the grammar."""
    begin: int | None = None
    """The token that begins it, as the first of the output."""
    inside: bool = False
    """The output begins within the reasoning."""


class Grammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """One grammar; equal content is the same grammar, and is compiled once."""

    kind: GrammarKind
    text: Annotated[str, Meta(max_length=MAX_GRAMMAR)]
    reasoning: Reasoning | None = None
