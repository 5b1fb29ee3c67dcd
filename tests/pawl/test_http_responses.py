"""`/v1/responses`: OpenAI's own client reads what comes, whole and streamed, and a conversation goes round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from openai.types.responses import ResponseIncludable

from pawl.actors.messages.generate import Submit
from pawl.http.response_fields import GIVEN, Included, ResponsesBody, messages_of
from pawl.lifecycle.states import Cause
from tests.pawl.fake_engine import END_OF_REASONING, Served

ADD: dict[str, Any] = {
    "type": "function",
    "name": "add",
    "description": "The sum of two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
ALL = f"<think>Hm{chr(END_OF_REASONING)}Let me see.\n{CALL}"


@pytest.fixture
def own(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as own:
        yield own


def respond(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/v1/responses", json={"input": "hi", **body})
    assert response.status_code == 200, response.text
    return response.json()


def stream_of(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The events, whose names and numbers must be right."""
    response = client.post("/v1/responses", json={"input": "hi", "stream": True, **body})
    *blocks, nothing = response.text.split("\n\n")
    assert nothing == ""
    pairs = [block.split("\n") for block in blocks]
    events = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [name.removeprefix("event: ") for name, _ in pairs] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def unnamed(value: Any) -> Any:
    """`value` without what is new in each reply."""
    if isinstance(value, dict):
        return {key: unnamed(inner) for key, inner in value.items() if key not in ("id", "call_id", "created_at")}
    return [unnamed(inner) for inner in value] if isinstance(value, list) else value


def last_submit(engine: Any) -> Submit:
    return next(message for message in reversed(engine.seen) if isinstance(message, Submit))


def test_a_reply_has_openais_shape(client: httpx.Client) -> None:
    reply = respond(client, max_output_tokens=4, temperature=0.5, metadata={"a": "b"}, instructions="Be short")
    assert reply["id"].startswith("resp_")
    assert reply["object"] == "response"
    assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    (message,) = reply["output"]
    assert message["id"].startswith("msg_")
    assert unnamed(message) == {
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "content": [{"type": "output_text", "text": "syst", "annotations": [], "logprobs": []}],
    }
    assert reply["usage"] == {
        "input_tokens": 26,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 30,
    }
    assert (reply["temperature"], reply["metadata"], reply["instructions"]) == (0.5, {"a": "b"}, "Be short")
    assert reply["text"] == {"format": {"type": "text"}}


def test_reasoning_text_and_calls_are_items_of_their_own(client: httpx.Client, engine: Any) -> None:
    engine.script = ALL
    reply = respond(client, tools=[ADD])
    assert reply["status"] == "completed"
    assert unnamed(reply["output"]) == [
        {"type": "reasoning", "status": "completed", "summary": [],
         "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "status": "completed", "name": "add", "arguments": '{"a": 2}'},
    ]  # fmt: skip
    assert reply["usage"]["output_tokens_details"] == {"reasoning_tokens": 10}
    assert reply["output"][2]["call_id"].startswith("call_")


@pytest.mark.parametrize("fields", [{}, {"tools": [ADD]}, {"max_output_tokens": 20}, {"top_logprobs": 2}])
def test_a_stream_ends_with_what_the_whole_reply_would_be(
    client: httpx.Client, engine: Any, fields: dict[str, Any]
) -> None:
    engine.script = ALL
    events = stream_of(client, **fields)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["output"] == []
    last = events[-1]
    assert last["type"] == f"response.{last['response']['status']}"
    assert unnamed(last["response"]) == unnamed(respond(client, **fields))


def test_deltas_of_a_stream_add_up_to_its_items(client: httpx.Client, engine: Any) -> None:
    engine.script = ALL
    events = stream_of(client, tools=[ADD])
    items = events[-1]["response"]["output"]
    for place, item in enumerate(items):
        own = [event for event in events if event.get("output_index") == place]
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["status"] == "in_progress"
        assert own[-1] == {**own[-1], "type": "response.output_item.done", "item": item}
        assert {event["item_id"] for event in own[1:-1]} == {item["id"]}
        text = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert text == (item["arguments"] if "arguments" in item else item["content"][0]["text"])


def test_openais_client_reads_whole_replies_and_streams(own: openai.OpenAI, engine: Any) -> None:
    engine.script = ALL
    whole = own.responses.create(model="echo", input="hi", tools=[ADD])  # type: ignore[list-item]
    assert whole.output_text == "Let me see."
    with own.responses.stream(model="echo", input="hi", tools=[ADD]) as stream:  # type: ignore[list-item]
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.output_text.delta", "response.function_call_arguments.delta"} <= kinds
    assert final.output_text == "Let me see."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_a_conversation_goes_round(own: openai.OpenAI, engine: Any) -> None:
    engine.script = ALL
    first = own.responses.create(model="echo", input="hi", tools=[ADD], reasoning={"effort": "low"})  # type: ignore[list-item]
    call = first.output[2]
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
    said = [{"role": "user", "content": "hi"}, *(item.model_dump() for item in first.output), result]
    own.responses.create(model="echo", instructions="Add", input=said, tools=[ADD], tool_choice="none")  # type: ignore[arg-type,list-item]
    submit = last_submit(engine)
    assert submit.chat == (
        {"role": "system", "content": "Add"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm",
            "tool_calls": [
                {"id": call.call_id, "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
            ],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "5"},
    )


def test_parts_of_a_message_are_joined_and_calls_stand_with_what_was_said() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    refusal = {"type": None, "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    body = ResponsesBody(input=[{"role": "user", "content": parts}, call, {**call, "call_id": "2"}, refusal])
    messages = messages_of(body)
    assert messages[0]["content"] == "a\nb"
    assert [one["id"] for one in messages[1]["tool_calls"]] == ["1", "2"]
    assert messages[1]["content"] == "No."


def test_scores_stand_with_the_text(client: httpx.Client) -> None:
    reply = respond(client, max_output_tokens=2, top_logprobs=1, include=["message.output_text.logprobs"])
    scores = reply["output"][0]["content"][0]["logprobs"]
    assert [score["token"] for score in scores] == ["u", "s"]
    assert all(len(score["top_logprobs"]) == 1 for score in scores)


def test_tools_and_choices_reach_the_chat_in_its_own_form(client: httpx.Client, engine: Any) -> None:
    respond(client, tools=[ADD], parallel_tool_calls=False, reasoning={"effort": "none"}, max_output_tokens=1)
    options = last_submit(engine).template_options
    function = {name: value for name, value in ADD.items() if name != "type"}
    assert options["tools"] == [{"type": "function", "function": function}]
    assert options["enable_thinking"] is False
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}
    other = {"type": "function", "name": "other"}
    respond(client, tools=[ADD, other], tool_choice=choice, text={"verbosity": "low"}, max_output_tokens=1)
    submit = last_submit(engine)
    assert submit.template_options["verbosity"] == "low"
    calls = Draft202012Validator(json.loads(submit.sampling.grammar.text))
    assert [calls.is_valid([{"name": name, "arguments": {}}]) for name in ("add", "other")] == [True, False]


def test_an_input_whose_tokens_are_counted_is_refused_as_one_that_is_answered(client: httpx.Client) -> None:
    refused = client.post("/v1/responses/input_tokens", json={"input": "hi", "previous_response_id": "resp_1"})
    assert refused.json()["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"background": True}, "background", "only false is"),
        ({"truncation": "auto"}, "truncation", 'only "disabled" is'),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "one of 'function'"),
        ({"max_output_tokens": -1}, "max_output_tokens", "from 0"),
        ({"max_output_tokens": 5000}, "max_output_tokens", "max_output_tokens must be"),
        ({"input": []}, "input", "empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "not taken"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "input_text"),
        ({"input": [{"role": "user", "content": [{"type": ["text"], "text": "a"}]}]}, "input[0].content[0]", "type"),
        ({"input": [{"role": "user", "content": [{"type": "text"}]}]}, "input[0].content[0].text", "a string"),
        ({"input": [{"role": "user", "content": [{"type": "refusal"}]}]}, "input[0].content[0].refusal", "a string"),
        ({"input": [{"content": "hi"}]}, "input[0].role", "not empty"),
        ({"input": [{"type": "", "role": "user", "content": "hi"}]}, "input[0]", "not taken"),
        ({"input": [{"type": "function_call", "name": "a", "arguments": {}}]}, "input[0].arguments", "string of JSON"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input[0].name", "not empty"),
        (
            {"input": [{"type": "function_call", "name": "a", "arguments": {"b": 1}}]},
            "input[0].arguments",
            "string of JSON",
        ),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content", "content"),
        ({"reasoning": {"efort": "low"}}, "reasoning.efort", "did you mean 'effort'"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "one of 'auto'"),
        ({"text": {"formt": {"type": "json_object"}}}, "text.formt", "did you mean 'format'"),
        ({"include": ["message.output_text.logprob"]}, "include[0]", "one of 'code_interpreter_call.outputs'"),
        ({"input": [{"role": "user"}]}, "input[0].content", "must be a string"),
        (
            {"instructions": "x", "input": [{"type": "function_call", "name": "f", "arguments": "{"}]},
            "input[0].arguments",
            "input[0].arguments is not JSON",
        ),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "[" * 10_000}]},
            "input[0].arguments",
            "not JSON",
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "text.format.schema is missing"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "text.format.type must be one of"),
        ({"model": "gpt-17"}, "model", "does not exist"),
    ],
)
def test_what_cannot_be_is_refused_by_the_names_of_this_route(
    client: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    response = client.post("/v1/responses", json={"input": "hi", **fields})
    error = response.json()["error"]
    assert response.status_code in (400, 404)
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("included", sorted({*get_args(Included)} - GIVEN))
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/input_tokens"])
def test_what_a_reply_cannot_include_is_refused_by_its_name(client: httpx.Client, path: str, included: str) -> None:
    response = client.post(path, json={"input": "hi", "include": ["message.output_text.logprobs", included]})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "include[1]", "unsupported_field")
    assert error["message"].startswith(f"include[1]: {included} is not to be had here; what is: message.output_text")


def test_all_that_openais_client_knows_to_include_is_known() -> None:
    assert {*get_args(ResponseIncludable)} <= {*get_args(Included)}


def test_reasoning_goes_back_as_it_came_where_a_client_asks_for_it_encrypted(own: openai.OpenAI, engine: Any) -> None:
    engine.script = ALL
    first = own.responses.create(model="echo", input="hi", tools=[ADD], include=["reasoning.encrypted_content"])
    items = [item.model_dump(exclude_unset=True) for item in first.output]
    assert items[0]["type"] == "reasoning"
    own.responses.create(model="echo", input=[{"role": "user", "content": "hi"}, *items], tools=[ADD])
    assert last_submit(engine).chat[1]["reasoning_content"] == "Hm"


def test_a_failure_under_way_is_an_event(client: httpx.Client, engine: Any, served: Served) -> None:
    served.on_loop(engine.hold)
    kinds = []
    with client.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as response:
        lines = response.iter_lines()
        for line in lines:
            if line.startswith("event: "):
                kinds.append(line.removeprefix("event: "))
            if line.startswith("event: response.output_text.delta"):
                served.on_loop(lambda: engine.end(Cause.INTERNAL))
    assert kinds[-1] == "error"
