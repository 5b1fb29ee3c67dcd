"""The body of `POST /v1/responses`, and the chat that it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pawl.actors import fields
from pawl.actors.sampling import Count, TopLogprobs
from pawl.actors.text.invalid import quoted
from pawl.actors.text.template import parsed
from pawl.http.call_fields import CallFields, ObjectOfAny, Verbosity
from pawl.http.errors import Problem
from pawl.http.schemas import ChatBody, refuse_unsupported, unsupported
from pawl.http.tool_fields import Schema, ToolName, ToolText

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Summary = Literal["auto", "concise", "detailed"]
Included = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""What OpenAI's API can add to a reply."""
GIVEN: frozenset[Included] = frozenset({"message.output_text.logprobs", "reasoning.encrypted_content"})
"""Of these, what is here. Encrypted reasoning is what a client keeps to bring it again: here it stands in its item as
it is, and is taken so."""
TEXTS = dict.fromkeys(("input_text", "output_text", "reasoning_text", "summary_text", "text"), "text") | {
    "refusal": "refusal"
}
"""Types of parts that are text -> the member that holds it."""


class ResponseTool(msgspec.Struct, omit_defaults=True):
    """One entry of `tools`: a chat's, without the object in between."""

    type: Literal["function"]
    name: ToolName
    description: ToolText | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class ResponseToolChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The one tool that must be called."""

    name: ToolName


class ResponseAllowedTool(msgspec.Struct):
    """One of the tools that may be called."""

    type: Literal["function"]
    name: ToolName


class ResponseAllowedTools(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Some of the tools may be called, and no others."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseAllowedTool], Meta(min_length=1, max_length=128)]


class ResponseReasoning(msgspec.Struct, forbid_unknown_fields=True):
    """`reasoning`. No summaries are made, whatever it says."""

    effort: Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    """The older name of the same."""


class ResponseText(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """`text`: the form of what is said."""

    format: ObjectOfAny | None = None
    verbosity: Verbosity | None = None


class ResponsesBody(CallFields, kw_only=True):
    """`POST /v1/responses`."""

    input: str | Annotated[list[ObjectOfAny], Meta(max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | ResponseAllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: ResponseReasoning | None = None
    top_logprobs: TopLogprobs | None = None
    include: Annotated[list[Included], Meta(max_length=64)] | None = None
    chat_template_kwargs: ObjectOfAny | None = None
    store: bool | None = None
    """Replies are not kept, whatever it says."""
    max_tool_calls: Count | None = None
    """Of tools that the server itself calls, of which there are none."""
    # Known, but not supported.
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None
    truncation: Any = None
    context_management: Any = None
    moderation: Any = None


TAKEN_OVER = (*CallFields.__struct_fields__, "top_logprobs", "chat_template_kwargs", "parallel_tool_calls")
"""Fields that mean the same in a chat."""


UNSUPPORTED = unsupported(ResponsesBody)


def chat_of(body: ResponsesBody) -> ChatBody:
    """The chat that asks for the same. Raises Problem and InvalidRequest."""
    refuse_unsupported(body, UNSUPPORTED)
    for index, included in enumerate(body.include or ()):
        if included not in GIVEN:
            where = f"include[{index}]"
            text = f"{where}: {included} is not to be had here; what is: {', '.join(sorted(GIVEN))}"
            raise Problem(400, text, param=where, code="unsupported_field")
    chat: dict[str, Any] = {name: value for name in TAKEN_OVER if (value := getattr(body, name)) is not None}
    chat["messages"] = messages_of(body)
    chat["logprobs"] = wants_logprobs(body)
    if not chat["logprobs"]:
        chat.pop("top_logprobs", None)
    if body.max_output_tokens is not None:
        chat["max_tokens"] = body.max_output_tokens
    if body.reasoning is not None and body.reasoning.effort is not None:
        chat["reasoning_effort"] = body.reasoning.effort
    if body.tools:
        chat["tools"] = [_nested(msgspec.to_builtins(tool)) for tool in body.tools]
    if body.tool_choice is not None:
        choice = msgspec.to_builtins(body.tool_choice)
        chat["tool_choice"] = choice if isinstance(choice, str) else _choice(choice)
    if body.text is not None and body.text.verbosity is not None:
        chat["verbosity"] = body.text.verbosity
    if body.text is not None and body.text.format is not None:
        chat["response_format"] = _response_format(body.text.format)
    return fields.convert(chat, ChatBody)


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether scores are shown."""
    return "message.output_text.logprobs" in (body.include or ()) or bool(body.top_logprobs)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    return {"type": flat.pop("type"), "function": flat}


def _choice(flat: dict[str, Any]) -> dict[str, Any]:
    if flat["type"] != "allowed_tools":
        return _nested(flat)
    return {"type": flat["type"], flat["type"]: {"mode": flat["mode"], "tools": [*map(_nested, flat["tools"])]}}


def _response_format(form: dict[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def messages_of(body: ResponsesBody) -> list[dict[str, Any]]:
    """`instructions` and `input` as the messages of a chat. Raises Problem for an item that cannot be one."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    if not body.input:
        raise Problem(400, "input must not be an empty list", param="input")
    for index, item in enumerate(body.input):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """One item, which may be a part of the assistant's last message: what it thought, said and called is one turn."""
    kind = "message" if item.get("type") is None else item["type"]
    match kind:
        case "message":
            content = _content(item.get("content"), f"{where}.content")
            message = {"role": _word(item, "role", where), "content": content}
            if message["role"] == "assistant" and _open(messages):
                messages[-1]["content"] = message["content"]
            else:
                messages.append(message)
        case "reasoning":
            if item.get("encrypted_content") is not None:
                inner = f"{where}.encrypted_content"
                raise Problem(400, f"{inner} is not of this server, which reads content", param=inner)
            text = _content(item.get("content") or [], f"{where}.content")
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": _word(item, "name", where), "arguments": _arguments(item, where)}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        case "function_call_output":
            content = _content(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        case _:
            raise Problem(400, f"{where} is of a type that is not taken here", param=where)


def _open(messages: list[dict[str, Any]]) -> bool:
    """Whether the last message is the assistant's and has said nothing yet."""
    return bool(messages) and messages[-1]["role"] == "assistant" and messages[-1]["content"] is None


def _word(item: dict[str, Any], name: str, where: str) -> str:
    """A member that must be there."""
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise Problem(400, f"{where}.{name} must be a string that is not empty", param=f"{where}.{name}")
    return value


def _arguments(item: dict[str, Any], where: str) -> str:
    """Of a call, as the chat has them."""
    inner, arguments = f"{where}.arguments", item.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        raise Problem(400, f"{inner} must be a string of JSON", param=inner)
    try:
        parsed(arguments or "")
    except ValueError:
        raise Problem(400, f"{inner} is not JSON", param=inner) from None
    return arguments or ""


def _content(content: Any, where: str) -> str:
    """The text of content, whose parts are joined by a line break."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Problem(400, f"{where} must be a string or a list of parts", param=where)
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        inner = f"{where}[{index}]"
        if not isinstance(kind, str) or kind not in TEXTS:
            named = quoted(kind) if isinstance(kind, str) else "no type that is a string"
            raise Problem(400, f"{inner} is of {named}; this model reads {', '.join(sorted(TEXTS))}", param=inner)
        text = part.get(TEXTS[kind])
        if not isinstance(text, str):
            raise Problem(400, f"{inner}.{TEXTS[kind]} must be a string", param=f"{inner}.{TEXTS[kind]}")
        texts.append(text)
    return "\n".join(texts)
