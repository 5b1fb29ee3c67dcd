"""Chat templates: messages to the prompt text that the model was trained on.

A template comes with the model, so it is a stranger's program: it runs in Jinja's immutable sandbox, on a budget of
operations (attribute and item look-ups, calls, steps of `range`, repetition) and of output characters, so that no
messages can make it run on. What is not bounded is the memory of one operation that the template itself spells out,
such as padding a string to a billion characters: a model's files are trusted that far. The same messages give the same
prompt: the clock enters only as the `now` that the caller passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.vocabulary import Vocabulary

MAX_OPERATIONS = 2_000_000
MAX_CHARACTERS = 8_000_000
RESERVED = frozenset({"messages", "bos_token", "eos_token", "raise_exception", "strftime_now", "range"})
"""Names that a request's options cannot set."""


class TemplateBudgetExceeded(jinja2.exceptions.SecurityError):
    """The template asked for more work or more text than it may have."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what an assistant wrote, for training; here only its content
    counts."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it like this

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Counts what a template does. The counter belongs to one rendering at a time."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
        self.num_operations = 0
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["range"] = self._range

    def spend(self, operations: int = 1) -> None:
        self.num_operations += operations
        if self.num_operations > MAX_OPERATIONS:
            raise TemplateBudgetExceeded("the chat template does too much work for these messages")

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.spend()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.spend()
        return super().getitem(obj, argument)

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        self.spend()
        return super().call(*arguments, **keywords)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Repetition pays for its result; powers of large numbers have no place in a prompt."""
        for size, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(size, str | list | tuple) and isinstance(times, int):
                self.spend(len(size) * max(times, 0))
        if operator == "**":
            raise TemplateBudgetExceeded("the chat template raises to a power")
        return super().call_binop(context, operator, left, right)

    def _range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self.spend(len(steps))
        return steps


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON: unlike Jinja's own filter it does not escape for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


class ChatTemplate:
    """The chat templates of one model, compiled once. Not for use by two threads at a time."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """A template that does not compile is reported when it is used: the model still completes plain prompts."""
        self._environment = _Environment()
        self._sources = vocabulary.chat_templates
        self._compiled: dict[str, tuple[jinja2.Template, frozenset[str]]] = {}
        self._fixed = {"bos_token": vocabulary.bos_token, "eos_token": vocabulary.eos_token}

    def render(self, messages: Iterable[Mapping[str, Any]], options: Mapping[str, Any], now: datetime) -> str:
        """The prompt for `messages`, ending where the assistant is to speak.

        `options` become variables of the template: `tools` (a list), `add_generation_prompt` (true unless set) and
        what else the template reads; options that are None count as not given. A name that the template does not
        read is refused rather than ignored. `now` is what `strftime_now` formats.

        Raises InvalidRequest: no template, malformed messages, an unknown option, or the template's own refusal.
        """
        given = {name: value for name, value in options.items() if value is not None}
        template, reads = self._template(given)
        for name in given:
            if name in RESERVED or (name not in reads and name != "add_generation_prompt"):
                raise InvalidRequest(f"the chat template of this model takes no {name!r}", param=name)
        variables = {
            "add_generation_prompt": True,
            **given,
            **self._fixed,
            "messages": _messages(messages),
            "strftime_now": now.strftime,
        }
        self._environment.num_operations = 0
        try:
            return _bounded(template.generate(variables))
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise InvalidRequest(f"the chat template refused these messages: {error}", param="messages") from error
        except (RecursionError, MemoryError, OverflowError) as error:
            raise InvalidRequest("the chat template does not end for these messages", param="messages") from error

    def _template(self, options: Mapping[str, Any]) -> tuple[jinja2.Template, frozenset[str]]:
        """The compiled template and the names it reads; `tool_use` for tools where the model has one."""
        name = "tool_use" if options.get("tools") and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise InvalidRequest(
                "this model has no chat template; send a plain prompt to /v1/completions instead", param="messages"
            )
        if name not in self._compiled:
            source = self._sources[name]
            try:
                reads = jinja2.meta.find_undeclared_variables(self._environment.parse(source))
                self._compiled[name] = (self._environment.from_string(source), frozenset(reads))
            except jinja2.TemplateSyntaxError as error:
                raise InvalidRequest(
                    f"this model's chat template does not compile (line {error.lineno}: {error.message})",
                    param="messages",
                    status=422,
                ) from error
        return self._compiled[name]


def _bounded(pieces: Iterable[str]) -> str:
    texts: list[str] = []
    num_characters = 0
    for piece in pieces:
        num_characters += len(piece)
        if num_characters > MAX_CHARACTERS:
            raise TemplateBudgetExceeded("the rendered chat is too long")
        texts.append(piece)
    return "".join(texts)


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
                f"{where}[{index}] is of type {kind!r}; this model reads parts of type 'text' only",
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
        except ValueError:
            raise InvalidRequest(
                f"{where}.function.arguments is not JSON", param=f"{where}.function.arguments"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}
