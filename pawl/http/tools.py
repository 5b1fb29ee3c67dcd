"""What a call says about tools and reasoning, and the fold that reads replies accordingly."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.http.errors import Problem
from pawl.http.info import ServerInfo
from pawl.http.schemas import ChatBody
from pawl.http.tool_fields import Tool, ToolChoice
from pawl.parsers.calls import CallParser
from pawl.parsers.events import Parser
from pawl.parsers.reader import TOOL_FORMATS, Reader
from pawl.parsers.reasoning import FORMATS, ReasoningFormat, ReasoningParser


class Reading(msgspec.Struct, frozen=True):
    """How replies of one call are read. Where nothing is to be told apart, text is content as it comes."""

    tools: tuple[Tool, ...] = ()
    """Those that may be called."""
    tool_format: str = "hermes"
    most_calls: int | None = None
    reasoning: ReasoningFormat | None = None

    @property
    def plain(self) -> bool:
        """Whether text is content as it comes."""
        return not self.tools and self.reasoning is None

    def reader(self, in_reasoning: bool) -> Reader:
        """A fresh one for one reply."""
        parsers: list[Parser] = []
        if self.reasoning is not None:
            parsers.append(ReasoningParser(self.reasoning, in_reasoning))
        if self.tools:
            parsers.append(self._calls())
        return Reader(*parsers, most_calls=self.most_calls)

    def _calls(self) -> CallParser:
        return TOOL_FORMATS[self.tool_format](frozenset(tool.function.name for tool in self.tools))

    def call_id(self, random: str) -> str:
        """Name of a call, from hexadecimal digits. Mistral's templates take nine letters and digits, nothing else."""
        return random[:9] if self.tool_format == "mistral" else f"call_{random[:24]}"

    @property
    def template_options(self) -> dict[str, Any]:
        """What the chat template is told."""
        return {"tools": msgspec.to_builtins(list(self.tools))} if self.tools else {}


def reading_of(body: ChatBody, info: ServerInfo) -> Reading:
    """What `body` asks for. Raises Problem for tools that cannot be called here."""
    reasoning = info.reasoning_format if body.separate_reasoning is not False else None
    form = FORMATS[reasoning] if reasoning is not None else None
    tools = tuple(body.tools or ())
    _check(tools, body.tool_choice)
    if body.tool_choice == "none" or not tools:
        return Reading(reasoning=form)
    if info.tool_format is None:
        text = "how this model calls tools is not known; choose a format with --tool-call-parser"
        raise Problem(400, text, param="tools", code="unsupported_field")
    most = 1 if body.parallel_tool_calls is False else None
    return Reading(tools, info.tool_format, most, form)


def _check(tools: tuple[Tool, ...], choice: str | ToolChoice | None) -> None:
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise Problem(400, "each of tools must have a name of its own", param="tools")
    if choice in (None, "none", "auto"):
        return
    if not tools:
        raise Problem(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
    if isinstance(choice, ToolChoice) and choice.function.name not in names:
        text = f"tool_choice names {choice.function.name!r}, which is none of tools"
        raise Problem(400, text, param="tool_choice")
    raise Problem(400, "tool_choice must be none or auto here", param="tool_choice", code="unsupported_field")
