"""Sampling fields are checked for name, type and range, and every refusal says what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from pawl.actors.fields import convert
from pawl.actors.sampling import Limits, OfflineSampling, offline_sampling
from pawl.actors.text.invalid import InvalidRequest
from pawl.gpu.step_runner import Abilities
from pawl.lifecycle.request import SamplingParameters

LIMITS = Limits(context_length=100, vocabulary_size=10)


def sampling_of(fields: dict[str, Any], limits: Limits = LIMITS) -> SamplingParameters:
    return offline_sampling(convert(fields, OfflineSampling), limits, seed=0)


def test_nothing_set_gives_the_defaults_and_the_whole_context() -> None:
    assert sampling_of({}) == SamplingParameters(max_new_tokens=100)


def test_none_counts_as_not_set() -> None:
    assert sampling_of({"temperature": None, "logit_bias": None}) == sampling_of({})


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
    # Greedy drawing has no use for top_p, and says so.
    assert sampling_of({**fields, "temperature": 0.5}, Limits(100, 10, (2,))) == SamplingParameters(
        **{
            **fields,
            "temperature": 0.5,
            "logit_bias": {7: 5.0, 8: -100.0},
            "stop_token_ids": (2, 4),
            "eos_token_ids": (2,),
        }
    )


def test_the_models_own_end_is_merged_unless_ignored() -> None:
    ended = Limits(100, 10, (2,))
    assert sampling_of({"stop_token_ids": [2, 5, 5]}, ended).stop_token_ids == (2, 5)
    ignoring = sampling_of({"stop_token_ids": [5], "ignore_eos": True}, ended)
    assert (ignoring.stop_token_ids, ignoring.eos_token_ids) == ((5,), ())


def test_off_and_negative_values_have_one_form() -> None:
    assert sampling_of({"top_k": -1}).top_k == 0
    assert sampling_of({"seed": -1}).seed == 2**63 - 1
    assert sampling_of({"top_p": 1}).top_p == 1.0


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1e-8}, {"top_p": 0}, {"top_p": 0.0}])
def test_what_leaves_the_likeliest_token_alone_is_greedy(fields: dict[str, Any]) -> None:
    sampling = sampling_of(fields)
    assert sampling.greedy
    assert sampling.top_p == 1.0


def test_a_given_seed_wins_and_a_missing_one_is_the_callers() -> None:
    assert offline_sampling(OfflineSampling(), LIMITS, seed=7).seed == 7
    assert offline_sampling(OfflineSampling(seed=3), LIMITS, seed=7).seed == 3


def test_a_least_length_beyond_the_limit_is_refused() -> None:
    assert sampling_of({"min_new_tokens": 50}).min_new_tokens == 50
    with pytest.raises(InvalidRequest, match="must not exceed max_new_tokens"):
        sampling_of({"min_new_tokens": 78, "max_new_tokens": 77})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, "1", True, float("nan"), float("inf"), 1e308, 10**400]),
        ("top_k", [-2, 1.5, True, "5", 10**400]),
        ("top_p", [-0.1, 1.1, "x", [], float("nan")]),
        ("min_p", [-0.1, 1.01]),
        ("repetition_penalty", [0, -1, 1e-9, float("inf")]),
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
            sampling_of({field: value})
        assert caught.value.param is not None
        assert caught.value.param.startswith(field)
        assert "must be" in caught.value.message
        assert caught.value.status == 400
        assert len(caught.value.message) < 300


def test_a_refusal_says_what_the_field_may_hold() -> None:
    words = {
        "top_p": (1.5, "top_p must be a number from 0 to 1"),
        "top_logprobs": (99, "top_logprobs must be an integer from 0 to 20"),
        "ignore_eos": ("no", "ignore_eos must be true or false, not a string"),
        "logit_bias": ({"x": 1}, "each key of logit_bias must be an integer from 0 to 2147483647"),
        "stop_token_ids": ([1] * 9, "stop_token_ids must be a list of at most 8 entries"),
    }
    for name, (value, text) in words.items():
        with pytest.raises(InvalidRequest) as caught:
            sampling_of({name: value})
        assert caught.value.message.startswith(text)


def test_an_unknown_key_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(InvalidRequest, match="unknown field 'temprature'; did you mean 'temperature'"):
        sampling_of({"temprature": 1})
    with pytest.raises(InvalidRequest, match="unknown field 'eos_token_ids'"):
        sampling_of({"eos_token_ids": [1]})
    with pytest.raises(InvalidRequest) as caught:
        sampling_of({"x" * 100_000: 1})
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("fields", [{"stop_token_ids": [10]}, {"logit_bias": {"10": 1}}])
def test_token_ids_must_be_in_the_vocabulary(fields: dict[str, Any]) -> None:
    assert sampling_of(fields, Limits(100, 11))
    with pytest.raises(InvalidRequest, match="token 10, but the vocabulary ends at 9"):
        sampling_of(fields, Limits(100, 10))


def test_counts_are_bounded() -> None:
    ended = Limits(100, 2000, (0,))
    assert len(sampling_of({"stop_token_ids": [*range(1, 8)]}, ended).stop_token_ids) == 8
    with pytest.raises(InvalidRequest, match="at most 8 stop tokens"):
        sampling_of({"stop_token_ids": [*range(1, 9)]}, ended)
    with pytest.raises(InvalidRequest, match="logit_bias must be an object of at most 1024 members"):
        sampling_of({"logit_bias": dict.fromkeys(range(1025), 0)}, ended)


@pytest.mark.parametrize(
    ("fields", "limits", "words"),
    [
        ({}, {"abilities": Abilities(generates=False)}, "makes vectors of texts and generates none"),
        ({"regex": "a"}, {"grammars": False}, "cannot be kept to a grammar"),
    ],
)
def test_what_a_model_cannot_do_is_refused_and_what_it_can_is_not(
    fields: dict[str, Any], limits: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        sampling_of(fields, structs.replace(LIMITS, **limits))
    assert sampling_of(fields).max_new_tokens == 100
