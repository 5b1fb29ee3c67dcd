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
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Of messages, in OpenAI's API. A model may know more: what its template makes something of is taken."""
TEXT_PARTS = ("text", "refusal")
"""Types of parts of a message that hold text, each in a member of its name."""
MOST_ROLE = 64
"""Characters of one."""


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
        checked = asked = _messages(messages)
        _check_case(asked, source)
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
        prompt = self._prompt(template, variables)
        self._check_said(asked, template, variables, prompt)
        return _open_ended(prompt, checked[-1]["content"]) if continues else prompt

    def _prompt(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        self._environment.refill()
        try:
            return bounded(template.generate(variables))
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            words = clipped(str(error))
            raise InvalidRequest(f"the chat template refused these messages: {words}", param="messages") from error
        except (RecursionError, MemoryError, OverflowError) as error:
            raise InvalidRequest("the chat template does not end for these messages", param="messages") from error

    def _check_said(
        self, asked: list[dict[str, Any]], template: jinja2.Template, variables: Mapping[str, Any], prompt: str
    ) -> None:
        """Refuse messages of other roles than the usual ones where the template passes over them: the model would never
        read them."""
        others = [index for index, one in enumerate(asked) if one["role"] not in ROLES and one["content"]]
        if not others:
            return
        usual = [one for one in variables["messages"] if one["role"] in ROLES]
        try:
            without = self._prompt(template, {**variables, "messages": usual})
        except InvalidRequest:
            return  # it needs them
        if without == prompt:
            where, role = f"messages[{others[0]}].role", asked[others[0]]["role"]
            text = f"{where}: the chat template of this model has no role {quoted(role)}"
            raise InvalidRequest(text, param=where)

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


def _check_case(messages: Iterable[Mapping[str, Any]], source: str) -> None:
    """Refuse a usual role that is written in other letters, unless the template names it so."""
    for index, message in enumerate(messages):
        role = message["role"]
        named = role in ROLES or f"'{role}'" in source or f'"{role}"' in source
        if not named and role.lower() in ROLES:
            where = f"messages[{index}].role"
            raise InvalidRequest(f"{where} is {quoted(role)}; roles are written in small letters", param=where)


def _message(message: Any, where: str) -> dict[str, Any]:
    """One message as templates expect it: a role, content as one string, arguments of tool calls as objects."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"{where} must be an object with a role", param=where)
    role = message["role"]
    if not 0 < len(role) <= MOST_ROLE or role != role.strip() or not role.isprintable():
        text = f"{where}.role must be a word of at most {MOST_ROLE} characters, without white space around it"
        raise InvalidRequest(text, param=f"{where}.role")
    result = {key: value for key, value in message.items() if value is not None}
    if result.get("tool_calls") == []:
        # Clients write an empty list where there are none; templates ask whether the key is there.
        del result["tool_calls"]
    content, refusal = message.get("content"), message.get("refusal")
    if content is None and role == "assistant" and isinstance(refusal, str):
        content = refusal  # what it said instead
    result["content"] = text_of(content, f"{where}.content")
    if "tool_calls" in result:
        if not isinstance(result["tool_calls"], list):
            raise InvalidRequest(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
        result["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(result["tool_calls"])
        ]
    return result


def text_of(content: Any, where: str) -> str:
    """Content as one string; the parts of a list are joined by a line break, nothing is the empty string. Raises
    InvalidRequest."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    return "\n".join([_part_of(part, f"{where}[{index}]") for index, part in enumerate(content)])


def _part_of(part: Any, where: str) -> str:
    """The text of one part: what was said, or the words in which the assistant refused."""
    if not isinstance(part, Mapping):
        raise InvalidRequest(f"{where} must be an object with type and text", param=where)
    kind = part.get("type")
    text = part.get(kind) if kind in TEXT_PARTS else None
    if kind in TEXT_PARTS and not isinstance(text, str):
        raise InvalidRequest(f"{where}.{kind} must be a string", param=where)
    if text is None:
        words = f"{where} is of type {quoted(str(kind))}; this model reads parts of type 'text' only"
        raise InvalidRequest(words, param=where)
    return str(text)


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """OpenAI's API carries arguments as a JSON string; templates write objects."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} must be an object with function.name", param=where)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parsed(arguments)
        except ValueError:
            raise InvalidRequest(
                f"{where}.function.arguments is not JSON", param=f"{where}.function.arguments"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}


def parsed(arguments: str) -> Any:
    """Arguments of a call, which may be no text at all. Raises ValueError where they are not JSON."""
    try:
        return json.loads(arguments) if arguments else {}
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
