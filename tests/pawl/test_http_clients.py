"""Programs that nobody here wrote get what they read: bodies are what each client sends, replies are read as it does.

docs/clients.md says which clients were run themselves, and how.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.pawl.fake_engine import logprob
from tests.pawl.reading import events, streamed_text

GREEDY = 20
"""A token that the fake engine scores above its constant rival."""


def lm_eval_score(client: httpx.Client, prompts: list[list[int]], lengths: list[int]) -> list[tuple[float, bool]]:
    """Scores of what follows each context of `lengths` tokens, as lm-eval's local-completions takes them: one token is
    generated and dropped, and the flag says whether each scored token is the likeliest."""
    body = {"model": "echo", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    response = client.post("/v1/completions", json={**body, "echo": True})
    assert response.status_code == 200, response.text
    scores = []
    choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    for choice, length in zip(choices, lengths, strict=True):
        part = slice(length, -1)
        tokens, tops = choice["logprobs"]["tokens"][part], choice["logprobs"]["top_logprobs"][part]
        likeliest = [max(top, key=top.get) for top in tops]
        scores.append((sum(choice["logprobs"]["token_logprobs"][part]), tokens == likeliest))
    return scores


def test_lm_eval_sums_the_scores_of_the_continuation_and_sees_what_is_greedy(client: httpx.Client) -> None:
    scores = lm_eval_score(client, [[97, 98, GREEDY], [97, 98, 99], [97, GREEDY, GREEDY]], [2, 1, 1])
    assert scores == [
        (logprob(GREEDY), True),
        (logprob(98) + logprob(99), False),
        (2 * logprob(GREEDY), True),
    ]


def test_sglangs_benchmark_reads_its_native_stream(client: httpx.Client) -> None:
    body = {
        "input_ids": [97, 98],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 4, "ignore_eos": True},
        "stream": True,
        "lora_path": None,
        "return_logprob": False,
        "return_routed_experts": False,
        "logprob_start_len": -1,
    }
    chunks = events(client.post("/generate", json=body))
    assert [chunk["meta_info"]["completion_tokens"] for chunk in chunks if chunk["text"]] == [1, 2, 3, 4]
    assert chunks[-1]["text"] == "abab"
    assert isinstance(chunks[-1]["meta_info"]["cached_tokens"], int)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "hello", "best_of": 1, "max_tokens": 5, "temperature": 0.0, "ignore_eos": True}),
        ("completions", {"prompt": "hello", "repetition_penalty": 1.0, "max_tokens": 5, "logprobs": None}),
        (
            "chat/completions",
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
                "max_completion_tokens": 5,
            },
        ),
    ],
    ids=["sglang", "vllm", "vllm-chat"],
)
def test_benchmarks_count_tokens_by_the_usage_at_the_end(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    streaming = {"model": "echo", "stream": True, "stream_options": {"include_usage": True}}
    chunks = events(client.post(f"/v1/{path}", json={**body, **streaming}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert len(streamed_text(chunks[:-1])) == 5


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
@pytest.mark.parametrize("message", [{}, {"content": None}, {"contents": "hi"}], ids=["missing", "null", "misspelt"])
def test_a_message_without_content_is_refused(client: httpx.Client, role: str, message: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": role, **message}]
    response = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[1].content"


def test_an_assistants_message_may_lack_content_and_a_users_may_be_empty(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": None}]
    response = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert response.status_code == 200, response.text
