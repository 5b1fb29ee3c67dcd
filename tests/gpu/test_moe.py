"""Layers of experts: who is chosen, what the chosen say, and that nobody else reaches a token's bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from pawl.gpu.models.config import Experts, ModelConfig, UnsupportedModel, weight_shapes
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.experts import route
from pawl.gpu.models.huggingface import config_from_huggingface
from pawl.gpu.models.small import random_weights
from pawl.gpu.weights.checks import WeightMismatch
from pawl.gpu.weights.safetensors import load_folder_weights
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.driving import Piece, forward_inputs, int32, logits_in_pieces, same_bits
from tests.gpu.native_models import EXPERTS, ODD, Native, alone, make
from tests.gpu.real import smollm2_source
from tests.gpu.tiny import VOCABULARY, reference_logits, save_tiny, tiny_model

BACKENDS = (Native, TorchDecoder)
MODELS = ("mixtral", "qwen3-moe", "qwen3-moe-mixed")
DTYPES = (torch.float32, torch.bfloat16)
REAL_LAYERS = 3


def tokens_of(length: int, vocabulary: int = VOCABULARY, seed: int = 7) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, vocabulary, length).tolist()
    return drawn


# ---- against transformers ----


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name: str, kind: Any, tmp_path: Path) -> None:
    source = resolve_source(str(save_tiny(name, tmp_path)))
    made = make(source.config, torch.float32, kind=kind, weights=load_weights(source, torch.float32))
    tokens, start = tokens_of(19), 0
    for end in (7, 8, 19):  # the prompt in chunks
        logits = made.backend.forward(forward_inputs([Piece(1, start, tokens[start:end])], made.table))
        start = end
    while len(tokens) < 40:
        tokens.append(int(logits[-1].argmax()))
        logits = made.backend.forward(forward_inputs([Piece(1, len(tokens) - 1, tokens[-1:])], made.table))
    assert tokens[19:] == reference_logits(name, tokens[:-1])[18:].argmax(-1).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_experts_in_one_tensor_and_in_one_each_are_the_same_weights(name: str, tmp_path: Path) -> None:
    apart = resolve_source(str(save_tiny(name, tmp_path / "apart")))
    fused = resolve_source(str(save_tiny(name, tmp_path / "fused", save_original_format=False)))
    assert fused.config == apart.config
    expected, found = load_weights(apart, torch.float32), load_weights(fused, torch.float32)
    assert {weight: tuple(tensor.shape) for weight, tensor in found.items()} == weight_shapes(apart.config)
    for weight, tensor in expected.items():
        assert same_bits(found[weight], tensor), weight


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = save_tiny("mixtral", tmp_path)
    config = resolve_source(str(folder)).config
    assert config.experts is not None
    more = msgspec.structs.replace(config, experts=msgspec.structs.replace(config.experts, count=5))
    with pytest.raises(WeightMismatch, match=r"experts\.4\.down_proj"):
        load_folder_weights(folder, more, torch.float32)


# ---- configuration ----


def test_the_layers_that_have_experts_are_those_of_transformers(tmp_path: Path) -> None:
    values = json.loads((save_tiny("qwen3-moe-mixed", tmp_path) / "config.json").read_text())
    model = tiny_model("qwen3-moe-mixed")
    expected = tuple(hasattr(layer.mlp, "experts") for layer in model.model.layers)
    for change, layers in (({}, expected), ({"mlp_only_layers": [1, 3]}, None), ({"num_local_experts": 0}, None)):
        experts = config_from_huggingface({**values, **change}).experts
        assert (experts.layers if experts else None) == layers
    assert True in expected, "the model has both kinds of layers"
    assert False in expected, "the model has both kinds of layers"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": 38}, "38 of 37 experts"),
        ({"chosen": 0}, "0 of 37 experts"),
        ({"size": 0}, "inner width 0"),
        ({"layers": (True,)}, "1 layers with or without experts for 3"),
    ],
)
def test_experts_that_cannot_be_are_refused(change: dict[str, Any], reason: str) -> None:
    assert EXPERTS.experts is not None
    with pytest.raises(UnsupportedModel, match=reason):
        msgspec.structs.replace(EXPERTS, experts=msgspec.structs.replace(EXPERTS.experts, **change))


def test_the_number_of_experts_is_read_under_both_of_its_names(tmp_path: Path) -> None:
    values = json.loads((save_tiny("qwen3-moe", tmp_path) / "config.json").read_text())
    older = {key: value for key, value in values.items() if key != "num_local_experts"}
    assert config_from_huggingface({**older, "num_experts": 8}) == config_from_huggingface(values)


# ---- routing ----


def one_layer(count: int, chosen: int, normalised: bool = True) -> ModelConfig:
    experts = Experts(count=count, chosen=chosen, size=45, normalised=normalised, layers=(True,))
    return msgspec.structs.replace(ODD, num_layers=1, windows=(None,), experts=experts)


def spoil(weights: dict[str, Tensor], experts: range) -> None:
    for name, weight in weights.items():
        if any(f".experts.{expert}." in name for expert in experts):
            weight.fill_(float("nan"))


@pytest.mark.parametrize("kind", BACKENDS)
def test_of_equal_scores_the_lowest_experts_are_chosen(kind: Any) -> None:
    config = one_layer(40, 3)
    weights = random_weights(config, torch.float32)
    weights["model.layers.0.mlp.gate.weight"].zero_()
    spoil(weights, range(3, 40))
    made = make(config, torch.float32, kind=kind, weights=weights)
    assert alone(made.backend, made.table, 0, tokens_of(70, ODD.vocab_size)).isfinite().all()


def test_route_takes_the_largest_scores_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    experts = Experts(count=5, chosen=2, size=1, normalised=True, layers=(True,))
    routes = route(scores, experts)
    assert routes.experts.tolist() == [[1, 2], [0, 1]]
    torch.testing.assert_close(routes.shares, torch.full((2, 2), 0.5))
    plain = route(scores, msgspec.structs.replace(experts, normalised=False))
    torch.testing.assert_close(plain.shares[1], torch.full((2,), 0.2))


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_expert_reaches_the_tokens_that_chose_it_and_no_others(kind: Any) -> None:
    config = one_layer(8, 2)
    tokens = tokens_of(90, ODD.vocab_size)
    weights = random_weights(config, torch.float32)
    whole = make(config, torch.float32, kind=kind, weights={**weights})
    expected = alone(whole.backend, whole.table, 0, tokens)
    spoil(weights, range(5, 6))
    made = make(config, torch.float32, kind=kind, weights=weights)
    found = alone(made.backend, made.table, 0, tokens)
    untouched = found.isfinite().all(-1)
    assert 0 < int(untouched.sum()) < len(tokens), "some tokens chose it, some did not"
    torch.testing.assert_close(found[untouched], expected[untouched], rtol=1e-5, atol=1e-5)


def skewed(config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every embedding has the same large part, and one expert's router answers to it: all tokens choose that one."""
    weights = random_weights(config, dtype)
    weights["model.embed_tokens.weight"] += 4.0
    router = weights["model.layers.0.mlp.gate.weight"]
    router[6] = router[6].abs() + 0.5
    return weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_weights", [random_weights, skewed])
def test_who_else_chose_an_expert_does_not_reach_a_tokens_bits(make_weights: Any, dtype: torch.dtype) -> None:
    """Hundreds of rows, so that one expert has several blocks of them, against every row by itself."""
    config = one_layer(8, 2, normalised=False)
    made = make(config, dtype, threads=2, num_slots=2, context=450, weights=make_weights(config, dtype))
    tokens = tokens_of(450, ODD.vocab_size)
    whole = alone(made.backend, made.table, 0, tokens)
    for position in range(len(tokens)):
        row = made.backend.forward(forward_inputs([Piece(1, position, [tokens[position]])], made.table))[0]
        assert torch.equal(row, whole[position]), f"position {position}"


def test_all_tokens_of_the_skewed_model_choose_the_same_expert() -> None:
    config = one_layer(8, 2)
    weights = skewed(config, torch.float32)
    spoil(weights, range(6, 7))
    made = make(config, torch.float32, weights=weights)
    assert not alone(made.backend, made.table, 0, tokens_of(70, ODD.vocab_size)).isfinite().any()


@pytest.mark.parametrize("make_weights", [random_weights, skewed])
def test_both_backends_agree_with_all_experts_hit_and_with_one(make_weights: Any) -> None:
    config = one_layer(8, 2)
    tokens = [tokens_of(length, ODD.vocab_size) for length in (150, 3, 67, 1)]
    native, plain = (
        make(config, torch.float32, kind=kind, weights=make_weights(config, torch.float32)) for kind in BACKENDS
    )
    found = logits_in_pieces(native.backend, native.table, tokens, seed=1)
    expected = logits_in_pieces(plain.backend, plain.table, tokens, seed=2)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_batch_without_wanted_rows_is_no_trouble(kind: Any) -> None:
    made = make(EXPERTS, torch.float32, kind=kind)
    logits = made.backend.forward(forward_inputs([Piece(0, 0, [1, 2, 3])], made.table, logit_rows=int32()))
    assert logits.shape == (0, EXPERTS.vocab_size)


# ---- a real model ----


@pytest.fixture(scope="module")
def smollm2() -> tuple[ModelConfig, dict[str, Tensor]]:
    """Its first layers, in float32."""
    source = smollm2_source()
    config = msgspec.structs.replace(source.config, num_layers=REAL_LAYERS, windows=(None,) * REAL_LAYERS)
    weights = load_weights(source, torch.float32)
    return config, {name: weights[name] for name in weight_shapes(config)}


@pytest.mark.parametrize("kind", BACKENDS)
def test_smollm2_with_its_mlp_copied_into_experts_scores_as_without(
    smollm2: tuple[ModelConfig, dict[str, Tensor]], kind: Any
) -> None:
    """Which experts a token uses makes no difference when all say the same."""
    dense, weights = smollm2
    layers = (True,) * REAL_LAYERS
    experts = Experts(count=3, chosen=2, size=dense.intermediate_size, normalised=True, layers=layers)
    routed = msgspec.structs.replace(dense, experts=experts)
    router = torch.randn(3, dense.hidden_size, generator=torch.Generator().manual_seed(1))
    copied = {
        name: router if name.endswith(".mlp.gate.weight") else weights[_dense_name(name)]
        for name in weight_shapes(routed)
    }
    tokens = [504, 3575, 282, 4649, 314, 7042, 30, 198]
    expected, found = (
        alone(made.backend, made.table, 0, tokens)
        for made in (
            make(dense, torch.float32, kind=kind, weights={**weights}),
            make(routed, torch.float32, kind=kind, weights=copied),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _dense_name(name: str) -> str:
    """The MLP that an expert is a copy of: model.layers.3.mlp.experts.1.up_proj.weight -> ...mlp.up_proj.weight"""
    stem, experts, part = name.partition(".experts.")
    return f"{stem}.{part.split('.', 1)[1]}" if experts else name
