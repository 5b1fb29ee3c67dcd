"""Matchers of slots are folds over outputs; masks reach the rows that have a grammar, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pawl.gpu.ghost.language import END_TOKEN, VOCABULARY_SIZE
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.plain import Plain
from pawl.gpu.grammars.rows import GrammarRows, Ruled, unpacked
from pawl.gpu.sampling import on_host
from pawl.gpu.sampling.masking import apply_masks, barred_by
from pawl.gpu.sampling.sampler import Sampler
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Int32s, SlotAssignment
from tests.gpu.grammar_tools import ghost_words

A, B, C = (ord(letter) for letter in "abc")
PROMPT = np.array([A, A, A], np.int32)

CPU = torch.device("cpu")


def int32(*values: int) -> Int32s:
    return np.array(values, np.int32)


def sampling(pattern: str | None, **fields: object) -> SamplingParameters:
    grammar = None if pattern is None else Grammar(GrammarKind.REGEX, pattern)
    ends = {"eos_token_ids": (END_TOKEN,), "stop_token_ids": (END_TOKEN,)}
    return SamplingParameters(**{"temperature": 0.0, **ends, **fields}, grammar=grammar)  # type: ignore[arg-type]


def assignment(slot: int, pattern: str | None, *output: int) -> SlotAssignment:
    history = np.concatenate((PROMPT, int32(*output)))
    return SlotAssignment(slot, sampling(pattern), len(PROMPT), history, len(output))


@pytest.fixture
def rows() -> GrammarRows:
    return GrammarRows(Grammars("plain", Plain, ghost_words()), 4)


def allowed(rows: GrammarRows, slot: int) -> list[int]:
    ruled = rows.masks(int32(slot))
    assert ruled is not None
    return [int(token) for token in np.flatnonzero(unpacked(ruled.bits, VOCABULARY_SIZE)[0])]


def test_a_request_that_comes_back_has_the_matcher_of_its_output(rows: GrammarRows) -> None:
    rows.admit([assignment(1, "abc"), assignment(2, "abc", A, B), assignment(3, "abc", A, B, C)])
    assert [allowed(rows, slot) for slot in (1, 2, 3)] == [[A], [C], [END_TOKEN]]


def test_a_matcher_goes_on_with_each_token_and_slots_do_not_share_one(rows: GrammarRows) -> None:
    rows.admit([assignment(0, "[ab]+c"), assignment(1, "[ab]+c")])
    ruled = rows.masks(int32(0, 1))
    assert ruled is not None
    assert ruled.accept(int32(A, B)) is None
    ruled = rows.masks(int32(1))
    assert ruled is not None
    assert ruled.accept(int32(C)) is None
    assert allowed(rows, 0) == [A, B, C]
    assert allowed(rows, 1) == [END_TOKEN]


def test_rows_without_a_grammar_are_not_looked_at(rows: GrammarRows) -> None:
    rows.admit([assignment(0, None), assignment(1, "a"), assignment(2, None)])
    assert rows.masks(int32(0, 2)) is None
    ruled = rows.masks(int32(2, 1, 0))
    assert ruled is not None
    assert ruled.rows.tolist() == [1]
    logits = torch.zeros(3, VOCABULARY_SIZE)
    apply_masks(logits, ruled)
    assert logits[0].isfinite().all()
    assert logits[2].isfinite().all()
    assert logits[1].isfinite().nonzero()[:, 0].tolist() == [A]
    spread = unpacked(ruled.spread(3), VOCABULARY_SIZE)
    assert spread.sum(1).tolist() == [VOCABULARY_SIZE, 1, VOCABULARY_SIZE]


def test_what_a_grammar_refuses_is_told_and_what_is_drawn_after_its_end_is_not(rows: GrammarRows) -> None:
    rows.admit([assignment(0, "a"), assignment(1, "a", A, END_TOKEN), assignment(2, "a", B)])
    ruled = rows.masks(int32(0, 1, 2))
    assert ruled is not None
    refused = ruled.accept(int32(C, C, A))
    assert refused is not None
    assert refused.tolist() == [True, False, True]


def test_a_slot_forgets_the_grammar_of_the_request_before(rows: GrammarRows) -> None:
    rows.admit([assignment(0, "a")])
    rows.admit([assignment(0, None)])
    assert rows.masks(int32(0)) is None
    rows.admit([assignment(0, "a")])
    rows.reset()
    assert not rows.any(int32(0))


def test_without_grammars_a_request_with_one_is_refused_when_it_draws() -> None:
    rows = GrammarRows(None, 1)
    rows.admit([assignment(0, "a")])
    ruled = rows.masks(int32(0))
    assert ruled is not None
    refused = ruled.accept(int32(A))
    assert refused is not None
    assert refused.all()


@pytest.mark.parametrize("vocab_size", [90, 96, 100])
def test_masks_on_a_device_are_those_on_the_host(vocab_size: int) -> None:
    bits = np.random.default_rng(1).integers(-(2**31), 2**31, (3, 3), np.int64).astype(np.int32)
    barred = barred_by(torch.from_numpy(bits), vocab_size)
    assert torch.equal(~barred, torch.from_numpy(unpacked(bits, vocab_size)))
    logits = torch.zeros(3, vocab_size)
    apply_masks(logits, Ruled(int32(0, 2), [None, None], bits[:2]))
    assert torch.equal(logits[[0, 2]].isfinite(), ~barred[:2])
    assert logits[1].isfinite().all()
    on_the_host = np.zeros((3, vocab_size), np.float32)
    on_host.apply_masks(on_the_host, Ruled(int32(0, 2), [None, None], bits[:2]))
    assert np.array_equal(on_the_host, logits.numpy())


@pytest.mark.parametrize(("output", "expected"), [((), A), ((A,), END_TOKEN)])
def test_a_bar_on_stop_tokens_gives_way_to_the_end_of_a_grammar(
    rows: GrammarRows, output: tuple[int, ...], expected: int
) -> None:
    sampler, history = Sampler(VOCABULARY_SIZE, 1, CPU), np.concatenate((PROMPT, int32(*output)))
    admission = SlotAssignment(0, sampling("a", min_new_tokens=5), len(PROMPT), history, len(output))
    rows.admit([admission])
    sampler.admit([admission])
    logits = torch.linspace(0, 1, VOCABULARY_SIZE)[None].clone()
    draws = sampler.sample(logits, int32(0), int32(3), rows.masks(int32(0)))
    assert draws.tokens.tolist() == [expected]


def test_penalties_and_bias_do_not_bring_back_what_is_not_allowed(rows: GrammarRows) -> None:
    sampler = Sampler(VOCABULARY_SIZE, 1, CPU)
    fields = {"logit_bias": {C: 100.0, B: -100.0}, "repetition_penalty": 1.5, "temperature": 1.0, "top_p": 0.5}
    admission = SlotAssignment(0, sampling("[ab]+", **fields, top_logprobs=3), len(PROMPT), PROMPT, 0)
    rows.admit([admission])
    sampler.admit([admission])
    for position in range(3, 40):
        draws = sampler.sample(torch.randn(1, VOCABULARY_SIZE), int32(0), int32(position), rows.masks(int32(0)))
        assert draws.tokens.tolist() == [A]
        scores = draws.logprobs()
        assert scores is not None
        assert set(scores.top_tokens[0, :2].tolist()) == {A, B}
        assert scores.top[0, 2] == -np.inf
