"""Draws follow the distribution asked for, and depend on nothing but their own row."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pawl.gpu.sampling.draws import Draws
from pawl.gpu.sampling.sampler import Sampler
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Int32s, SlotAssignment
from tests.gpu.driving import DEVICES, int32

VOCABULARY = 12
LOGITS = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 2.5, 1.5, -2.0, -3.0, 0.2, 0.1]
COUNT = 20_000
LIBRARY = "torch"
"""What computes on the CPU."""


@pytest.fixture(autouse=True, params=["numpy", "torch"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim here is one about both."""
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "LIBRARY", request.param)
    if request.param == "numpy":
        monkeypatch.setattr(here, "COUNT", 5_000)  # row after row


class TakesTensors(Sampler):
    """On tensors, whatever computes."""

    def sample(self, logits: torch.Tensor, *of_rows: Any) -> Draws:
        if self.device is not None:
            return super().sample(logits, *of_rows)
        draws = super().sample(logits.numpy().copy(), *of_rows)
        return replace(draws, tokens=torch.from_numpy(draws.tokens))


def sampler_of(
    *requests: SamplingParameters,
    histories: dict[int, tuple[list[int], int]] | None = None,
    device: str = "cpu",
    vocab_size: int = VOCABULARY,
) -> TakesTensors:
    """Request i in slot i; `histories` gives (tokens, how many of them are prompt) for a slot."""
    on_host = device == "cpu" and LIBRARY == "numpy"
    sampler = TakesTensors(vocab_size, len(requests), None if on_host else torch.device(device))
    admissions = []
    for slot, sampling in enumerate(requests):
        history, num_prompt = (histories or {}).get(slot, ([], 0))
        admissions.append(SlotAssignment(slot, sampling, num_prompt, int32(*history), len(history) - num_prompt))
    sampler.admit(admissions)
    return sampler


def rows(count: int, device: str = "cpu") -> torch.Tensor:
    return torch.tensor([LOGITS] * count, device=device)


def frequencies(device: str = "cpu", **parameters: Any) -> np.ndarray[Any, Any]:
    """How often each token is drawn by COUNT requests with different seeds."""
    sampler = sampler_of(*(SamplingParameters(seed=seed, **parameters) for seed in range(COUNT)), device=device)
    slots = np.arange(COUNT, dtype=np.int32)
    tokens = sampler.sample(rows(COUNT, device), slots, np.full(COUNT, 5, np.int32)).tokens
    return np.bincount(tokens.cpu().numpy(), minlength=VOCABULARY) / COUNT


def softmax(temperature: float = 1.0) -> np.ndarray[Any, Any]:
    weights = np.exp(np.array(LOGITS) / temperature)
    return weights / weights.sum()


def assert_distributed(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Impossible tokens never appear; the rest pass a chi-square test (11 degrees of freedom at the most, p ~ 1e-5)."""
    possible = expected > 0
    assert found[~possible].sum() == 0
    chi_square = COUNT * ((found - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 42.0


def truncated(keep: np.ndarray[Any, Any], temperature: float = 1.0) -> np.ndarray[Any, Any]:
    weights = np.where(keep, softmax(temperature), 0.0)
    return weights / weights.sum()


likelihood_rank = np.argsort(np.argsort(-np.array(LOGITS)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_plain_sampling_is_a_draw_from_the_tempered_softmax(temperature: float, device: str) -> None:
    assert_distributed(frequencies(device, temperature=temperature), softmax(temperature))


@pytest.mark.parametrize("top_k", [2, 5, 12, 1000])
def test_top_k_keeps_the_k_likeliest_tokens(top_k: int) -> None:
    assert_distributed(frequencies(top_k=top_k, temperature=1.3), truncated(likelihood_rank < top_k, 1.3))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float) -> None:
    ordered = np.sort(softmax())[::-1]
    size = int(np.searchsorted(np.cumsum(ordered), top_p)) + 1
    assert_distributed(frequencies(top_p=top_p), truncated(likelihood_rank < size))


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    ordered = np.sort(softmax())[::-1][:4]
    size = int(np.searchsorted(np.cumsum(ordered / ordered.sum()), 0.8)) + 1
    assert size < int(np.searchsorted(np.cumsum(np.sort(softmax())[::-1]), 0.8)) + 1, "the case tells the two apart"
    assert_distributed(frequencies(top_k=4, top_p=0.8), truncated(likelihood_rank < size))


@pytest.mark.parametrize("extra", [{}, {"top_k": 6}, {"top_p": 0.95}])
def test_min_p_is_relative_to_the_likeliest_token(extra: dict[str, Any]) -> None:
    keep = softmax() >= 0.25 * softmax().max()
    assert_distributed(frequencies(min_p=0.25, **extra), truncated(keep))


def test_top_p_over_a_large_flat_vocabulary_reaches_beyond_the_tokens_sorted_at_first() -> None:
    vocab_size, count = 5000, 400
    logits = torch.linspace(0.0, 0.01, vocab_size).flip(0).repeat(count, 1)
    requests = [SamplingParameters(seed=seed, top_p=0.8) for seed in range(count)]
    sampler = sampler_of(*requests, vocab_size=vocab_size)
    tokens = sampler.sample(logits, np.arange(count, dtype=np.int32), np.zeros(count, np.int32)).tokens
    assert tokens.max() < 0.8 * vocab_size
    assert tokens.float().mean().item() == pytest.approx(0.4 * vocab_size, rel=0.1)


def test_greedy_takes_the_lowest_id_among_equals_and_top_k_1_is_greedy() -> None:
    sampler = sampler_of(SamplingParameters(temperature=0.0), SamplingParameters(top_k=1, seed=3))
    logits = torch.zeros(2, VOCABULARY)
    logits[:, [7, 4, 9]] = 2.0
    assert sampler.sample(logits, int32(0, 1), int32(0, 0)).tokens.tolist() == [4, 4]


MIXED = (
    SamplingParameters(temperature=0.0),
    SamplingParameters(seed=1),
    SamplingParameters(seed=2, top_k=3),
    SamplingParameters(seed=3, top_p=0.7),
    SamplingParameters(seed=4, min_p=0.1, temperature=2.0),
    SamplingParameters(seed=5, top_k=100, top_p=0.99),
    SamplingParameters(seed=6, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.3),
    SamplingParameters(temperature=0.0, logit_bias={9: 6.0}),
    SamplingParameters(seed=8, min_new_tokens=3, stop_token_ids=(6, 0)),
    SamplingParameters(seed=9, top_logprobs=2),
)
MIXED_HISTORIES = {6: ([0, 6, 6, 1, 1, 6], 3)}


def random_logits(vocab_size: int) -> torch.Tensor:
    return torch.randn(len(MIXED), vocab_size, generator=torch.Generator().manual_seed(5)) * 2


@pytest.mark.parametrize("vocab_size", [VOCABULARY, 3000, 50_000])
def test_a_draw_does_not_depend_on_the_batch_or_its_order(vocab_size: int) -> None:
    def together(order: Int32s) -> list[int]:
        sampler = sampler_of(*MIXED, histories=MIXED_HISTORIES, vocab_size=vocab_size)
        drawn = []
        for step in range(3):
            tokens = sampler.sample(random_logits(vocab_size)[order.tolist()], order, order + 40 + step).tokens
            drawn.append(tokens[np.argsort(order)].tolist())
        return drawn

    everyone = together(np.arange(len(MIXED), dtype=np.int32))
    assert together(np.random.default_rng(2).permutation(len(MIXED)).astype(np.int32)) == everyone
    for slot in range(len(MIXED)):
        alone = together(int32(slot))
        assert [step[0] for step in alone] == [step[slot] for step in everyone]


def test_seed_and_position_both_move_the_draw() -> None:
    count = 300
    requests = [SamplingParameters(seed=7)] * count
    slots, same = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
    by_position = sampler_of(*requests).sample(rows(count), slots, slots).tokens
    assert len(by_position.unique()) > 5
    fixed = sampler_of(*requests).sample(rows(count), slots, same).tokens
    assert len(fixed.unique()) == 1


def drawn_logits(sampling: SamplingParameters, history: list[int], num_prompt: int, steps: int = 1) -> list[int]:
    """Tokens of a greedy request over LOGITS, step after step."""
    sampler = sampler_of(sampling, histories={0: (history, num_prompt)})
    return [int(sampler.sample(rows(1), int32(0), int32(len(history) + step)).tokens) for step in range(steps)]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_output() -> None:
    # 6 (2.5) is in the prompt: 2.5 / 2 = 1.25 < 2.0. Then 0, drawn, falls to 1.0, and 7 (1.5) is next.
    assert drawn_logits(SamplingParameters(temperature=0.0, repetition_penalty=2.0), [6], 1, steps=3) == [0, 7, 6]
    sampler = sampler_of(SamplingParameters(temperature=0.0, repetition_penalty=2.0), histories={0: ([9], 1)})
    negative = torch.full((1, VOCABULARY), -5.0)
    negative[0, 9] = -3.0
    assert int(sampler.sample(negative, int32(0), int32(1)).tokens) == 0, "-3 became -6"


def test_presence_and_frequency_count_output_only() -> None:
    presence = SamplingParameters(temperature=0.0, presence_penalty=0.8)
    assert drawn_logits(presence, [6, 6, 6], 3) == [6], "the prompt does not count"
    assert drawn_logits(presence, [6, 6, 6], 0) == [0], "once is as bad as three times: 2.5 - 0.8 < 2.0"
    frequency = SamplingParameters(temperature=0.0, frequency_penalty=0.4)
    # 6: 2.5, 2.1, 1.7; 0: 2.0, 1.6; 7: 1.5
    assert drawn_logits(frequency, [], 0, steps=5) == [6, 6, 0, 6, 0]


def test_a_slot_forgets_the_penalties_of_the_request_before() -> None:
    penalised = SamplingParameters(temperature=0.0, presence_penalty=2.0)
    sampler = sampler_of(penalised, histories={0: ([6], 0)})
    sampler.admit([SlotAssignment(0, penalised, 0, int32(), 0)])
    assert int(sampler.sample(rows(1), int32(0), int32(0)).tokens) == 6
    sampler.admit([SlotAssignment(0, SamplingParameters(temperature=0.0), 0, int32(), 0)])
    assert int(sampler.sample(rows(1), int32(0), int32(0)).tokens) == 6


def test_many_penalised_slots_keep_their_own_counts() -> None:
    """More than the store of counts holds at first."""
    count = 11
    penalised = SamplingParameters(temperature=0.0, presence_penalty=50.0)
    sampler = sampler_of(*[penalised] * count, histories={slot: ([slot], 0) for slot in range(count)})
    tokens = sampler.sample(torch.eye(VOCABULARY)[:count] + rows(count) * 0, np.arange(count, dtype=np.int32), int32())
    # Each slot's own token is out, so the lowest other id wins the tie at 0.
    assert tokens.tokens.tolist() == [1] + [0] * (count - 1)


def test_logit_bias_moves_only_its_row() -> None:
    sampler = sampler_of(
        SamplingParameters(temperature=0.0, logit_bias={9: 102.0, 8: 99.0}),
        SamplingParameters(temperature=0.0, logit_bias={6: -100.0}),
        SamplingParameters(temperature=0.0),
    )
    assert sampler.sample(rows(3), int32(0, 1, 2), int32(0, 0, 0)).tokens.tolist() == [9, 0, 6]


def test_stop_tokens_cannot_be_drawn_before_the_minimum() -> None:
    sampling = SamplingParameters(temperature=0.0, min_new_tokens=2, stop_token_ids=(6, 0))
    assert drawn_logits(sampling, [], 0, steps=4) == [7, 7, 6, 6]
    # A retracted request returns with the output it had.
    assert drawn_logits(sampling, [3, 3, 7], 2, steps=2) == [7, 6]


@pytest.mark.parametrize("device", DEVICES)
def test_logprobs_are_of_the_models_own_distribution(device: str) -> None:
    sampler = sampler_of(
        SamplingParameters(temperature=0.0),
        SamplingParameters(temperature=0.0, top_logprobs=3, logit_bias={8: 50.0}),
        SamplingParameters(temperature=0.3, seed=2, top_k=2, top_logprobs=0),
        device=device,
    )
    draws: Draws = sampler.sample(rows(3, device), int32(0, 1, 2), int32(0, 0, 0))
    logprobs = draws.logprobs()
    assert logprobs is not None
    expected = np.log(softmax())
    drawn = int(draws.tokens[2])
    np.testing.assert_allclose(logprobs.chosen[1:], [expected[8], expected[drawn]], rtol=1e-5)
    assert np.isnan(logprobs.chosen[0])
    assert logprobs.top_tokens[1].tolist() == [6, 0, 7]
    np.testing.assert_allclose(logprobs.top[1], expected[[6, 0, 7]], rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_named_tokens_are_scored_after_the_likeliest_of_their_own_row(device: str) -> None:
    sampler = sampler_of(
        SamplingParameters(temperature=0.0, top_logprobs=2),
        SamplingParameters(temperature=0.0, top_logprobs=1, token_ids_logprob=(5, 0, 5)),
        SamplingParameters(temperature=0.0, top_logprobs=0, token_ids_logprob=(2,)),
        device=device,
    )
    logprobs = sampler.sample(rows(3, device), int32(0, 1, 2), int32(0, 0, 0)).logprobs()
    assert logprobs is not None
    expected = np.log(softmax())
    wanted = ([6, 0], [6, 5, 0, 5], [2])
    for row, tokens in enumerate(wanted):
        assert logprobs.top_tokens[row, : len(tokens)].tolist() == tokens
        np.testing.assert_allclose(logprobs.top[row, : len(tokens)], expected[tokens], rtol=1e-5)


@pytest.mark.parametrize(
    "adjusted",
    [
        {},
        {"logit_bias": {8: 50.0}},
        {"presence_penalty": 1.5},
        {"min_new_tokens": 2, "stop_token_ids": (6,)},
        {"temperature": 0.3, "seed": 2},
    ],
)
def test_where_all_rows_are_scored_it_is_by_the_logits_as_they_came(adjusted: dict[str, Any]) -> None:
    sampling = SamplingParameters(**{"temperature": 0.0, "top_logprobs": 2} | adjusted)
    sampler = sampler_of(sampling, sampling, histories=dict.fromkeys((0, 1), ([6], 0)))
    draws = sampler.sample(rows(2), int32(0, 1), int32(0, 0))
    logprobs, expected = draws.logprobs(), np.log(softmax())
    assert logprobs is not None
    assert logprobs.top_tokens.tolist() == [[6, 0]] * 2
    np.testing.assert_allclose(logprobs.top, [expected[[6, 0]]] * 2, rtol=1e-5)
    np.testing.assert_allclose(logprobs.chosen, expected[draws.tokens.numpy()], rtol=1e-5)


def test_a_slot_forgets_the_names_of_the_request_before() -> None:
    sampler = sampler_of(SamplingParameters(temperature=0.0, top_logprobs=0, token_ids_logprob=(2,)))
    again = SlotAssignment(0, SamplingParameters(temperature=0.0, top_logprobs=1), 0, int32(), 0)
    sampler.admit([again])
    logprobs = sampler.sample(rows(1), int32(0), int32(0)).logprobs()
    assert logprobs is not None
    assert logprobs.top_tokens.tolist() == [[6]]


def test_no_logprobs_unless_asked() -> None:
    sampler = sampler_of(SamplingParameters(temperature=0.0))
    assert sampler.sample(rows(1), int32(0), int32(0)).logprobs() is None


@pytest.mark.parametrize(
    ("sampling", "plain"),
    [
        (SamplingParameters(temperature=0.0), True),
        (SamplingParameters(temperature=0.0, stop_token_ids=(3,)), True),
        (SamplingParameters(temperature=0.5), False),
        (SamplingParameters(temperature=0.0, presence_penalty=0.1), False),
        (SamplingParameters(temperature=0.0, logit_bias={1: 1.0}), False),
        (SamplingParameters(temperature=0.0, top_logprobs=0), False),
        (SamplingParameters(temperature=0.0, min_new_tokens=1, stop_token_ids=(3,)), False),
    ],
)
def test_only_a_row_that_wants_its_largest_logit_is_plainly_greedy(sampling: SamplingParameters, plain: bool) -> None:
    sampler = sampler_of(SamplingParameters(temperature=0.0), sampling)
    assert sampler.plainly_greedy(int32(0, 1)) is plain


def test_a_minimum_reached_makes_a_row_plainly_greedy() -> None:
    sampler = sampler_of(SamplingParameters(temperature=0.0, min_new_tokens=1, stop_token_ids=(3,)))
    sampler.sample(rows(1), int32(0), int32(0))
    assert sampler.plainly_greedy(int32(0))


def test_tiny_temperatures_do_not_overflow() -> None:
    sampler = sampler_of(SamplingParameters(temperature=1e-30, seed=1), SamplingParameters(temperature=1e-6, top_p=0.9))
    assert sampler.sample(rows(2) * 1e3, int32(0, 1), int32(0, 0)).tokens.tolist() == [6, 6]
