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


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The one tool that must be called."""

    function: ToolReference


class AllowedTool(msgspec.Struct):
    """One of the tools that may be called."""

    type: Literal["function"]
    function: ToolReference


class AllowedTools(msgspec.Struct, forbid_unknown_fields=True):
    """Some of the tools, and whether one of them must be called. The model is told of all."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=128)]


class AllowedChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Some of the tools may be called, and no others."""

    allowed_tools: AllowedTools


Choice = Literal["none", "auto", "required"] | ToolChoice | AllowedChoice
Tools = Annotated[list[Tool], Meta(max_length=128)]
Functions = Annotated[list[ToolFunction], Meta(max_length=128)]
