"""Settings as flags and help show them, from the annotations of the Struct that holds them."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal, NamedTuple, Union

import msgspec
from msgspec import Meta

AtLeastOne = Annotated[int, Meta(ge=1, le=1 << 31)]
AtLeastZero = Annotated[int, Meta(ge=0, le=1 << 31)]
UpTo1048576 = Annotated[int, Meta(ge=1, le=1 << 20)]
UpTo65536 = Annotated[int, Meta(ge=1, le=1 << 16)]
UpTo1024 = Annotated[int, Meta(ge=1, le=1024)]
UpTo64 = Annotated[int, Meta(ge=1, le=64)]
AboveZero = Annotated[float, Meta(gt=0, le=1e6)]
Apart = Annotated[str, Meta(pattern=r"^[1-9][0-9]?p[1-9][0-9]?d$")]
Text = Annotated[str, Meta(min_length=1)]


class Setting(NamedTuple):
    """One setting as flags and help show it."""

    name: str
    group: str
    description: str
    kind: type
    """bool, int, float or str."""
    choices: tuple[str, ...] | None
    default: Any
    several: bool = False
    """Whether it may be given several times."""
    together: bool = False
    """Whether one flag may have several values."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def settings_of(kind: type[msgspec.Struct]) -> tuple[Setting, ...]:
    """Every setting of a Struct, in the order of its definition."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return tuple(
        _setting(info.name, hints[info.name], None if info.default is msgspec.NODEFAULT else info.default)
        for info in msgspec.structs.fields(kind)
    )


def _setting(name: str, annotation: Any, default: Any) -> Setting:
    inner, *metas = typing.get_args(annotation)
    meta = metas[-1]  # nested annotations are flattened: the outermost comes last
    if typing.get_origin(inner) in (Union, types.UnionType):
        inner = next(part for part in typing.get_args(inner) if part is not type(None))
    if typing.get_origin(inner) is Annotated:
        inner = typing.get_args(inner)[0]
    several = typing.get_origin(inner) is tuple
    if several:
        inner = typing.get_args(typing.get_args(inner)[0])[0]
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else meta.extra.get("choices")
    group, together, kind = meta.extra["group"], meta.extra.get("together", False), str if choices else inner
    return Setting(name, group, meta.description, kind, choices, default, several, together)
