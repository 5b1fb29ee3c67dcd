"""Requests to a ghost that want more than the likeliest token: draws and scores are those of its logits."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.gpu.ghost.language import END_TOKEN
from pawl.gpu.ghost.oracle import Sequel, expected
from pawl.lifecycle.request import SamplingParameters
from tests.gpu.ghost_rows import Rows, int32s, prompt_of


def log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    return np.asarray(values - np.log(np.exp(values).sum()))


def drawn(prompt: list[int], count: int, **sampling: Any) -> list[int]:
    """The next token after `prompt`, drawn with `count` seeds."""
    rows = Rows(count)
    for slot in range(count):
        rows.run(rows.admission(slot, SamplingParameters(seed=slot, **sampling)))
    return rows.run(rows.batch([(slot, prompt, True) for slot in range(count)])).tokens.tolist()


def test_drawn_tokens_are_as_frequent_as_their_logits_say() -> None:
    prompt = prompt_of(5, 10)
    tokens = drawn(prompt, 900, temperature=0.8)
    probabilities = np.exp(log_softmax(Sequel(prompt).logits() / 0.8))
    for token in np.argsort(-probabilities)[:5].tolist():
        deviation = np.sqrt(probabilities[token] * (1 - probabilities[token]) / len(tokens))
        assert abs(tokens.count(token) / len(tokens) - probabilities[token]) < 4 * deviation


def test_truncation_leaves_the_likeliest() -> None:
    prompt = prompt_of(5, 10)
    probabilities = np.exp(log_softmax(Sequel(prompt).logits()))
    falling = np.argsort(-probabilities)
    assert set(drawn(prompt, 200, top_k=3)) == set(falling[:3].tolist())
    half = 1 + int(np.searchsorted(np.cumsum(probabilities[falling]), 0.3))
    assert set(drawn(prompt, 200, top_p=0.3)) <= set(falling[:half].tolist())
    assert len(set(drawn(prompt, 200, top_p=0.3))) > 3
    likely = np.flatnonzero(probabilities >= 0.2 * probabilities.max())
    assert set(drawn(prompt, 200, min_p=0.2)) <= set(likely.tolist())
    assert set(drawn(prompt, 50, top_p=1e-6)) == {int(falling[0])}


SPECIAL = [
    SamplingParameters(temperature=0.9, seed=5),
    SamplingParameters(temperature=1.3, seed=6, top_p=0.8, top_logprobs=3),
    SamplingParameters(temperature=0.7, seed=7, top_k=5, repetition_penalty=1.2),
]


def test_draws_do_not_see_their_neighbours() -> None:
    together, alone = Rows(), [Rows() for _ in SPECIAL]
    for slot, sampling in enumerate(SPECIAL):
        together.prefill(slot, prompt_of(slot, 9), sampling)
        alone[slot].prefill(slot, prompt_of(slot, 9), sampling)
    for _ in range(8):
        together.decode(2, 0, 1)
        for slot, rows in enumerate(alone):
            rows.decode(slot)
    assert together.output == [rows.output[slot] for slot, rows in enumerate(alone)]
    greedy = [expected(prompt_of(slot, 9), 9) for slot in range(3)]
    assert all(output != plain for output, plain in zip(together.output, greedy, strict=True))


def test_a_greedy_row_beside_one_that_draws_stays_greedy() -> None:
    rows = Rows()
    rows.prefill(0, prompt_of(0, 9))
    rows.prefill(1, prompt_of(1, 9), SPECIAL[1])
    for _ in range(5):
        result = rows.decode(0, 1)
        assert result.logprobs is not None
        assert np.isnan(result.logprobs.chosen[0])
        assert not np.isnan(result.logprobs.chosen[1])
    assert rows.output[0] == expected(prompt_of(0, 9), 6)


def test_log_probabilities_are_those_of_the_logits() -> None:
    rows, prompt = Rows(), prompt_of(3, 11)
    sampling = SamplingParameters(temperature=0.0, top_logprobs=4, prompt_logprobs=True)
    rows.run(rows.admission(0, sampling))
    results = [rows.run(rows.batch([(0, prompt[:6], False)])), rows.run(rows.batch([(0, prompt[6:], True)]))]
    scores = np.concatenate([scores.chosen for result in results for scores in result.prompt_logprobs])
    of_prompt = [log_softmax(Sequel(prompt[:place]).logits())[prompt[place]] for place in range(1, len(prompt))]
    assert scores == pytest.approx(of_prompt, abs=1e-4)
    ranks = np.concatenate([scores.ranks for result in results for scores in result.prompt_logprobs])
    logits = [Sequel(prompt[:place]).logits() for place in range(1, len(prompt))]
    assert ranks.tolist() == [int((row >= row[token]).sum()) for row, token in zip(logits, prompt[1:], strict=True)]
    logprobs, after = results[1].logprobs, log_softmax(Sequel(prompt).logits())
    assert logprobs is not None
    assert logprobs.top[0] == pytest.approx(np.sort(after)[::-1][:4], abs=1e-4)
    assert logprobs.top_tokens[0][0] == results[1].tokens[0] == expected(prompt, 1)[0]
    assert logprobs.chosen[0] == pytest.approx(after.max(), abs=1e-4)


def test_named_tokens_are_scored_in_prompts_and_outputs() -> None:
    rows, prompt = Rows(), prompt_of(3, 11)
    named = (7, 101, 7)
    sampling = SamplingParameters(temperature=0.0, top_logprobs=1, token_ids_logprob=named, prompt_logprobs=True)
    rows.run(rows.admission(0, sampling))
    result = rows.run(rows.batch([(0, prompt, True)]))
    (of_prompt,), logprobs = result.prompt_logprobs, result.logprobs
    assert logprobs is not None
    for place, row in enumerate((*of_prompt.top, *logprobs.top), 1):
        expected = log_softmax(Sequel(prompt[:place]).logits())
        assert row == pytest.approx([expected.max(), *expected[list(named)]], abs=1e-4)
    assert of_prompt.top_tokens[:, 1:].tolist() == [list(named)] * (len(prompt) - 1)


def test_scores_end_with_the_request_that_wanted_them() -> None:
    rows, prompt = Rows(), prompt_of(3, 11)
    rows.run(rows.admission(0, SamplingParameters(temperature=0.0, top_logprobs=4, prompt_logprobs=True)))
    assert len(rows.run(rows.batch([(0, prompt[:6], False)])).prompt_logprobs) == 1
    rows.run(rows.admission(0))
    beside = rows.run(rows.batch([(0, prompt[:6], False)]))
    rows.prefill(1, prompt, SPECIAL[0])
    result = rows.run(rows.batch([(0, prompt[6:], True), (1, None, True)]))
    assert beside.prompt_logprobs == result.prompt_logprobs == ()
    assert result.logprobs is None
    assert result.tokens[0] == expected(prompt, 1)[0]


def test_a_stop_token_is_barred_while_the_output_is_too_short_and_no_longer() -> None:
    prompt = prompt_of(3, 11)
    *before, stop = expected(prompt, 3)
    assert stop not in before
    for least in (2, 3):
        rows = Rows()
        rows.prefill(0, prompt, SamplingParameters(temperature=0.0, min_new_tokens=least, stop_token_ids=(stop,)))
        rows.decode(0)
        rows.decode(0)
        assert rows.output[0][:2] == before
        assert (rows.output[0][2] == stop) == (least == 2)


def test_output_from_before_a_retraction_counts_for_the_least_output() -> None:
    prompt = prompt_of(3, 11)
    *before, stop = expected(prompt, 3)
    rows = Rows()
    admission = rows.admission(0, SamplingParameters(temperature=0.0, min_new_tokens=2, stop_token_ids=(stop,)))
    back = msgspec.structs.replace(admission.admitted[0], num_prompt=len(prompt), num_output=2)
    rows.run(msgspec.structs.replace(admission, admitted=(back,)))
    rows.run(rows.batch([(0, [*prompt, *before], True)]))
    assert rows.output[0] == [stop]


def test_noise_differs_from_position_to_position() -> None:
    rows = Rows()
    # So hot that the noise alone decides.
    rows.prefill(0, prompt_of(3, 11), SamplingParameters(temperature=1e6, seed=1))
    for _ in range(20):
        rows.decode(0)
    assert len(set(rows.output[0])) > 15


def test_a_request_that_comes_back_goes_on_drawing_where_it_was() -> None:
    prompt = prompt_of(3, 11)
    sampling = SamplingParameters(temperature=1.0, seed=3, frequency_penalty=1.0, repetition_penalty=1.3)
    rows = Rows()
    rows.prefill(0, prompt, sampling)
    for _ in range(12):
        rows.decode(0)
    first = rows.output[0]
    back = [*prompt, *first[:7]]
    admission = rows.admission(1, sampling)
    again = msgspec.structs.replace(admission.admitted[0], num_prompt=len(prompt), history=int32s(back), num_output=7)
    rows.run(msgspec.structs.replace(admission, admitted=(again,)))
    rows.run(rows.batch([(1, back, True)]))
    for _ in range(5):
        rows.decode(1)
    assert rows.output[1] == first[7:]


def test_bias_is_honoured() -> None:
    rows = Rows()
    rows.prefill(0, prompt_of(3, 11), SamplingParameters(temperature=0.0, logit_bias={END_TOKEN: 100.0}))
    assert rows.output[0] == [END_TOKEN]


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_a_penalty_makes_the_output_more_varied(penalty: str) -> None:
    rows, prompt = Rows(), prompt_of(3, 11)
    rows.prefill(1, prompt, SamplingParameters(temperature=0.0, **{penalty: 2.0}))
    for _ in range(30):
        rows.decode(1)
    assert len(set(rows.output[1])) > len(set(expected(prompt, 31))) + 3
    often = max(rows.output[1].count(token) for token in rows.output[1])
    assert often < max(expected(prompt, 31).count(token) for token in expected(prompt, 31))
