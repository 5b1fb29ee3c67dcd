"""Long texts are converted beside the event loop, in a line that has an end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from pawl.actors.text.vocabulary import Vocabulary
from pawl.actors.unread import SHORT
from pawl.http.errors import Problem
from pawl.http.tokens import LITTLE, MOST_CALLS, Beside
from tests.actors.vocabularies import byte_level, sentencepiece
from tests.pawl.fake_engine import Bytes, Served


def test_long_texts_are_converted_one_at_a_time_short_ones_at_once_and_too_many_are_told_to_wait() -> None:
    go, together = threading.Event(), threading.Semaphore(1)

    def work() -> int:
        assert together.acquire(blocking=False), "another one is at work"
        go.wait()
        together.release()
        return 1

    async def run() -> list[int]:
        beside = Beside()
        calls = [asyncio.ensure_future(beside.do(LITTLE + 1, work)) for _ in range(MOST_CALLS)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="try again later") as refusal:
            await beside.do(LITTLE + 1, work)
        assert refusal.value.status == 503
        assert await beside.do(LITTLE, lambda: 2) == 2
        go.set()
        done = await asyncio.gather(*calls)
        return [*done, await beside.do(LITTLE + 1, lambda: 3)]

    assert asyncio.run(run()) == [1] * MOST_CALLS + [3]


def test_nobody_waits_for_a_long_text_of_somebody_else(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(vocabulary: Bytes, text: str, add_special: bool = True) -> list[int]:
        if len(text) > SHORT:
            reading.set()
            assert go_on.wait(60)
        return list(text.encode())

    monkeypatch.setattr(Bytes, "encode", slow)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.post, "/tokenize", json={"prompt": "x" * (SHORT + 1)})
        assert reading.wait(60)
        assert client.post("/tokenize", json={"prompt": "x" * (SHORT - 1)}).json()["count"] == SHORT - 1
        assert not long.done()
        go_on.set()
        assert long.result().json()["count"] == SHORT + 1


def test_the_texts_of_tokens_are_told_where_they_are_wanted(client: httpx.Client) -> None:
    def asked(**fields: object) -> dict[str, object]:
        reply: dict[str, object] = client.post("/tokenize", json={"return_token_strs": True, **fields}).json()
        return reply

    assert asked(prompt="hi")["token_strs"] == ["h", "i"]
    assert asked(prompt=["hi", "o"])["token_strs"] == [["h", "i"], ["o"]]
    assert asked(prompt="")["token_strs"] == []
    assert asked(prompt=[])["count"] == asked(text=[])["count"] == []
    assert "token_strs" not in asked(prompt="hi", return_token_strs=False)
    long = asked(prompt="x" * (LITTLE + 1))
    assert long["token_strs"] == ["x"] * (LITTLE + 1)


def test_both_names_of_a_route_say_the_same(client: httpx.Client) -> None:
    for name, body in (("tokenize", {"prompt": "hi"}), ("detokenize", {"tokens": [104, 105]})):
        replies = [client.post(f"{prefix}/{name}", json=body) for prefix in ("", "/v1")]
        assert [reply.status_code for reply in replies] == [200, 200]
        assert replies[0].json() == replies[1].json()


def test_a_conversation_has_the_tokens_that_the_chat_route_would_compute(client: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

    def text(**fields: object) -> str:
        reply = client.post("/v1/tokenize", json={"messages": [{"role": "user", "content": "hi"}], **fields})
        assert reply.status_code == 200, reply.text
        assert reply.json()["count"] == len(reply.json()["tokens"])
        return bytes(reply.json()["tokens"]).decode()

    plain = text()
    assert plain == "user: hi\nassistant: "
    assert text(add_generation_prompt=False) == "user: hi\n"
    offered = text(tools=[tool], tool_choice="required")
    assert offered != plain
    assert text(tools=[tool], tool_choice="none") == plain


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}, "prompt"),
        ({}, "prompt"),
        ({"messages": [{"role": "user", "content": "hi"}], "continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(client: httpx.Client, body: dict[str, object], param: str) -> None:
    reply = client.post("/tokenize", json=body)
    assert reply.status_code == 400
    assert param.split("[")[0] in reply.json()["error"]["message"]


def test_what_the_tokenizer_is_can_be_asked_under_the_names_of_its_configuration(client: httpx.Client) -> None:
    assert client.get("/tokenizer_info").json() == {
        "tokenizer_class": "Bytes",
        "bos_token": None,
        "eos_token": None,
        "add_bos_token": False,
        "model_max_length": client.post("/tokenize", json={"prompt": "a"}).json()["max_model_len"],
        "chat_template": Bytes.chat_templates["default"],
        "added_tokens_decoder": {},
    }


@pytest.mark.parametrize(("adds", "vocabulary"), [(True, sentencepiece()), (False, byte_level())])
def test_it_is_told_whether_text_gets_a_beginning_token(adds: bool, vocabulary: Vocabulary) -> None:
    with Served(tokenization=vocabulary) as served:
        told = httpx.get(f"{served.url}/tokenizer_info").json()
    assert (told["add_bos_token"], told["bos_token"]) == (adds, vocabulary.bos_token)
    assert told["eos_token"] == vocabulary.eos_token
    assert {int(token) for token in told["added_tokens_decoder"]} >= vocabulary.special_ids
