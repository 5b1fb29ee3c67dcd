"""What a call says about tools and reasoning, and the fold that reads replies accordingly."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.actors.grammar_fields import grammars_of
from pawl.actors.text.invalid import quoted
from pawl.http.errors import Problem
from pawl.http.grammar import grammar_of
from pawl.http.info import ServerInfo, Tokenization
from pawl.http.schemas import ChatBody
from pawl.http.tool_fields import AllowedChoice, Choice, Tool, ToolChoice
from pawl.http.tool_grammar import MOST_CALLS, forced_calls, strict_calls
from pawl.lifecycle.grammar import Grammar, GrammarKind, Reasoning
from pawl.parsers.calls import CallParser, PlainCalls
from pawl.parsers.events import Parser
from pawl.parsers.reader import TOOL_FORMATS, Reader
from pawl.parsers.reasoning import FORMATS, ReasoningFormat, ReasoningParser


class Reading(msgspec.Struct, frozen=True):
    """How replies of one call are read. Where nothing is to be told apart, text is content as it comes."""

    tools: tuple[Tool, ...] = ()
    """Those that may be called."""
    offered: tuple[Tool, ...] = ()
    """Those that the model is told of."""
    tool_format: str | None = None
    """None: the reply is a list of calls and nothing else."""
    most_calls: int | None = None
    reasoning: ReasoningFormat | None = None
    grammar: Grammar | None = None
    """What the reply is kept to."""
    before_grammar: Reasoning | None = None
    """What may come before it."""

    short_ids: bool = False
    """Names of calls have nine characters."""

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
        names = frozenset(tool.function.name for tool in self.tools)
        return PlainCalls(names) if self.tool_format is None else TOOL_FORMATS[self.tool_format](names)

    def call_id(self, random: str) -> str:
        """Name of a call, from hexadecimal digits. Mistral's templates take nine letters and digits, nothing else."""
        return random[:9] if self.short_ids else f"call_{random[:24]}"

    @property
    def template_options(self) -> dict[str, Any]:
        """What the chat template is told."""
        return {"tools": msgspec.to_builtins(list(self.offered))} if self.offered else {}


class ReasoningMarks(msgspec.Struct, frozen=True):
    """The marks of a model's reasoning as tokens; None: of more than one."""

    begin: int | None = None
    end: int | None = None

    @classmethod
    def of(cls, form: ReasoningFormat | None, tokenization: Tokenization) -> ReasoningMarks:
        if form is None:
            return cls()
        marks = (tokenization.encode(mark, False) for mark in (form.begin, form.end))
        return cls(*(int(ids[0]) if len(ids) == 1 else None for ids in marks))


def reading_of(body: ChatBody, info: ServerInfo, marks: ReasoningMarks) -> Reading:
    """What `body` asks for. Raises Problem, and InvalidRequest for tools that cannot be called here."""
    reasoning = info.reasoning_format if body.separate_reasoning is not False else None
    form = FORMATS[reasoning] if reasoning is not None else None
    before = None
    if form is not None and marks.end is not None:
        before = Reasoning(marks.end, marks.begin, inside=form.always)
    grammar, plain = grammar_of(body), grammars_of(body)
    asked = [*plain.values(), *([grammar] if grammar is not None else [])]
    free = all(one.kind is GrammarKind.STRUCTURAL_TAG for one in asked)
    if not free and before is None:
        form = None  # a reply that is kept to a grammar from its beginning has no room for reasoning
    after = None if free else before
    tools, choice = tuple(body.tools or ()), body.tool_choice
    names = _named(choice)
    _check(tools, choice, names)
    callable_ = tuple(tool for tool in tools if not names or tool.function.name in names)
    mode = choice.allowed_tools.mode if isinstance(choice, AllowedChoice) else choice
    if mode == "none" or not tools:
        return Reading(reasoning=form, grammar=grammar, before_grammar=after)
    short_ids = info.tool_format == "mistral"
    one = body.parallel_tool_calls is False
    if mode not in (None, "auto"):
        if asked and body.response_format is None:
            raise Problem(400, "a call that must be made leaves no room for another grammar", param="tool_choice")
        most = 1 if one or isinstance(choice, ToolChoice) else MOST_CALLS
        form = form if before is not None else None
        return Reading(callable_, tools, None, most, form, forced_calls(callable_, most), before, short_ids)
    if info.tool_format is None:
        text = "how this model calls tools is not known; choose a format with --tool-call-parser"
        raise Problem(400, text, param="tools", code="unsupported_field")
    kept = len(callable_) < len(tools) or any(tool.function.strict for tool in tools)
    if not asked and info.tool_format == "hermes" and kept:
        grammar = strict_calls(callable_)
    return Reading(callable_, tools, info.tool_format, 1 if one else None, form, grammar, after, short_ids)


def _named(choice: Choice | None) -> list[str]:
    """The tools that `choice` names, which alone may be called; none: all may."""
    if isinstance(choice, AllowedChoice):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return [choice.function.name] if isinstance(choice, ToolChoice) else []


def _check(tools: tuple[Tool, ...], choice: Choice | None, named: list[str]) -> None:
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise Problem(400, "each of tools must have a name of its own", param="tools")
    if choice in (None, "none", "auto"):
        return
    if not tools:
        raise Problem(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
    if foreign := [name for name in named if name not in names]:
        text = f"tool_choice names {quoted(foreign[0])}, which is none of tools"
        raise Problem(400, text, param="tool_choice")
