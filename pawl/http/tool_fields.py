"""Tools in the body of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

ToolName = Annotated[str, Meta(min_length=1, max_length=128)]
ToolText = Annotated[str, Meta(max_length=65_536)]
Schema = Annotated[dict[str, Any], Meta(max_length=256)]


class ToolFunction(msgspec.Struct, omit_defaults=True):
    """What can be called. Keys that are not known here are not for this server."""

    name: ToolName
    description: ToolText | None = None
    parameters: Schema | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None
    """Whether arguments must fit the schema, also where the model chooses by itself."""


class Tool(msgspec.Struct):
    """One entry of `tools`."""

    type: Literal["function"]
    function: ToolFunction


class ToolReference(msgspec.Struct):
    """The name of a tool."""

    name: ToolName


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ToolReference


Tools = Annotated[list[Tool], Meta(max_length=128)]
Functions = Annotated[list[ToolFunction], Meta(max_length=128)]
