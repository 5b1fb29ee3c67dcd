"""A ghost's recorded words, computed again: after each recorded token comes what the oracle says, quick way or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.ghost.language import VOCABULARY_SIZE
from pawl.gpu.ghost.oracle import Sequel, expected
from pawl.gpu.ghost.recompute import ghost_again
from pawl.lifecycle.recompute import Computed, Recorded
from pawl.lifecycle.request import SamplingParameters

GREEDY = SamplingParameters(temperature=0.0)
TOKENS = st.lists(st.integers(0, VOCABULARY_SIZE - 1), min_size=1, max_size=20)


def again(tokens: list[int], num_prompt: int, sampling: SamplingParameters = GREEDY) -> Computed:
    heard: list[int] = []
    (computed,) = ghost_again([Recorded(np.array(tokens, np.int32), num_prompt, sampling)], heard.append)
    assert computed is not None
    assert heard == [len(tokens)]
    return computed


@given(TOKENS, st.data())
def test_after_each_recorded_token_comes_what_the_oracle_says(tokens: list[int], data: st.DataObject) -> None:
    num_prompt = data.draw(st.integers(1, len(tokens)))
    computed = again(tokens, num_prompt)
    assert computed.tokens.tolist() == [Sequel(tokens[:end]).likeliest() for end in range(num_prompt, len(tokens))]
    assert np.isnan(computed.chosen).all()
    assert computed.digests == []


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParameters(temperature=0.0, top_logprobs=0)], ids=["quick", "in steps"]
)
def test_what_was_recorded_truly_comes_out_the_same(sampling: SamplingParameters) -> None:
    output = expected(b"once upon", 40)
    computed = again([*b"once upon", *output], 9, sampling)
    assert computed.tokens.tolist() == output
    assert np.isnan(computed.chosen[9:]).any() == (sampling.top_logprobs is None)


@pytest.mark.parametrize("wrong", [-1, VOCABULARY_SIZE, 2**31 - 1])
def test_a_recorded_token_that_no_ghost_has_is_drawn_as_another(wrong: int) -> None:
    output = expected(b"once", 5)
    assert again([*b"once", *output[:3], wrong, output[4]], 4).tokens.tolist() == output
