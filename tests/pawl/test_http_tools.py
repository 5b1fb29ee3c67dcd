"""Tools and reasoning over `/v1/chat/completions`, as OpenAI's API has them. The engine says what it is told."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import openai
import pytest
from jsonschema import Draft202012Validator

from pawl.http.schemas import ChatBody
from pawl.http.tool_fields import Tool, ToolFunction
from pawl.http.tool_grammar import MOST_CALLS, forced_calls, strict_calls
from pawl.http.tools import ReasoningMarks, reading_of
from pawl.lifecycle.grammar import Reasoning
from pawl.parsers.reasoning import FORMATS
from tests.pawl.fake_engine import END_OF_REASONING, INFO, Served
from tests.pawl.reading import events

ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
USER = {"role": "user", "content": "What is 2 + 3?"}
ONE_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
SAYS_CALLS = f'Let me see.\n{ONE_CALL}\n<tool_call>\n{{"name": "now"}}\n</tool_call>'


def allowed(mode: str, *tools: dict[str, Any]) -> dict[str, Any]:
    """The choice of one of some tools."""
    named = [{"type": "function", "function": {"name": tool["function"]["name"]}} for tool in tools]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}


def ask(client: httpx.Client, **fields: Any) -> Any:
    response = client.post("/v1/chat/completions", json={"messages": [USER], **fields})
    assert response.status_code == 200, response.text
    return events(response) if fields.get("stream") else response.json()


def message_of(client: httpx.Client, **fields: Any) -> tuple[dict[str, Any], str]:
    """The message and the finish reason, whole; the stream's deltas must add up to the same."""
    whole = ask(client, **fields)["choices"][0]
    message: dict[str, Any] = {"role": None, "content": None}
    reason = None
    for chunk in ask(client, stream=True, **fields):
        for choice in chunk["choices"]:
            assert reason is None
            reason = choice["finish_reason"]
            add_delta(message, choice["delta"])
    for call, streamed in zip(whole["message"].get("tool_calls", ()), message.get("tool_calls", ()), strict=True):
        assert call.pop("id") != streamed.pop("id")
    expected = {**whole["message"]}
    assert expected.pop("refusal") is None
    if expected["reasoning_content"] is None:
        del expected["reasoning_content"]
    assert {**message, "content": message["content"] or expected["content"]} == expected
    assert reason == whole["finish_reason"]
    return expected, whole["finish_reason"]


def add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """As OpenAI's clients do; each delta holds one member, so that those which look at one alone lose nothing."""
    told = {name for name in ("content", "reasoning_content", "tool_calls") if delta.get(name)}
    assert len(told) <= 1
    assert "reasoning_content" in delta
    message["role"] = delta.get("role", message["role"])
    for name in ("content", "reasoning_content"):
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    indices = [part["index"] for part in delta.get("tool_calls", ())]
    assert len(set(indices)) == len(indices)
    for part in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if "id" in part:
            assert part["index"] == len(calls)
            calls.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
        else:
            calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]


def test_calls_stand_beside_the_text_whole_and_streamed(client: httpx.Client, engine: Any) -> None:
    engine.script = SAYS_CALLS
    message, reason = message_of(client, tools=[ADD, NOW])
    assert reason == "tool_calls"
    assert message == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}},
            {"type": "function", "function": {"name": "now", "arguments": "{}"}},
        ],
    }


def test_content_is_null_where_there_are_calls_alone(client: httpx.Client, engine: Any) -> None:
    engine.script = ONE_CALL
    assert message_of(client, tools=[ADD])[0]["content"] is None


def test_arguments_are_streamed_while_they_are_written(client: httpx.Client, engine: Any) -> None:
    engine.script = ONE_CALL
    chunks = ask(client, tools=[ADD], stream=True)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert parts[0]["function"]["name"] == "add"
    assert parts[0]["id"].startswith("call_")
    assert all("name" not in part["function"] and "id" not in part for part in parts[1:])
    # One byte is one token of this engine, and may come with its neighbours.
    assert len(parts) > 2


def test_without_parallel_calls_there_is_one(client: httpx.Client, engine: Any) -> None:
    engine.script = SAYS_CALLS
    message, _ = message_of(client, tools=[ADD, NOW], parallel_tool_calls=False)
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["add"]


@pytest.mark.parametrize("fields", [{}, {"tools": [ADD], "tool_choice": "none"}, {"tools": []}, {"tools": [NOW]}])
def test_a_call_of_what_was_not_offered_is_text(client: httpx.Client, engine: Any, fields: dict[str, Any]) -> None:
    engine.script = ONE_CALL
    message, reason = message_of(client, **fields)
    assert message == {"role": "assistant", "content": ONE_CALL}
    assert reason == "stop"


def test_a_call_that_was_cut_off_has_what_there_was_of_it(client: httpx.Client, engine: Any) -> None:
    engine.script = ONE_CALL
    message, reason = message_of(client, tools=[ADD], max_tokens=55)
    assert reason == "length"
    assert '{"a": 2, "b": 3}'.startswith(message["tool_calls"][0]["function"]["arguments"])


def test_every_choice_has_calls_of_its_own(client: httpx.Client, engine: Any) -> None:
    engine.script = ONE_CALL
    choices = ask(client, tools=[ADD], n=2)["choices"]
    ids = {call["id"] for choice in choices for call in choice["message"]["tool_calls"]}
    assert len(ids) == 2
    streamed = ask(client, tools=[ADD], n=2, stream=True)
    texts = {0: "", 1: ""}
    for choice in (choice for chunk in streamed for choice in chunk["choices"]):
        for part in choice["delta"].get("tool_calls", ()):
            texts[choice["index"]] += part["function"]["arguments"]
    assert list(texts.values()) == ['{"a": 2, "b": 3}'] * 2


def test_tools_reach_the_template_in_one_form_whatever_the_order_of_their_members(
    client: httpx.Client, engine: Any
) -> None:
    shuffled = {"function": {**dict(reversed(ADD["function"].items())), "later": 1}, "type": "function"}
    for tools in ([ADD], [shuffled]):
        ask(client, tools=tools, max_tokens=1)
        assert json.dumps(engine.seen[-1].template_options) == json.dumps({"tools": [ADD]})
    ask(client, tools=[ADD], tool_choice="none", max_tokens=1)
    assert engine.seen[-1].template_options == {}


def test_marks_that_are_special_tokens_are_not_hidden_from_the_reader(client: httpx.Client, engine: Any) -> None:
    ask(client, tools=[ADD], max_tokens=1, skip_special_tokens=True)
    assert not engine.seen[-1].text_options.skip_special_tokens


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "one of 'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "1 to 128"),
        ({"tools": [ADD, ADD]}, "tools", "a name of its own"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tools": [ADD], "tool_choice": "maybe"}, "tool_choice", "'required'"),
        ({"tools": [ADD], "tool_choice": {"type": "mcp"}}, "tool_choice.type", "one of 'function', 'allowed_tools'"),
        ({"tools": [ADD], "tool_choice": {}}, "tool_choice.type", "missing"),
        ({"tools": [ADD], "tool_choice": allowed("auto", ADD, NOW)}, "tool_choice", "'now', which is none of tools"),
        ({"tools": [ADD], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools", "1 to 128"),
        ({"tool_choice": allowed("auto", ADD)}, "tool_choice", "there are no tools"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice",
            "none of tools",
        ),
        ({"functions": [ADD["function"]], "tools": [NOW]}, "functions", "one of them"),
        ({"function_call": {"name": "add"}}, "function_call", "no functions"),
        ({"functions": [{}]}, "functions[0].name", "missing"),
    ],
)
def test_what_is_wrong_with_tools_is_said_by_name(
    client: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    response = client.post("/v1/chat/completions", json={"messages": [USER], **fields})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert words in error["message"]


def test_reasoning_has_a_member_of_its_own(client: httpx.Client, engine: Any) -> None:
    engine.script = "<think>\nTwo and three.\n</think>\n\nFive"
    message, reason = message_of(client)
    assert message == {"role": "assistant", "content": "Five", "reasoning_content": "Two and three."}
    assert reason == "stop"


def test_a_reply_may_begin_within_the_reasoning_and_go_on_to_calls(client: httpx.Client, engine: Any) -> None:
    engine.script, engine.in_reasoning = f"I must add.</think>{ONE_CALL}", True
    message, reason = message_of(client, tools=[ADD])
    assert message["reasoning_content"] == "I must add."
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["name"] == "add"
    assert reason == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"separate_reasoning": False}, {"content": "<think>Hm</think>Five"}),
        ({"include_reasoning": False}, {"content": "Five"}),
    ],
)
def test_reasoning_can_be_left_in_the_text_or_left_out(
    client: httpx.Client, engine: Any, fields: dict[str, Any], message: dict[str, Any]
) -> None:
    engine.script = "<think>Hm</think>Five"
    assert message_of(client, **fields)[0] == {"role": "assistant", **message}


def test_reasoning_can_wait_for_its_end(client: httpx.Client, engine: Any) -> None:
    engine.script = "<think>Two and three.</think>Five"
    message_of(client, stream_reasoning=False)
    chunks = ask(client, stream=True, stream_reasoning=False)
    deltas = [choice["delta"]["reasoning_content"] for chunk in chunks for choice in chunk["choices"]]
    assert [text for text in deltas if text] == ["Two and three."]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [ADD], "tool_choice": "required"},
        {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "add"}}},
        {"response_format": {"type": "json_object"}},
        {"regex": "[0-9]+"},
    ],
    ids=["required", "named", "json_object", "regex"],
)
def test_a_grammar_begins_where_the_reasoning_ends(client: httpx.Client, engine: Any, fields: dict[str, Any]) -> None:
    calls = "tools" in fields
    engine.script = "<think>Hm</think>" + ('[{"name": "add", "arguments": {"a": 2}}]' if calls else "5")
    message, _ = message_of(client, **fields)
    assert message["reasoning_content"] == "Hm"
    assert bool(message.get("tool_calls")) == calls
    assert message["content"] == (None if calls else "5")
    assert engine.seen[-1].sampling.grammar.reasoning == Reasoning(end=END_OF_REASONING)
    ask(client, **fields, separate_reasoning=False)
    assert engine.seen[-1].sampling.grammar.reasoning is None


def test_free_text_with_structured_parts_has_its_reasoning_in_it(client: httpx.Client, engine: Any) -> None:
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    ask(client, tools=[strict], max_tokens=1)
    assert engine.seen[-1].sampling.grammar.reasoning is None


@pytest.mark.parametrize("choice", [None, "auto", {"name": "add"}])
def test_functions_are_tools_with_replies_of_their_own(client: httpx.Client, engine: Any, choice: Any) -> None:
    """OpenAI's first form: a call in `function_call`, without a name of its own, and no second one."""
    arguments = '{"a": 2, "b": 3}'
    forced = isinstance(choice, dict)
    engine.script = (
        f'[{{"name": "add", "arguments": {arguments}}}]' if forced else f"Let me see.\n{ONE_CALL}\n{ONE_CALL}"
    )
    fields = {"functions": [ADD["function"]], **({} if choice is None else {"function_call": choice})}
    whole = ask(client, **fields)["choices"][0]
    call = {"name": "add", "arguments": arguments}
    assert whole["message"]["function_call"] == call
    assert whole["message"]["content"] == (None if forced else "Let me see.")
    assert "tool_calls" not in whole["message"]
    assert whole["finish_reason"] == "function_call"
    assert engine.seen[-1].template_options == {"tools": [ADD]}
    told = [choice for chunk in ask(client, stream=True, **fields) for choice in chunk["choices"]]
    parts = [choice["delta"]["function_call"] for choice in told if "function_call" in choice["delta"]]
    assert parts[0]["name"] == "add"
    assert "".join(part["arguments"] for part in parts) == arguments
    assert told[-1]["finish_reason"] == "function_call"


def test_calls_and_results_of_functions_are_told_as_those_of_tools(client: httpx.Client, engine: Any) -> None:
    call = {"name": "add", "arguments": "{}"}
    history = [
        USER,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "add", "content": "5"},
    ]
    ask(client, messages=history, max_tokens=1)
    named = {"id": "call00001", "type": "function", "function": call}
    assert engine.seen[-1].chat[1:] == (
        {"role": "assistant", "content": None, "tool_calls": [named]},
        {"role": "tool", "name": "add", "content": "5", "tool_call_id": "call00001"},
    )
    ask(client, functions=[], function_call="none", max_tokens=1)
    assert engine.seen[-1].template_options == {}


def test_efforts_reach_the_template_and_none_turns_reasoning_off(client: httpx.Client, engine: Any) -> None:
    ask(client, reasoning_effort="low", max_tokens=1)
    assert engine.seen[-1].template_options == {"reasoning_effort": "low"}
    ask(client, reasoning_effort="none", chat_template_kwargs={"thinking": True}, max_tokens=1)
    expected = {"reasoning_effort": "none", "enable_thinking": False, "thinking": True}
    assert engine.seen[-1].template_options == expected


def test_openais_client_reads_the_calls_of_a_stream(served: Served, engine: Any) -> None:
    engine.script = SAYS_CALLS
    with (
        openai.OpenAI(base_url=served.url + "/v1", api_key="none") as client,
        client.chat.completions.stream(model="echo", messages=[USER], tools=[ADD, NOW]) as stream,  # type: ignore[list-item]
    ):
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    assert message.content == "Let me see."
    assert [call.function.name for call in message.tool_calls or ()] == ["add", "now"]  # type: ignore[union-attr]


def test_usage_says_how_many_tokens_were_reasoning(client: httpx.Client, engine: Any) -> None:
    def counted(**fields: Any) -> Any:
        streamed = ask(client, stream=True, stream_options={"include_usage": True}, **fields)[-1]["usage"]
        usage = ask(client, **fields)["usage"]
        assert streamed == usage
        return usage.get("completion_tokens_details")

    # One byte is a token; so is the mark at the end.
    engine.script = "<think>Hm" + chr(END_OF_REASONING) + "Five"
    assert counted() == {"reasoning_tokens": 10}
    assert counted(n=2) == {"reasoning_tokens": 20}
    assert counted(max_tokens=8) == {"reasoning_tokens": 8}
    assert counted(separate_reasoning=False) is None
    engine.script = "Five"
    assert counted() == {"reasoning_tokens": 0}


@pytest.mark.parametrize(
    ("fields", "names", "most"),
    [
        ({"tool_choice": "required"}, ["add", "now"], MOST_CALLS),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["add", "now"], 1),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, ["now"], 1),
        ({"tool_choice": allowed("required", NOW)}, ["now"], MOST_CALLS),
        ({"tool_choice": allowed("required", NOW, ADD)}, ["add", "now"], MOST_CALLS),
    ],
)
def test_a_call_that_must_be_made_is_made_by_a_grammar(
    client: httpx.Client, engine: Any, fields: dict[str, Any], names: list[str], most: int
) -> None:
    engine.script = json.dumps([{"name": name, "arguments": {}} for name in names])
    message, reason = message_of(client, tools=[ADD, NOW], **fields)
    assert reason == "tool_calls"
    assert [call["function"]["name"] for call in message["tool_calls"]] == names[:most]
    submit = engine.seen[-1]
    assert len(submit.template_options["tools"]) == 2
    schema = json.loads(submit.sampling.grammar.text)
    assert (schema["minItems"], schema["maxItems"]) == (1, most)
    Draft202012Validator.check_schema(schema)
    for name in ("add", "now"):
        valid = Draft202012Validator(schema).is_valid([{"name": name, "arguments": {}}])
        assert valid == (name in names)
    assert not Draft202012Validator(schema).is_valid([])


def test_what_a_schema_refers_to_within_itself_is_found_in_the_grammar() -> None:
    schema = {
        "type": "object",
        "properties": {"first": {"$ref": "#/$defs/node"}, "again": {"$ref": "#"}},
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"const": 1}}}},
        "default": {"$ref": "#/$defs/node"},
    }
    tools = [Tool("function", ToolFunction(name, parameters=schema)) for name in ("f", "g")]
    grammar = json.loads(forced_calls(tools, 2).text)
    assert grammar["$defs"]["1"]["default"] == schema["default"]
    validator = Draft202012Validator(grammar)
    good = {"first": {"next": {"v": 1}}, "again": {"first": {}}}
    assert validator.is_valid([{"name": "g", "arguments": good}])
    for bad in ({"first": {"next": {"v": 2}}}, {"again": {"first": {"v": 2}}}):
        assert not validator.is_valid([{"name": "g", "arguments": bad}])


def test_names_of_parameters_may_be_words_of_schemas_and_notes_are_left_out() -> None:
    words = ("default", "enum", "const", "examples", "title", "description", "$comment", "properties", "$defs")
    schema = {
        "type": "object",
        "description": "d" * 1000,
        "properties": {name: {"$ref": "#/$defs/title", "title": name} for name in words},
        "$defs": {"title": {"type": "object", "properties": {"description": {"const": {"title": "t"}}}}},
        "required": ["title"],
    }
    tools = [Tool("function", ToolFunction(name, parameters=schema, strict=True)) for name in ("f", "g")]
    grammar = json.loads(forced_calls(tools, 2).text)
    assert grammar["$defs"]["1"] == {
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/1/$defs/title"} for name in words},
        "$defs": schema["$defs"],
        "required": ["title"],
    }
    tag, _ = json.loads(strict_calls(tools).text)["format"]["tags"]
    assert tag["content"]["json_schema"]["properties"]["default"] == {"$ref": "#/$defs/title"}
    validator = Draft202012Validator(grammar)
    for name in words:
        for title, good in (("t", True), ("u", False)):
            arguments = {"title": {}} | {name: {"description": {"title": title}}}
            assert validator.is_valid([{"name": "g", "arguments": arguments}]) == good


def test_strict_tools_are_kept_to_their_schemas_where_the_model_chooses(client: httpx.Client, engine: Any) -> None:
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    ask(client, tools=[strict, NOW], max_tokens=1)
    form = json.loads(engine.seen[-1].sampling.grammar.text)["format"]
    assert form["triggers"] == ["<tool_call>"]
    schemas = [tag["content"]["json_schema"] for tag in form["tags"]]
    assert schemas == [ADD["function"]["parameters"], {"type": "object"}]
    ask(client, tools=[ADD, NOW], max_tokens=1)
    assert engine.seen[-1].sampling.grammar is None


def test_where_the_mark_is_no_token_a_reply_with_a_grammar_has_no_reasoning() -> None:
    body = msgspec.convert({"messages": [USER], "regex": "[0-9]+"}, ChatBody)
    assert reading_of(body, INFO, ReasoningMarks(end=7)).reasoning == FORMATS["qwen3"]
    reading = reading_of(body, INFO, ReasoningMarks())
    assert (reading.reasoning, reading.before_grammar) == (None, None)


def test_a_call_that_must_be_made_leaves_no_room_for_another_grammar(client: httpx.Client) -> None:
    body = {"messages": [USER], "tools": [ADD], "tool_choice": "required", "regex": "a"}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"


def test_some_of_the_tools_may_be_called_though_the_model_is_told_of_all(client: httpx.Client, engine: Any) -> None:
    engine.script = SAYS_CALLS
    message, _ = message_of(client, tools=[ADD, NOW], tool_choice=allowed("auto", NOW))
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["now"]
    submit = engine.seen[-1]
    assert submit.template_options["tools"] == [ADD, NOW]
    (tag,) = json.loads(submit.sampling.grammar.text)["format"]["tags"]
    assert '"name": "now"' in tag["begin"]
