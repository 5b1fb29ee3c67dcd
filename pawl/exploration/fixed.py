"""Flags that fix what exploration would draw: one for each field of a feature that has a plain value."""

from __future__ import annotations

import argparse
import typing
from functools import partial
from typing import Any

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


def fields() -> tuple[dict[str, str], dict[str, str]]:
    """Fields of the server, and those of a request, each with the first feature that draws it."""
    from pawl.features import request, server

    of_server, of_request = (
        {
            name: feature.name
            for feature in reversed(features)
            for name in feature.fields
            if name not in OTHERWISE | LISTS
        }
        for features in (server.FEATURES, request.FEATURES)
    )
    return of_server, of_request


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, in groups of their own."""
    for title, names, value in zip(("the server", "every request"), fields(), (_of_server, _of_request), strict=True):
        group = parser.add_argument_group(f"features of {title}, drawn where they are not given")
        for name, feature in sorted(names.items()):
            group.add_argument(
                flag_of(name),
                type=partial(value, name),
                default=argparse.SUPPRESS,
                dest=PREFIX + name,
                metavar="X",
                help=feature,
            )


def _of_server(name: str, word: str) -> Any:
    from pawl.testing.shape import Shape

    return _value(Shape, name, word)


def _of_request(name: str, word: str) -> Any:
    from pawl.testing.workload import Arrival

    return _value(Arrival, name, word)


def _value(struct: type[msgspec.Struct], name: str, word: str) -> Any:
    """The value of this field that a word means. Raises ArgumentTypeError."""
    kind = next(info.type for info in msgspec.structs.fields(struct) if info.name == name)
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
