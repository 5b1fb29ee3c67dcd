"""Tools in plain words, for chat templates that have no place for them: in the system message, and in the history.

The words are those of Hermes (https://github.com/NousResearch/Hermes-Function-Calling), which many models have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pawl.actors.text.sandbox import to_json

OFFER = """You can call functions. These are described in JSON, one a line:
<tools>
{tools}
</tools>
To call a function, write an object with its name and its arguments between <tool_call> and </tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <object>}}
</tool_call>"""


def with_offer(messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`messages` whose system message also says which tools there are."""
    if not tools:
        return messages
    offer = OFFER.format(tools="\n".join(to_json(tool.get("function", tool)) for tool in tools))
    first, *rest = messages
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{first['content']}\n\n{offer}"}, *rest]
    return [{"role": "system", "content": offer}, *messages]


def with_calls_told(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`messages` whose contents say what was called, and what came of it, as the user's words."""
    told: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        said, result = _told(dict(message)), message["role"] == "tool"
        if result and after_result:
            told[-1]["content"] += "\n" + said["content"]
        else:
            told.append(said)
        after_result = result
    return told


def _told(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [call["function"] for call in message.pop("tool_calls", ())]
    texts = [to_json({"name": call["name"], "arguments": call["arguments"]}) for call in calls]
    blocks = [f"<tool_call>\n{text}\n</tool_call>" for text in texts]
    message["content"] = "\n".join([*([message["content"]] if message["content"] else []), *blocks])
    return message
