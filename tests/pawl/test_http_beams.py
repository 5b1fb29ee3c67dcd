"""Beam search: the likeliest completions as wholes, and what becomes of the requests that it is made of."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pawl.actors.messages.generate import TokenLogprob
from pawl.http.beams import Beam, BeamSearch, _Search
from pawl.lifecycle.states import Cause
from tests.pawl.fake_engine import PATIENCE_S, Served
from tests.pawl.reading import post
from tests.pawl.test_http_openai import MESSAGES

END = 3
MAX_TOKENS = 4
Model = dict[tuple[int, ...], list[float]]


def model_of(seed: int, vocabulary: int = 4) -> Model:
    """A log-probability for each token after each beginning, as a language model has them (less than 0, not summed)."""
    source = random.Random(seed)
    beginnings = itertools.chain.from_iterable(
        itertools.product(range(vocabulary), repeat=length) for length in range(MAX_TOKENS)
    )
    return {beginning: [-source.expovariate(1.0) for _ in range(vocabulary)] for beginning in beginnings}


def drawn(model: Model, tokens: tuple[int, ...], rivals: int) -> TokenLogprob:
    scores = sorted(((token, score, str(token)) for token, score in enumerate(model[tokens])), key=lambda one: -one[1])
    return TokenLogprob(scores[0][0], scores[0][1], scores[0][2], tuple(scores[:rivals]))


def found(search: BeamSearch, model: Model, width: int) -> list[tuple[tuple[int, ...], float]]:
    while search.live:
        search.advance([(drawn(model, beam.tokens(), 2 * width), "v") for beam in search.live], MAX_TOKENS)
    return [(beam.tokens(), search.value(beam)) for beam in search.best]


def every_completion(model: Model, penalty: float) -> list[tuple[tuple[int, ...], float]]:
    """All that end with END or are as long as they may be, the best first."""
    everything = list[tuple[tuple[int, ...], float]]()
    for length in range(1, MAX_TOKENS + 1):
        for tokens in itertools.product(range(4), repeat=length):
            if END in tokens[:-1] or (length < MAX_TOKENS and tokens[-1] != END):
                continue
            score = sum(model[tokens[:at]][token] for at, token in enumerate(tokens))
            counted = length - (tokens[-1] == END)
            everything.append((tokens, score / max(counted, 1) ** penalty))
    return sorted(everything, key=lambda one: -one[1])


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.7, 2.5])
def test_a_search_as_wide_as_the_model_finds_the_best_of_all(penalty: float) -> None:
    for seed in range(20):
        model = model_of(seed)
        best = found(BeamSearch(200, {END: Cause.EOS}, penalty), model, 200)
        expected = every_completion(model, penalty)
        assert [tokens for tokens, _ in best] == [tokens for tokens, _ in expected]
        assert [value for _, value in best] == pytest.approx([value for _, value in expected])


class Unsettled(BeamSearch):
    """Goes on until nothing can grow."""

    def _is_settled(self, going: Sequence[Beam], max_tokens: int) -> bool:
        return not going


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.7, 2.5])
def test_to_end_early_changes_nothing(penalty: float) -> None:
    ended_early = 0
    for seed, width in itertools.product(range(30), (1, 2, 3)):
        model, lengths = model_of(seed), list[int]()
        for kind in (BeamSearch, Unsettled):
            search = kind(width, {END: Cause.EOS}, penalty)
            steps = 0
            while search.live:
                search.advance([(drawn(model, beam.tokens(), 2 * width), "v") for beam in search.live], MAX_TOKENS)
                steps += 1
            lengths.append(steps)
            if kind is BeamSearch:
                first = [beam.tokens() for beam in search.best]
            else:
                assert [beam.tokens() for beam in search.best] == first
        ended_early += lengths[0] < lengths[1]
    assert ended_early or penalty > 1  # then long ones may still gain


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "abc", "use_beam_search": True, "max_tokens": 2, **fields})


def test_each_prompt_gets_its_likeliest_completions(client: httpx.Client, served: Served) -> None:
    # The echo says -0.25 for a byte of its own everywhere, and -1 for the prompt's, whatever went before.
    reply = ask(client, prompt=["abc", "xyz", "abc"], n=2, logprobs=1, return_token_ids=True).json()
    choices = reply["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    assert choices[0]["token_ids"] == [255, 255]
    assert [choice["token_ids"] for choice in choices[:2]] == [choice["token_ids"] for choice in choices[4:]]
    assert choices[0]["token_ids"] != choices[1]["token_ids"]
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in choices]
    assert sums[0] == -0.5
    assert sums[0] > sums[1]
    assert choices[0]["prompt_token_ids"] == [97, 98, 99]
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    assert reply["usage"]["prompt_tokens"] == 9
    assert reply["usage"]["completion_tokens"] == 12
    assert served.engine.gateway.num_live == 0


def test_a_token_that_ends_a_completion_is_not_shown_and_is_its_reason(client: httpx.Client) -> None:
    body = {"messages": MESSAGES, "use_beam_search": True, "n": 2, "max_tokens": 2, "stop_token_ids": [255]}
    first, second = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert (first["message"]["content"], first["finish_reason"], first["stop_reason"]) == ("", "stop", 255)
    assert second["finish_reason"] == "length"  # two tokens of -1 each are better than one that is followed by the end
    others = client.post("/v1/chat/completions", json={**body, "length_penalty": 0}).json()["choices"]
    assert [choice["finish_reason"] for choice in others] == ["stop", "stop"]
    body["include_stop_str_in_output"] = True
    shown = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert shown["message"]["content"] == "\ufffd"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"stream": True}, "stream"),
        ({"stop": ["a"]}, "stop"),
        ({"n": 11}, "n must be at most 10"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"top_p": 0.5}, "top_p"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 510}, "maximum context length"),
        ({"echo": True, "logprobs": 1}, "score the prompt"),
        ({"use_beam_search": False, "length_penalty": 2}, "length_penalty"),
        ({"length_penalty": 17}, "length_penalty"),
        ({"use_beam_search": 1}, "use_beam_search"),
        ({"guided_regex": "a"}, "grammar"),
    ],
)
def test_what_a_search_cannot_honour_is_refused_by_name(
    client: httpx.Client, served: Served, fields: dict[str, Any], word: str
) -> None:
    reply = ask(client, **fields)
    assert reply.status_code == 400
    assert word in reply.json()["error"]["message"]
    assert served.engine.gateway.num_live == 0


def test_others_have_a_turn_between_the_prompts_of_a_call(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, num_prompts = list[str](), 4
    submits, take, results = _Search.submits, _Search.take, _Search.results

    def told(word: str) -> None:
        said.append(word)
        asyncio.get_running_loop().call_soon(said.append, "other")

    def spied(word: str, work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (told(word), work(*given))[1]

    monkeypatch.setattr(_Search, "submits", spied("submits", submits))
    monkeypatch.setattr(_Search, "take", spied("take", take))
    monkeypatch.setattr(_Search, "results", spied("results", results))
    assert ask(client, prompt=["abc"] * num_prompts, n=2, max_tokens=2).status_code == 200
    # What is sent first is the prompts as they came.
    later = said[said.index("take") :]
    words = ["take", "submits", "take", "submits", "results"]
    assert later == [each for word in words for each in [word, "other"] * num_prompts]


def test_who_hangs_up_ends_the_search(client: httpx.Client, served: Served) -> None:
    engine = served.engine

    def one_turn() -> None:
        engine.release()
        asyncio.get_running_loop().call_soon(engine.fall_silent)

    served.on_loop(engine.fall_silent)
    body = json.dumps({"prompt": "hello", "use_beam_search": True, "n": 3}).encode()
    with socket.create_connection(served.address, PATIENCE_S) as connection:
        connection.sendall(post(body, "/v1/completions"))
        engine.until(lambda: len(engine.live) == 1)
        served.on_loop(one_turn)
        engine.until(lambda: len(engine.live) == 3)
    engine.until(lambda: engine.gateway.num_live == 0)


@pytest.mark.parametrize(("cause", "status"), [(Cause.CLIENT, 499), (Cause.TIMEOUT, 408), (Cause.WORKER_LOST, 500)])
def test_without_one_of_its_beams_a_search_has_no_answer(
    client: httpx.Client, served: Served, cause: Cause, status: int
) -> None:
    engine = served.engine
    served.on_loop(engine.fall_silent)
    with ThreadPoolExecutor() as pool:
        reply = pool.submit(ask, client, n=2)
        engine.until(lambda: len(engine.live) == 1)
        served.on_loop(lambda: engine.end(cause))
        assert reply.result().status_code == status
    assert engine.gateway.num_live == 0
    served.on_loop(engine.release)
    assert ask(client, n=2).status_code == 200
