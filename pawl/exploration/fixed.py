"""Flags that fix what exploration would draw: one for each field of a feature that has a plain value."""

from __future__ import annotations

import argparse
import typing
from functools import partial
from typing import Any, NamedTuple

import msgspec

NONE = "none"
OTHERWISE = frozenset({"policy", "cache", "pacing", "mixed"})
"""Fields that have a flag of another kind."""
LISTS = frozenset(
    {"prompt", "stop", "stop_token_ids", "token_ids_logprob", "logit_bias", "grammar", "stage_s", "hitches"}
)
"""Fields that are no plain values."""

RENAMED = {"seed": "request_seed"}
"""Fields whose name means something else to the command."""
PREFIX = "fixed_"
"""Of the names under which the parser keeps them."""


def flag_of(name: str) -> str:
    """The flag of a field."""
    return f"--{RENAMED.get(name, name).replace('_', '-')}"


class Fixable(NamedTuple):
    """A field that can be fixed."""

    type: Any
    feature: str
    """The first that draws it."""


def fields() -> tuple[dict[str, Fixable], dict[str, Fixable]]:
    """Fields of the server, and those of a request."""
    from pawl.features import request, server
    from pawl.testing.shape import Shape
    from pawl.testing.workload import Arrival

    found = []
    for struct, features in ((Shape, server.FEATURES), (Arrival, request.FEATURES)):
        drawn_by = {name: feature.name for feature in reversed(features) for name in feature.fields}
        infos = [info for info in msgspec.structs.fields(struct) if info.name in drawn_by.keys() - OTHERWISE - LISTS]
        found.append({info.name: Fixable(info.type, drawn_by[info.name]) for info in infos})
    return found[0], found[1]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, in groups of their own."""
    for title, names in zip(("the server", "every request"), fields(), strict=True):
        group = parser.add_argument_group(f"features of {title}, drawn where they are not given")
        for name, (kind, feature) in names.items():
            group.add_argument(
                flag_of(name),
                type=partial(_value, kind),
                default=argparse.SUPPRESS,
                dest=PREFIX + name,
                metavar="X",
                help=feature,
            )


def _value(kind: Any, word: str) -> Any:
    """The value that a word means. Raises ArgumentTypeError."""
    try:
        return msgspec.convert(None if word.lower() == NONE and _optional(kind) else word, kind, strict=False)
    except msgspec.ValidationError as error:
        raise argparse.ArgumentTypeError(f"{word!r}: {error}") from error


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def given(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was fixed: of the server, of every request."""
    words = vars(arguments)
    server, request = ({name: words[PREFIX + name] for name in names if PREFIX + name in words} for names in fields())
    return server, request
