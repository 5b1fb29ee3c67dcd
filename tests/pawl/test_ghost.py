"""`--model ghost` behind everything a person or a program uses: every answer is known from the prompt alone."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.build.ghost import load_ghost
from pawl.cli import main
from pawl.config import ConfigError, build_config
from pawl.engine import Engine
from pawl.gpu.ghost.language import END_TOKEN
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.step import StepBatch, StepResult
from tests.pawl.ghost_server import ghost_server

ROOT = Path(__file__).parent.parent.parent
VOCABULARY = ghost_vocabulary()


def said(prompt: str, count: int) -> str:
    """What a greedy request gets after a plain prompt."""
    return VOCABULARY.decode(expected(VOCABULARY.encode(prompt).tolist(), count))


def said_in_chat(content: str, count: int) -> str:
    """What a greedy request gets as the answer to a user."""
    return said(f"<|start|>user\n{content}<|end|>\n<|start|>assistant\n", count)


# ---- offline ----


def workload(count: int) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts of 5 to 60 tokens, of which many begin alike, and what each asks for."""
    source = random.Random(11)
    shared = source.choices(range(256), k=40)
    prompts = [
        shared[: source.randrange(41)] + source.choices(range(256), k=source.randrange(5, 20)) for _ in range(count)
    ]
    return prompts, [{"max_new_tokens": source.randrange(1, 40), "temperature": 0.0} for _ in range(count)]


@pytest.mark.parametrize("cache", ["radix", "none"])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("pacing", ["overlap", "lockstep"])
def test_under_pressure_everybody_gets_what_the_prompt_implies(
    pacing: str, mixed: bool, cache: str, tmp_path: Path
) -> None:
    settings = {"pacing": pacing, "mixed": mixed, "cache": cache, "kv_tokens": 240, "page_size": 4, "max_running": 16}
    engine = Engine(build_config({"model": "ghost", "prefill_chunk": 16, "trace_dir": str(tmp_path), **settings}))
    prompts, sampling = workload(60)
    with engine:
        completions = engine.generate(prompts, sampling)
    for prompt, wanted, completion in zip(prompts, sampling, completions, strict=True):
        assert list(completion.tokens) == expected(prompt, wanted["max_new_tokens"])
    assert isinstance(engine.parts.runner, Ghost)
    assert engine.parts.runner.faults == []
    assert audit(tmp_path).verdict is Verdict.PASS


def test_pages_come_back_from_host_memory_as_they_went(tmp_path: Path) -> None:
    settings = {"kv_tokens": 128, "page_size": 4, "host_cache_gb": 0.01, "max_running": 2, "trace": False}
    prompts = [random.Random(seed).choices(range(256), k=80) for seed in range(4)]
    engine = Engine(build_config({"model": "ghost", "fetch_lease_s": 60.0, **settings}))
    with engine:
        cached = 0
        for _ in range(2):
            for prompt in prompts:
                (completion,) = engine.generate([prompt], {"max_new_tokens": 4, "temperature": 0.0})
                assert list(completion.tokens) == expected(prompt, 4)
                cached += completion.done.usage.cached_tokens
    assert cached >= 3 * 76, "four prompts do not fit the device together: most came back from below"


class Decaying(Ghost):
    """Its memory loses a bit, once: the first entry of the first row that has some."""

    decayed = False

    def launch(self, batch: StepBatch) -> StepResult:
        if not self.decayed and len(batch.starts) and batch.starts.max() > 0:
            self.decayed = True
            self.corrupt(int(self.memory.page_table[batch.slots[batch.starts.argmax()], 0]))
        return super().launch(batch)


def test_memory_that_decays_costs_a_step_and_not_an_answer(tmp_path: Path) -> None:
    parts = load_ghost(build_config({"model": "ghost", "prefill_chunk": 16, "trace_dir": str(tmp_path)}))
    ghost = Decaying.for_shape(parts.loop_config)
    prompts, sampling = workload(12)
    with Engine(build_config({"model": "ghost"}), parts=replace(parts, runner=ghost)) as engine:
        completions = engine.generate(prompts, sampling)
    for prompt, wanted, completion in zip(prompts, sampling, completions, strict=True):
        assert list(completion.tokens) == expected(prompt, wanted["max_new_tokens"])
    assert [fault.position for fault in ghost.faults] == [0]
    assert audit(tmp_path).verdict is Verdict.PASS


def test_the_same_seed_draws_the_same_text_and_another_one_another() -> None:
    engine = Engine(build_config({"model": "ghost", "trace": False}))
    with engine:
        sampling = [{"max_new_tokens": 30, "temperature": 1.0, "seed": seed} for seed in (1, 1, 2)]
        first, again, other = engine.generate(["Once upon a time"] * 3, sampling)
    assert first.text == again.text != other.text


def test_it_answers_where_pytorch_is_not_installed() -> None:
    program = """
import sys
sys.modules["torch"] = None  # importing it now raises ImportError
from pawl.config import build_config
from pawl.engine import Engine
with Engine(build_config({"model": "ghost", "trace": False})) as engine:
    (completion,) = engine.generate(["Hello"], {"max_new_tokens": 12, "temperature": 0.0})
    engine.generate(["Hello"], {"max_new_tokens": 12, "temperature": 1.0, "top_logprobs": 2, "prompt_logprobs": True})
print(list(completion.tokens))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(expected(list(b"Hello"), 12))


def test_it_is_served_where_pytorch_is_not_installed() -> None:
    program = """
import sys
sys.modules["torch"] = None  # importing it now raises ImportError
from pawl.cli import main
sys.exit(main(["serve", "ghost", "--port", "0", "--no-trace"]))
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        ready = any(line.startswith("try: curl") for line in iter(server.stderr.readline, ""))
        server.terminate()
        server.stderr.read()
        assert (ready, server.wait()) == (True, 0)


@pytest.mark.parametrize(
    ("name", "value"), [("device", "cuda"), ("dtype", "bf16"), ("backend", "native"), ("threads", 2)]
)
def test_settings_of_the_arithmetic_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: the ghost"):
        load_ghost(build_config({"model": "ghost", "trace": False, name: value}))


def test_settings_of_the_cache_that_mean_nothing_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cache_core: there is no compiled core"):
        load_ghost(build_config({"model": "ghost", "trace": False, "cache": "none", "cache_core": "compiled"}))


def test_memory_is_what_was_asked_for() -> None:
    def tokens(**settings: object) -> int:
        summary = load_ghost(build_config({"model": "ghost", "trace": False, **settings})).summary
        return int(summary["kv_tokens"])

    assert tokens(kv_tokens=1000) == 992
    assert tokens(kv_memory_gb=1 / 1024) == (1 << 20) // 16
    with pytest.raises(ConfigError, match="do not hold one page"):
        tokens(kv_memory_gb=1e-9)


# ---- over HTTP, with OpenAI's own client ----


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    config = build_config({"model": "ghost", "trace_dir": str(tmp_path_factory.mktemp("traces"))})
    parts = load_ghost(config)
    with (
        ghost_server(parts) as (host, port),
        openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
    assert parts.runner.faults == []  # type: ignore[attr-defined]  # a ghost's


def test_the_client_finds_one_model_called_ghost(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["ghost"]


def test_the_client_reads_a_completion_that_is_known_beforehand(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="ghost", prompt="Rivers: ", max_tokens=40, temperature=0)
    assert answer.choices[0].text == said("Rivers: ", 40)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 40)


def test_the_client_reads_a_streamed_chat_that_is_known_beforehand(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="ghost",
        messages=[{"role": "user", "content": "Name three rivers."}],
        max_tokens=300,
        temperature=0,
        stream=True,
    )
    parts = [event.choices[0].delta.content or "" for event in stream if event.choices]
    assert "".join(parts) == said_in_chat("Name three rivers.", 300)
    assert any(len(part.encode()) > 1 for part in parts)


def test_the_client_can_stop_the_ghost_by_a_string_and_by_its_end_token(client: openai.OpenAI) -> None:
    whole = said("Rivers: ", 100)
    answer = client.completions.create(model="ghost", prompt="Rivers: ", max_tokens=100, temperature=0, stop=" ")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole.partition(" ")[0], "stop")
    answer = client.completions.create(
        model="ghost", prompt="Rivers: ", max_tokens=100, temperature=0, logit_bias={str(END_TOKEN): 100}
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")


def test_the_client_gets_log_probabilities_that_are_some(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="ghost",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=20,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 20
    for token in logprobs.content:
        likeliest = [entry.logprob for entry in token.top_logprobs]
        assert token.logprob == likeliest[0] == max(likeliest) < 0.0
        assert np.exp(likeliest).sum() <= 1.0
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode("utf-8", "replace") == (
        said_in_chat("Hi", 20)
    )


def test_the_tokens_of_an_input_are_counted_as_its_reply_counts_them(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "add", "parameters": {"type": "object"}}
    for more in ({}, {"tools": [tool]}):
        asked: Any = {"model": "ghost", "instructions": "Add", "input": [{"role": "user", "content": "2 + 3"}], **more}
        reply = client.responses.create(**asked, max_output_tokens=1)
        counted = client.post("/responses/input_tokens", body=asked, cast_to=object)
        assert reply.usage is not None
        assert counted == {"object": "response.input_tokens", "input_tokens": reply.usage.input_tokens}


def test_many_choices_with_a_temperature_differ(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="ghost", prompt="Rivers: ", max_tokens=20, n=4, temperature=1.0, seed=3)
    assert len({choice.text for choice in answer.choices}) == 4


# ---- commands ----


def test_the_offline_benchmark_runs_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "ghost", "--no-trace", "--num-prompts", "8", "--output-length", "4"]
    assert main(["bench", "offline", *arguments]) == 0
    assert "Throughput" in capsys.readouterr().out
