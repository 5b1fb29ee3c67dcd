"""Chat templates: messages to the prompt text that the model was trained on.

A template runs in a sandbox, on a budget. The same messages give the same prompt: the clock enters only as the `now`
that the caller passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import jinja2
import jinja2.meta

from pawl.actors.text.invalid import InvalidRequest, clipped, quoted
from pawl.actors.text.sandbox import Sandbox, bounded
from pawl.actors.text.tool_words import with_calls_told, with_offer

RESERVED = frozenset({"messages", "bos_token", "eos_token", "raise_exception", "strftime_now", "range"})
"""Names that a request's options cannot set."""


class Templates(Protocol):
    """The chat templates of a vocabulary by name, and what they name."""

    @property
    def chat_templates(self) -> Mapping[str, str]: ...

    @property
    def bos_token(self) -> str: ...

    @property
    def eos_token(self) -> str: ...


class ChatTemplate:
    """The chat templates of one model, compiled once. Not for use by two threads at a time."""

    def __init__(self, vocabulary: Templates) -> None:
        """A template that does not compile is reported when it is used: the model still completes plain prompts."""
        self._sources = vocabulary.chat_templates
        self._compiled: dict[str, tuple[jinja2.Template, frozenset[str], str]] = {}
        self._fixed = {"bos_token": vocabulary.bos_token, "eos_token": vocabulary.eos_token}

    @cached_property
    def _environment(self) -> Sandbox:
        """Made when it is needed: a simulated run has no use for it, and would spend a tenth of its time on it."""
        return Sandbox()

    def render(self, messages: Iterable[Mapping[str, Any]], options: Mapping[str, Any], now: datetime) -> str:
        """The prompt for `messages`, ending where the assistant is to speak.

        `options` become variables of the template: `tools` (a list), `add_generation_prompt` (true unless set) and
        what else the template reads; options that are None count as not given, and what the template does not read
        changes nothing, but for `tools`, which then stand in the messages (see `tool_words`). With
        `continue_final_message` the prompt ends within the last message, which the model goes on with. `now` is what
        `strftime_now` formats.

        Raises InvalidRequest: no template, malformed messages, or its own refusal.
        """
        given = {name: value for name, value in options.items() if value is not None}
        template, reads, source = self._template(given)
        for name in given:
            if name in RESERVED:
                raise InvalidRequest(f"the chat template of this model takes no {name!r}", param=name)
        checked = _messages(messages)
        if "developer" not in source:
            checked = [{**one, "role": "system"} if one["role"] == "developer" else one for one in checked]
        if "tool_calls" not in source:
            checked = with_calls_told(checked)
        if "tools" not in reads:
            checked = with_offer(checked, _tools(given.pop("tools", [])))
        continues = bool(given.pop("continue_final_message", False))
        variables = {
            "add_generation_prompt": not continues,
            **given,
            **self._fixed,
            "messages": checked,
            "strftime_now": now.strftime,
        }
        self._environment.refill()
        try:
            prompt = bounded(template.generate(variables))
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            words = clipped(str(error))
            raise InvalidRequest(f"the chat template refused these messages: {words}", param="messages") from error
        except (RecursionError, MemoryError, OverflowError) as error:
            raise InvalidRequest("the chat template does not end for these messages", param="messages") from error
        return _open_ended(prompt, checked[-1]["content"]) if continues else prompt

    def _template(self, options: Mapping[str, Any]) -> tuple[jinja2.Template, frozenset[str], str]:
        """The compiled template, the names it reads, and its source; `tool_use` for tools where the model has one."""
        name = "tool_use" if options.get("tools") and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise InvalidRequest(
                "this model has no chat template; send a plain prompt to /v1/completions instead", param="messages"
            )
        if name not in self._compiled:
            source = self._sources[name]
            try:
                reads = jinja2.meta.find_undeclared_variables(self._environment.parse(source))
                template = self._environment.from_string(source)
                self._compiled[name] = (template, frozenset(reads), source)
            except (jinja2.TemplateSyntaxError, SyntaxError, RecursionError, MemoryError) as error:
                place = f"line {error.lineno}: {error.message}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
                text = f"this model's chat template does not compile ({place or type(error).__name__})"
                raise InvalidRequest(text, param="messages", status=422) from error
        return self._compiled[name]


def _tools(tools: Any) -> list[Mapping[str, Any]]:
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InvalidRequest("tools must be a list of objects", param="tools")
    return tools


def _open_ended(prompt: str, final: str) -> str:
    """The prompt up to the end of its final message's content."""
    place = prompt.rfind(final.strip()) if final.strip() else -1
    if place < 0:
        text = "continue_final_message needs a last message whose content the chat template keeps as it is"
        raise InvalidRequest(text, param="continue_final_message")
    # Templates may strip the content: then the white space at its end is not there.
    whole = prompt.startswith(final.lstrip(), place)
    return prompt[: place + len(final.lstrip() if whole else final.strip())]


def _messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    checked = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not checked:
        raise InvalidRequest("messages must not be empty", param="messages")
    return checked


def _message(message: Any, where: str) -> dict[str, Any]:
    """One message as templates expect it: a role, content as one string, arguments of tool calls as objects."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"{where} must be an object with a role", param=where)
    result = {key: value for key, value in message.items() if value is not None}
    if result.get("tool_calls") == []:
        # Clients write an empty list where there are none; templates ask whether the key is there.
        del result["tool_calls"]
    result["content"] = _text_of(message.get("content"), f"{where}.content")
    if "tool_calls" in result:
        if not isinstance(result["tool_calls"], list):
            raise InvalidRequest(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
        result["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(result["tool_calls"])
        ]
    return result


def _text_of(content: Any, where: str) -> str:
    """Content as one string; the parts of a list are joined by a line break, nothing is the empty string."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{where}[{index}] is of type {quoted(str(kind))}; this model reads parts of type 'text' only",
                param=f"{where}[{index}]",
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """OpenAI's API carries arguments as a JSON string; templates write objects."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} must be an object with function.name", param=where)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except (ValueError, RecursionError):
            raise InvalidRequest(
                f"{where}.function.arguments is not JSON", param=f"{where}.function.arguments"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}
