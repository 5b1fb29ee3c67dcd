"""Structured output over HTTP, in OpenAI's, SGLang's and vLLM's words, from a ghost that says letters otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import msgspec
import openai
import pydantic
import pytest

from pawl.build.ghost import load_ghost
from pawl.build.grammars import Folds
from pawl.cli import main
from pawl.config import build_config
from pawl.http.tool_grammar import MOST_CALLS
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.properties.grammar import GrammarIsAFold
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import Submitted
from pawl.lifecycle.trace.reader import TraceReader
from tests.pawl.ghost_server import ghost_server

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ann", "bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
EBNF = 'root ::= "a" rest\nrest ::= [b-d]{2} | "x" rest'
CHOICES = ["the cat", "the dog"]
TAG = {"triggers": ["<f"], "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}]}
SPELLINGS: list[tuple[dict[str, Any], str]] = [
    *(({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": strict}}}, "schema")
      for strict in (True, False)),
    ({"guided_json": SCHEMA}, "schema"),
    ({"guided_json": json.dumps(SCHEMA)}, "schema"),
    ({"structured_outputs": {"json": SCHEMA}}, "schema"),
    ({"json_schema": json.dumps(SCHEMA)}, "schema"),
    ({"regex": "ab+c{2}"}, "regex"),
    ({"guided_regex": "ab+c{2}"}, "regex"),
    ({"structured_outputs": {"regex": "ab+c{2}"}}, "regex"),
    ({"choice": CHOICES}, "choice"),
    ({"guided_choice": CHOICES}, "choice"),
    ({"structured_outputs": {"choice": CHOICES}}, "choice"),
    ({"ebnf": EBNF}, "ebnf"),
    ({"guided_grammar": EBNF}, "ebnf"),
    ({"structured_outputs": {"grammar": EBNF}}, "ebnf"),
]  # fmt: skip


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=1, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    good: bool


def fits(text: str, kind: str) -> bool:
    match kind:
        case "schema":
            return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))
        case "regex":
            return re.fullmatch("ab+c{2}", text) is not None
        case "choice":
            return text in CHOICES
    return re.fullmatch("ax*[b-d]{2}", text) is not None


@pytest.fixture(scope="module", params=["xgrammar", "llguidance"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home: Path = tmp_path_factory.mktemp("grammar")
    settings = {"model": "ghost", "trace_dir": str(home), "kv_tokens": 1 << 16, "grammar_backend": request.param}
    with (
        ghost_server(load_ghost(build_config(settings))) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        yield client


def refusal(response: httpx.Response) -> str:
    assert response.status_code == 400, response.text
    return str(response.json()["error"]["message"])


@pytest.mark.parametrize(("fields", "kind"), SPELLINGS, ids=lambda value: str(value)[:40])
def test_every_spelling_gives_output_of_its_grammar_on_every_route(
    server: httpx.Client, fields: dict[str, Any], kind: str
) -> None:
    sampling = {"max_tokens": 200, "temperature": 1.0, "n": 2, "seed": 3}
    whole = server.post("/v1/completions", json={"prompt": "say", **sampling, **fields}).json()
    chat = {"messages": [{"role": "user", "content": "say"}], **sampling, **fields}
    chats = server.post("/v1/chat/completions", json=chat).json()
    texts = [choice["text"] for choice in whole["choices"]]
    texts += [choice["message"]["content"] for choice in chats["choices"]]
    assert all(choice["finish_reason"] == "stop" for choice in (*whole["choices"], *chats["choices"]))
    if "structured_outputs" not in fields and fields.keys() <= {"regex", "choice", "ebnf", "json_schema"}:
        params = {"max_new_tokens": 200, "temperature": 1.0, **fields}
        texts.append(server.post("/generate", json={"text": "say", "sampling_params": params}).json()["text"])
    assert all(fits(text, kind) for text in texts), texts


def test_json_object_gives_an_object_and_text_what_it_gives_otherwise(server: httpx.Client) -> None:
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        body = {"prompt": "x", "max_tokens": 2000, "temperature": 1.0, "logit_bias": {"125": 60}, **fields}
        reply = server.post("/v1/completions", json=body).json()["choices"][0]
        assert isinstance(json.loads(reply["text"]), dict)
    plain, text = (
        server.post("/v1/completions", json={"prompt": "x", "temperature": 0, **fields}).json()["choices"][0]["text"]
        for fields in ({}, {"response_format": {"type": "text"}})
    )
    assert plain == text


def test_json_object_may_bring_a_schema(server: httpx.Client) -> None:
    body = {"prompt": "x", "response_format": {"type": "json_object", "schema": {"const": "42"}}}
    assert server.post("/v1/completions", json=body).json()["choices"][0]["text"] == '"42"'


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("choice", ["required", "get"])
def test_calls_that_must_be_made_have_arguments_of_their_schemas(
    server: httpx.Client, choice: str, parallel: bool
) -> None:
    unit = {"type": "object", "properties": {"unit": {"enum": ["c", "f"]}}, "required": ["unit"]}
    place = {"type": "object", "properties": {"at": {"$ref": "#/$defs/at"}}, "required": ["at"], "$defs": {"at": unit}}
    schemas: dict[str, dict[str, Any]] = {"get": {**place, "additionalProperties": False}, "now": {}}
    functions = [{"name": name, **({"parameters": schema} if schema else {})} for name, schema in schemas.items()]
    body = {
        "messages": [{"role": "user", "content": "say"}],
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": choice if choice == "required" else {"type": "function", "function": {"name": choice}},
        "parallel_tool_calls": parallel,
        "max_tokens": 2000,
        "temperature": 1.0,
        "n": 4,
    }
    for one in server.post("/v1/chat/completions", json=body).json()["choices"]:
        assert one["finish_reason"] == "tool_calls"
        calls = one["message"]["tool_calls"]
        assert 1 <= len(calls) <= (MOST_CALLS if choice == "required" and parallel else 1)
        for call in calls:
            name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
            assert choice in ("required", name)
            assert jsonschema.Draft202012Validator(schemas[name] or {"maxProperties": 0}).is_valid(arguments)


def test_a_structural_tag_holds_what_its_schema_says_once_it_has_begun(server: httpx.Client) -> None:
    newer = {
        "format": {
            "type": "triggered_tags",
            "triggers": ["<f"],
            "tags": [{"begin": "<f>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</f>"}],
        }
    }
    for tag in (TAG, newer):
        # The ghost is led to the trigger; after it the grammar leads.
        bias = {str(ord("<")): 20, str(ord("f")): 20}
        body = {"prompt": "x", "max_tokens": 200, "temperature": 1.0, "seed": 1, "logit_bias": bias}
        reply = server.post("/v1/completions", json={**body, "response_format": {"type": "structural_tag", **tag}})
        text = reply.json()["choices"][0]["text"]
        inside = re.search(r"<f>(.*?)</f>", text, re.DOTALL)
        assert inside, text
        assert fits(inside[1], "schema")


def test_a_stream_says_the_same_as_a_whole_reply(server: httpx.Client) -> None:
    body = {"prompt": "x", "max_tokens": 200, "temperature": 1.0, "seed": 5, "guided_json": SCHEMA}
    whole = server.post("/v1/completions", json=body).json()["choices"][0]["text"]
    lines = server.post("/v1/completions", json={**body, "stream": True}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == whole


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"regex": "((a"}, "the regex is not valid"),
        ({"ebnf": "root ::= nothing"}, "the ebnf is not valid"),
        ({"json_schema": "{"}, "json_schema is not valid JSON"),
        ({"json_schema": "[]"}, "json_schema must be a JSON Schema"),
        ({"json_schema": {"type": "foo"}}, "the json_schema is not valid"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is missing"),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema says nothing"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema says nothing"),
        ({"response_format": {"type": "structural_tag"}}, "response_format must have a format"),
        ({"regex": "a", "choice": ["a"]}, "regex and choice contradict each other"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "response_format and regex contradict"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos cannot be true"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern is"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern is not supported"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused_by_name(server: httpx.Client, fields: dict[str, Any], words: str) -> None:
    for stream in (False, True):
        response = server.post("/v1/completions", json={"prompt": "x", "stream": stream, **fields})
        assert refusal(response).startswith(words)


def test_the_end_of_a_grammar_comes_before_the_least_number_of_tokens(server: httpx.Client) -> None:
    body = {"prompt": "x", "max_tokens": 50, "min_tokens": 40, "choice": ["tea"], "temperature": 1.0}
    reply = server.post("/v1/completions", json=body).json()
    assert reply["choices"][0]["text"] == "tea"
    assert reply["choices"][0]["finish_reason"] == "stop"
    longer = server.post("/v1/completions", json={**body, "choice": None, "regex": "[a-z]+"}).json()
    assert longer["usage"]["completion_tokens"] >= 40


def test_log_probabilities_are_of_the_tokens_that_the_grammar_allows(server: httpx.Client) -> None:
    body = {"prompt": "x", "max_tokens": 5, "logprobs": 3, "regex": "[ab]c", "temperature": 0}
    scores = server.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    first = scores["top_logprobs"][0]
    assert sorted(token for token, score in first.items() if score > -9999) == ["a", "b"]
    assert scores["token_logprobs"][1] == 0.0


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance", "plain"])
def test_an_audit_follows_every_output_through_its_grammar_and_computes_it_again(backend: str, tmp_path: Path) -> None:
    settings = {"model": "ghost", "trace_dir": str(tmp_path), "kv_tokens": 4096, "grammar_backend": backend}
    with (
        ghost_server(load_ghost(build_config(settings))) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        for fields in ({"regex": "(ab|c)+d", "logprobs": 2}, {"choice": CHOICES, "temperature": 0}, {}):
            body = {"prompt": "say", "max_tokens": 30, "temperature": 1.0, "n": 2, **fields}
            assert client.post("/v1/completions", json=body).status_code == 200
    assert main(["audit", str(tmp_path), "--recompute"]) == 0
    records = list(TraceReader(tmp_path))
    for index, record in enumerate(records):
        if isinstance(record, Submitted) and record.sampling.grammar is not None:
            other = msgspec.structs.replace(record.sampling, grammar=Grammar(GrammarKind.CHOICE, '["something else"]'))
            records[index] = msgspec.structs.replace(record, sampling=other)
    monitor = Monitor([GrammarIsAFold(Folds())])
    for record in records:
        monitor.observe(record)
    assert {each.property for each in monitor.violations} == {"grammar_is_a_fold"}
    assert len(monitor.violations) == 4


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
def test_a_grammar_that_allows_nothing_is_refused_and_one_that_leads_nowhere_ends_its_request(
    backend: str, tmp_path: Path
) -> None:
    cycle = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}
    nothing: list[dict[str, Any]] = [{"regex": r"[^\s\S]"}, {"ebnf": "root ::= root"}, {"guided_json": cycle}]
    settings = {"model": "ghost", "trace_dir": str(tmp_path), "kv_tokens": 4096, "grammar_backend": backend}
    with (
        ghost_server(load_ghost(build_config(settings))) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        for grammar in nothing:
            response = client.post("/v1/completions", json={"prompt": "say", "max_tokens": 30, **grammar})
            assert response.status_code == 400
            assert "allows nothing at all" in response.json()["error"]["message"]
        body = {"prompt": "say", "max_tokens": 30, "ebnf": 'root ::= "ab" more\nmore ::= more'}
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert "could be drawn" in response.json()["error"]["message"]
    assert main(["audit", str(tmp_path)]) == 0


def test_openais_own_client_parses_what_it_asked_for(server: httpx.Client) -> None:
    class Person(pydantic.BaseModel):
        name: Literal["ann", "bob"]
        size: int = pydantic.Field(ge=0, le=300)
        pet: Cat | Dog | None

    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)
    reply = client.chat.completions.parse(
        model="ghost", messages=[{"role": "user", "content": "who?"}], response_format=Person, max_tokens=300, seed=3
    )
    assert isinstance(reply.choices[0].message.parsed, Person)
