"""Requests computed again, each as one text beside others and in chunks, have the bits that they were served with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pawl.gpu.alone import steps_alone
from pawl.gpu.grammars.base import Words
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.plain import Plain
from pawl.gpu.models.small import random_weights
from pawl.gpu.recompute import CHUNK, Recomputer
from pawl.gpu.sampling import in_torch, on_host
from pawl.gpu.sampling.rivals import Columns
from pawl.gpu.sampling.scores import BLOCK
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.recompute import Recorded
from pawl.lifecycle.request import SamplingParameters
from tests.gpu.kernel_tools import DEVICE
from tests.gpu.native_models import ODD
from tests.gpu.serving import Answered, Asked, Serving
from tests.gpu.test_deterministic import CONTEXT, DTYPES, TINY, tiny, worker_of, workload


def recorded(everyone: Sequence[Asked], answers: Sequence[Answered]) -> list[Recorded]:
    return [
        Recorded(np.array((*asked.prompt, *answer.tokens), np.int32), len(asked.prompt), asked.sampling)
        for asked, answer in zip(everyone, answers, strict=True)
    ]


def again(recomputer: Recomputer, everyone: Sequence[Asked], answers: Sequence[Answered]) -> list[Answered]:
    """The answers as they come out."""
    found = []
    for asked, computed in zip(everyone, recomputer(recorded(everyone, answers)), strict=True):
        positions = range(len(asked.prompt), len(computed.chosen)) if asked.num_top is not None else ()
        logprobs = [computed.chosen[position].tobytes() + computed.top[position].tobytes() for position in positions]
        found.append(Answered(computed.tokens.tolist(), logprobs))
    return found


def recomputer_of(name: str, dtype: str, **settings: Any) -> Recomputer:
    weights = random_weights(TINY[name], DTYPES[dtype])
    return Recomputer(TINY[name], weights, max_context=CONTEXT, dtype=DTYPES[dtype], **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TINY)
def test_every_request_has_the_bits_it_was_served_with(name: str, dtype: str) -> None:
    serving = Serving(tiny(name, dtype, 16), pacing="overlap", prefill_chunk=16, num_pages=24, lookahead=1)
    everyone = workload(ODD.vocab_size, seed=5, count=12, longest=100, num_output=20)
    answers = serving.answers(*everyone)
    assert serving.loop.counters.cached_tokens
    advanced: list[int] = []
    recomputer = recomputer_of(name, dtype, threads=1, advance=advanced.append)
    assert again(recomputer, everyone, answers) == answers
    assert sum(advanced) == sum(len(request.tokens) - 1 for request in recorded(everyone, answers))
    assert max(advanced) == CHUNK


@pytest.mark.slow
def test_triton_kernels_compute_again_what_they_served(sums_in_order: None) -> None:
    settings: dict[str, Any] = {"backend": "triton", "device": DEVICE}
    worker = worker_of(ODD, random_weights(ODD, torch.float32), "fp32", 16, 1, **settings)
    everyone = workload(ODD.vocab_size, seed=7, count=4, longest=24, num_output=3)
    answers = Serving(worker, prefill_chunk=16).answers(*everyone)
    assert again(recomputer_of("dense", "fp32", **settings), everyone, answers) == answers


def test_a_recorded_token_that_no_model_has_is_drawn_as_another_and_harms_nobody_beside_it() -> None:
    everyone = workload(ODD.vocab_size, seed=9, count=3, longest=30)
    answers = Serving(tiny("dense", "bf16", 16)).answers(*everyone)
    whole = recorded(everyone, answers)
    whole[1].tokens[-3:] = -7, 1 << 30, 5
    first, forged, last = recomputer_of("dense", "bf16", threads=1)(whole)
    assert (first.tokens.tolist(), last.tokens.tolist()) == (answers[0].tokens, answers[2].tokens)
    assert forged.tokens[-3] == answers[1].tokens[-3]


def test_a_request_longer_than_any_may_be_is_refused() -> None:
    request = Recorded(np.zeros(CONTEXT + 2, np.int32), 1, workload(5, 1, 1, 5)[0].sampling)
    with pytest.raises(ValueError, match=str(CONTEXT)):
        recomputer_of("dense", "bf16", threads=1)([request])


LETTERS = 26


def test_requests_with_grammars_are_computed_again_under_their_masks() -> None:
    entries = [bytes([ord("a") + token]) if token < LETTERS else b"" for token in range(ODD.vocab_size)]
    words = Words(entries, (LETTERS,))
    grammars = Grammars("plain", Plain, words)
    worker = worker_of(ODD, random_weights(ODD, torch.float32), "fp32", 16, 1, grammars=grammars)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("([a-e][f-z])+", {"temperature": 1.3, "seed": 3, "top_logprobs": 2}),
        ("[a-c]*d?", {"temperature": 0.0, "frequency_penalty": 0.2}),
        ("(ab|c)*", {"temperature": 1.0, "seed": 5, "token_ids_logprob": (1, 30), "top_logprobs": 0}),
    ]
    whole, told = [], []
    for pattern, fields in ways:
        sampling = SamplingParameters(
            grammar=Grammar(GrammarKind.REGEX, pattern), logit_bias={LETTERS: -50.0}, **fields
        )
        prompt = np.arange(5, dtype=np.int32)
        results = list(steps_alone(worker.runner, prompt, sampling, 100, 16))
        tokens = np.concatenate([result.tokens for result in results])
        whole.append(Recorded(np.concatenate((prompt, tokens)), len(prompt), sampling))
        told.append([result.logprobs for result in results])
    found = recomputer_of("dense", "fp32", threads=1, grammars=grammars)(whole)
    for recorded_, computed, scores in zip(whole, found, told, strict=True):
        assert computed.tokens.tolist() == recorded_.tokens[recorded_.num_prompt :].tolist()
        for index, each in enumerate(scores):
            if each is not None:
                position = recorded_.num_prompt + index
                assert each.top[0].tobytes() == computed.top[position].tobytes()
                assert each.top_tokens[0].tolist() == computed.top_tokens[position].tolist()


def test_a_token_that_the_grammar_refuses_is_drawn_as_another() -> None:
    words = Words([bytes([ord("a") + token]) for token in range(ODD.vocab_size)], (ODD.vocab_size - 1,))
    grammars = Grammars("plain", Plain, words)
    sampling = SamplingParameters(temperature=0.0, grammar=Grammar(GrammarKind.REGEX, "(ab)+"))
    forged = Recorded(np.array([3, 4, 0, 1, 0, 0], np.int32), 2, sampling)
    (computed,) = recomputer_of("dense", "fp32", threads=1, grammars=grammars)([forged])
    assert computed.tokens[[0, 1, 3]].tolist() == [0, 1, 1]


def test_which_of_equally_likely_tokens_is_told_does_not_depend_on_how_many_are_told_to_others() -> None:
    logits = torch.zeros(1, 5000)
    logits[:, 100:140] = 1.0
    chosen = torch.tensor([7])
    for score, rows in ((in_torch.score, logits), (on_host.score, logits.numpy())):
        most = score(rows, chosen, Columns(20, None)).top_tokens[0].tolist()
        for count in (1, 3, 5):
            assert score(rows, chosen, Columns(count, None)).top_tokens[0].tolist() == most[:count]


@pytest.mark.parametrize("named", [None, np.full((BLOCK + 9, 2), 5, np.int32)])
def test_the_rank_of_a_token_counts_those_that_are_at_least_as_likely(named: Any) -> None:
    logits = torch.randn(BLOCK + 9, 50, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    chosen = torch.arange(len(logits)) % 50
    pairs = zip(logits.tolist(), chosen.tolist(), strict=True)
    wanted = [sum(one >= row[token] for one in row) for row, token in pairs]
    for score, rows, tokens in ((in_torch.score, logits, chosen), (on_host.score, logits.numpy(), chosen.numpy())):
        ranks = score(rows, tokens, Columns(2, named), ranked=True).ranks
        assert ranks is not None
        assert ranks.tolist() == wanted
        assert score(rows, tokens, Columns(2, named)).ranks is None
