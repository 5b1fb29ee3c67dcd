"""Sampling fields are checked for name, type and range, and every refusal says what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.sampling import MAX_LOGIT_BIASES, InvalidRequest, build_sampling
from pawl.lifecycle.request import SamplingParameters


def test_nothing_set_gives_the_defaults() -> None:
    assert build_sampling({}) == SamplingParameters()


def test_none_counts_as_not_set() -> None:
    assert build_sampling({"temperature": None, "logit_bias": None}) == SamplingParameters()


def test_fields_arrive_as_they_were_set() -> None:
    fields = {
        "temperature": 0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "logit_bias": {"7": 5, 8: -100.0},
        "seed": 11,
        "max_new_tokens": 9,
        "min_new_tokens": 3,
        "stop_token_ids": [4],
        "top_logprobs": 2,
        "prompt_logprobs": True,
    }
    sampling = build_sampling(fields, eos_token_ids=(2,), vocabulary_size=10)
    assert sampling == SamplingParameters(
        **{**fields, "logit_bias": {7: 5.0, 8: -100.0}, "stop_token_ids": (2, 4), "eos_token_ids": (2,)}
    )


def test_the_models_own_end_is_merged_unless_ignored() -> None:
    assert build_sampling({"stop_token_ids": [2, 5, 5]}, eos_token_ids=(2,)).stop_token_ids == (2, 5)
    ignoring = build_sampling({"stop_token_ids": [5], "ignore_eos": True}, eos_token_ids=(2,))
    assert (ignoring.stop_token_ids, ignoring.eos_token_ids) == ((5,), ())


def test_off_and_negative_values_have_one_form() -> None:
    assert build_sampling({"top_k": -1}).top_k == 0
    assert build_sampling({"seed": -1}).seed == 2**63 - 1
    assert build_sampling({"top_p": 1}).top_p == 1.0


def test_a_missing_limit_is_filled_in_and_compared() -> None:
    assert build_sampling({}, default_max_new_tokens=77).max_new_tokens == 77
    assert build_sampling({"min_new_tokens": 500}).min_new_tokens == 500
    with pytest.raises(InvalidRequest, match="must not exceed max_new_tokens"):
        build_sampling({"min_new_tokens": 78}, default_max_new_tokens=77)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, "1", True, float("nan"), float("inf"), 1e-9, 10**400]),
        ("top_k", [-2, 1.5, True, "5", 10**400]),
        ("top_p", [0, 1.1, "x", [], float("nan")]),
        ("min_p", [-0.1, 1.01]),
        ("repetition_penalty", [0, -1, float("inf")]),
        ("presence_penalty", [-2.1, 2.1]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("logit_bias", [[], {"x": 1}, {"-1": 1}, {-1: 1}, {True: 1}, {"1": 101}, {"1": None}, {"1" * 20: 1}]),
        ("seed", [1.5, "1", 2**63, -(2**63) - 1]),
        ("max_new_tokens", [-1, 1.0, "9", True]),
        ("min_new_tokens", [-1, 2.0]),
        ("stop_token_ids", [5, "5", [-1], ["a"], [1.0], {}]),
        ("ignore_eos", [1, "true"]),
        ("top_logprobs", [-1, 21, True]),
        ("prompt_logprobs", [1, "yes"]),
    ],
)
def test_wrong_types_and_ranges_are_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequest, match=field) as caught:
            build_sampling({field: value})
        assert caught.value.param is not None
        assert caught.value.param.startswith(field)
        assert caught.value.status == 400
        assert len(caught.value.message) < 300


def test_an_unknown_key_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(InvalidRequest, match="'temprature'; did you mean 'temperature'"):
        build_sampling({"temprature": 1})
    with pytest.raises(InvalidRequest, match="unknown sampling parameter 'eos_token_ids'"):
        build_sampling({"eos_token_ids": [1]})


@pytest.mark.parametrize("fields", [{"stop_token_ids": [10]}, {"logit_bias": {"10": 1}}])
def test_token_ids_must_be_in_the_vocabulary(fields: dict[str, Any]) -> None:
    assert build_sampling(fields, vocabulary_size=11)
    with pytest.raises(InvalidRequest, match="token 10, but the vocabulary ends at 9"):
        build_sampling(fields, vocabulary_size=10)


def test_counts_are_bounded() -> None:
    assert len(build_sampling({"stop_token_ids": [*range(1, 8)]}, eos_token_ids=(0,)).stop_token_ids) == 8
    with pytest.raises(InvalidRequest, match="at most 8 stop tokens"):
        build_sampling({"stop_token_ids": [*range(1, 9)]}, eos_token_ids=(0,))
    with pytest.raises(InvalidRequest, match="logit_bias takes at most"):
        build_sampling({"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 0)})
