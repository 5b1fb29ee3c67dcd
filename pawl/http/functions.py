"""OpenAI's first form of tools: `functions`, `function_call`, and messages of the role `function`.

It becomes today's; replies take the old form again in `MessageReader`."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.http.errors import Problem
from pawl.http.schemas import ChatBody
from pawl.http.tool_fields import Tool, ToolChoice, ToolReference


def with_tools(body: ChatBody) -> ChatBody:
    """The same call in today's words. Raises Problem where it speaks both."""
    messages = _with_calls(body.messages)
    if not body.functions and body.function_call in (None, "none", "auto"):
        return msgspec.structs.replace(body, messages=messages)
    if body.tools or body.tool_choice is not None:
        raise Problem(400, "functions and tools mean the same; send one of them", param="functions")
    if not body.functions:
        raise Problem(400, "function_call asks for a call, but there are no functions", param="function_call")
    choice = body.function_call
    return msgspec.structs.replace(
        body,
        messages=messages,
        tools=[Tool("function", function) for function in body.functions],
        tool_choice=ToolChoice(choice) if isinstance(choice, ToolReference) else choice,
        parallel_tool_calls=False,
    )


def _with_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls and results of functions as those of tools. Each result belongs to the call before it."""
    made: list[dict[str, Any]] = []
    name = ""
    for index, message in enumerate(messages):
        call = message.get("function_call")
        if call is not None:
            name = f"call{index:05}"  # nine letters and digits, as some templates want them
            message = {key: value for key, value in message.items() if key != "function_call"}
            message["tool_calls"] = [{"id": name, "type": "function", "function": call}]
        elif message.get("role") == "function":
            message = {**message, "role": "tool", "tool_call_id": name}
        made.append(message)
    return made
