"""Tools and calls in plain words, for templates that have no place for them."""

from __future__ import annotations

from typing import Any

from pawl.actors.text.tool_words import with_calls_told, with_offer

ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "description": "a + b"}}
USER = {"role": "user", "content": "2 + 3?"}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_the_offer_goes_to_the_system_message_or_becomes_one() -> None:
    alone = with_offer([USER], [ADD])
    assert [message["role"] for message in alone] == ["system", "user"]
    assert '{"name": "add", "description": "a + b"}' in alone[0]["content"]
    beside = with_offer([{"role": "system", "content": "Be kind."}, USER], [ADD])
    assert beside[0]["content"] == "Be kind.\n\n" + alone[0]["content"]
    assert with_offer([USER], []) == [USER]


def test_calls_and_their_results_are_told_in_turn() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call("add", {"a": 2}), call("now", {})]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
        {"role": "tool", "tool_call_id": "2", "content": "noon"},
        {"role": "assistant", "content": "Once more.", "tool_calls": [call("add", {"ä": "é"})]},
        {"role": "tool", "content": "6"},
    ]
    first = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    second = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    results = "<tool_response>\n5\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    last = 'Once more.\n<tool_call>\n{"name": "add", "arguments": {"ä": "é"}}\n</tool_call>'
    assert [(one["role"], one["content"]) for one in with_calls_told(messages)] == [
        ("user", "2 + 3?"),
        ("assistant", f"{first}\n{second}"),
        ("user", results),
        ("assistant", last),
        ("user", "<tool_response>\n6\n</tool_response>"),
    ]
    assert "tool_calls" in messages[1]
