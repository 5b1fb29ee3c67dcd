"""Folders whose matrices are quantised, in every layout that is known: what they mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pawl import doctor
from pawl.build.assembly import load_parts
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.models.config import UnsupportedModel
from pawl.gpu.models.registry import torch_decoder
from pawl.gpu.parallel.shard import Shard, keeper
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.weights.blocks import Blocks, numbers_of
from pawl.gpu.weights.checks import WeightMismatch
from pawl.gpu.weights.fingerprint import Samples
from pawl.gpu.weights.packed.scheme import scheme_of
from pawl.gpu.weights.safetensors import FolderError
from pawl.gpu.weights.source import load_blocks, load_weights, source_at
from pawl.lifecycle.weight_source import FromDisk
from tests.actors.vocabularies import byte_level
from tests.gpu.driving import same_bits
from tests.gpu.native_models import Native, alone, make
from tests.gpu.packed_files import WAYS, write_packed
from tests.gpu.test_gguf_blocks import runner_of
from tests.gpu.test_updates import said

TOKENS = list(range(3, 40))
MODELS = ("llama", "qwen2-wide", "phi3", "mixtral", "qwen3-moe-wide", "gemma3-wide")


SLOW = [pytest.param(name, way, marks=pytest.mark.slow) for name in MODELS for way in ("gptq-zeros", "pack-4")]


@pytest.mark.parametrize(("name", "way"), [*(("llama-wide", way) for way in WAYS), ("phi3", "awq"), *SLOW])
def test_weights_are_the_numbers_that_the_format_means(name: str, way: str, tmp_path: Path) -> None:
    packed, plain = (source_at(path, name) for path in write_packed(name, WAYS[way], tmp_path))
    wanted, found = load_weights(plain, torch.float32), load_weights(packed, torch.float32)
    blocks = load_blocks(packed, torch.float32)
    assert wanted.keys() == found.keys() == blocks.keys()
    for weight in wanted:
        assert same_bits(found[weight], wanted[weight]), weight
        assert same_bits(numbers_of(blocks[weight]), wanted[weight]), weight
    formats = {weight.dtype for weight in blocks.values() if isinstance(weight, Blocks)}
    assert formats == ({WAYS[way].block} - {None} if packed.config.hidden_size % 32 == 0 else set())
    assert packed.has_blocks or not formats


@pytest.mark.parametrize("way", ["awq", "gptq-order", "pack-4-zeros", "int-8", "fp8"])
def test_a_quantised_model_scores_as_its_numbers_do(way: str, tmp_path: Path) -> None:
    packed, plain = write_packed("llama-wide", WAYS[way], tmp_path)
    source = source_at(packed, "tiny")
    reference = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = reference(torch.tensor([TOKENS])).logits[0]
    decoder = make(
        source.config, torch.float32, kind=torch_decoder(source.config), weights=load_weights(source, torch.float32)
    )
    torch.testing.assert_close(alone(decoder.backend, decoder.table, 0, TOKENS), wanted, rtol=1e-4, atol=1e-4)
    stored = make(source.config, torch.float32, kind=Native, weights=load_blocks(source, torch.float32))
    found = alone(stored.backend, stored.table, 0, TOKENS)
    assert torch.linalg.norm(found - wanted) < 0.1 * torch.linalg.norm(wanted)


@pytest.mark.parametrize("way", ["awq", "fp8"])
def test_a_rank_keeps_its_part_of_the_dequantised_matrices(way: str, tmp_path: Path) -> None:
    packed, plain = (source_at(path, "tiny") for path in write_packed("llama-wide", WAYS[way], tmp_path))
    shard = Shard(packed.config, Topology(tensor=2), 1)
    wanted, found = (load_weights(source, torch.float32, keep=keeper(shard, Samples())) for source in (plain, packed))
    assert {name: weight.shape for name, weight in found.items()} == shard.shapes
    assert all(same_bits(found[name], wanted[name]) for name in wanted)


def test_new_weights_stay_in_blocks_and_serve(tmp_path: Path) -> None:
    folders = [write_packed("llama-wide", WAYS["awq"], tmp_path / str(seed), seed)[0] for seed in (1, 2)]
    runner, fresh = runner_of(folders[0]), runner_of(folders[1])
    before = said(runner)
    fingerprint = runner.stage(1, FromDisk(str(folders[1])))
    runner.swap(1)
    assert fingerprint in fresh.layout
    assert said(runner) == said(fresh) != before


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [
        (
            "awq",
            {"quant_method": "bitsandbytes"},
            "quant_method 'bitsandbytes' .*; known: awq, compressed-tensors, fp8",
        ),
        ("awq", {"version": "gemv"}, "version 'gemv' .*; known: gemm"),
        ("awq", {"bits": 3}, "bits '3' .*; known: 4"),
        ("awq", {"bits": "four"}, "bits is 'four' in quantization_config .*a whole number"),
        ("awq", {"group_size": 0}, "group_size 0"),
        ("gptq", {"bits": 2}, "bits '2' .*; known: 4, 8"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' .*; known: gptq, gptq_v2"),
        ("gptq", {"dynamic": {"-:lm_head": {}, "+:.*down.*": {"bits": 8}}}, r"dynamic '\+:\.\*down"),
        ("pack-4", {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized' .*; known: pack-quantized"),
        ("pack-4", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("pack-4", {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        ("pack-4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "format 'sparse-24-bitmask'"),
        ("pack-4", {"config_groups": {}}, "0 config_groups"),
        ("pack-4", {"config_groups": {"a": {"weights": {"num_bits": 6}}}}, "num_bits '6'"),
        ("pack-4", {"config_groups": {"a": {"weights": {"type": "float"}}}}, "type 'float' .*; known: int"),
        ("pack-4", {"config_groups": {"a": {"weights": {"strategy": "tensor_group"}}}}, "strategy 'tensor_group'"),
        ("fp8", {"fmt": "e5m2"}, "fmt 'e5m2'"),
        ("fp8", {"weight_block_size": [128]}, "inputs"),
    ],
)
def test_a_scheme_that_is_not_known_is_refused(base: str, changes: dict[str, Any], reason: str) -> None:
    assert scheme_of({"quantization_config": WAYS[base].config}) is not None
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        scheme_of({"quantization_config": WAYS[base].config | changes})
    assert "\n" not in str(refused.value)


DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("way", "part", "found", "reason"),
    [
        ("awq", "qzeros", None, "qzeros is missing"),
        ("awq", "scales", torch.ones(2, 64).half(), r"scales has shape \[2, 64\], where \[3, 64\] is needed"),
        ("awq", "scales", torch.full((3, 64), torch.inf).half(), "scales has a number that is not finite"),
        ("awq", "qweight", torch.ones(96, 8).half(), "qweight is float16"),
        ("awq", "qweight", torch.ones(96, 8, 1).int(), r"qweight has shape \[96, 8, 1\]"),
        ("awq", "qzeros", torch.ones(96, 8).int(), r"qzeros has shape \[96, 8\], where \[3, 8\]"),
        ("gptq-order", "g_idx", torch.full((96,), 3).int(), "g_idx names groups from 3 to 3 of 3"),
        ("gptq-order", "g_idx", torch.zeros(95).int(), r"g_idx has shape \[95\], where \[96\]"),
        ("gptq", "qweight", torch.ones(24, 64).int(), r"scales has shape|qzeros has shape"),
        (
            "pack-4",
            "weight_shape",
            torch.tensor([1 << 40, 1 << 40]),
            r"weight_packed has shape \[64, 12\], where \[1099",
        ),
        ("pack-4", "weight_shape", torch.tensor([64, 90]), "wrong shape .*down_proj"),
        ("pack-4", "weight_shape", torch.tensor([-64, 96]), "weight_packed has shape"),
        ("pack-4", "weight_shape", torch.tensor([64]), "weight_shape is int64"),
        ("pack-4-zeros", "weight_zero_point", None, "weight_zero_point is missing"),
        ("pack-4-zeros", "weight_zero_point", torch.ones(3, 8).int(), "weight_zero_point has shape"),
        ("int-8", "weight", torch.ones(64, 96).half(), "weight is float16"),
        ("int-8", "weight_scale", None, "weight is int8, and weight_scale is missing"),
        ("float-rows", "weight_scale", torch.ones(64, 3), r"weight_scale has shape \[64, 3\], where \[64, 1\]"),
        ("float-rows", "weight_scale", torch.ones(64).int(), "weight_scale is int32"),
        ("float-rows", "weight_scale", None, "weight is float8_e4m3fn, and weight_scale is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    way: str, part: str, found: torch.Tensor | None, reason: str, tmp_path: Path
) -> None:
    packed, _ = write_packed("llama-wide", WAYS[way], tmp_path)
    for path in packed.glob("*.safetensors"):
        tensors = load_file(path)
        if tensors.pop(f"{DOWN}.{part}", None) is not None and found is not None:
            tensors[f"{DOWN}.{part}"] = found
        save_file(tensors, path, {"format": "pt"})
    source = source_at(packed, "tiny")
    for load in (load_weights, load_blocks):
        with pytest.raises((FolderError, WeightMismatch), match=reason) as refused:
            load(source, torch.float32)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("value", "kept"), [(0.0, True), (0.5, False)])
def test_a_bias_of_zeros_that_the_model_has_not_is_dropped(value: float, kept: bool, tmp_path: Path) -> None:
    packed, _ = write_packed("llama-wide", WAYS["gptq"], tmp_path)
    path = packed / "model-1-of-2.safetensors"
    save_file(load_file(path) | {f"{DOWN}.bias": torch.full((64,), value).half()}, path, {"format": "pt"})
    if kept:
        assert f"{DOWN}.bias" not in load_weights(source_at(packed, "tiny"), torch.float32)
        return
    with pytest.raises(WeightMismatch, match=rf"unexpected {DOWN}\.bias"):
        load_weights(source_at(packed, "tiny"), torch.float32)


def test_scales_of_too_many_bits_for_blocks_leave_a_matrix_dense(tmp_path: Path) -> None:
    packed, _ = write_packed("llama-wide", WAYS["int-8"], tmp_path)
    scales = torch.full((64, 1), 1 + 2**-12)
    for path in packed.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({name: scales if name == f"{DOWN}.weight_scale" else held for name, held in tensors.items()}, path)
    source = source_at(packed, "tiny")
    weights, plain = load_blocks(source, torch.float32), load_weights(source, torch.float32)
    assert same_bits(weights[f"{DOWN}.weight"], plain[f"{DOWN}.weight"])
    assert {type(weight) for name, weight in weights.items() if "_proj" in name and DOWN not in name} == {Blocks}


@pytest.mark.parametrize(
    ("way", "settings", "weights"),
    [
        ("awq", {}, "stored"),
        ("awq", {"dtype": "fp32"}, "fp32"),
        ("awq", {"backend": "torch"}, "bf16"),
        ("fp8", {}, "bf16"),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_what_starts_says_how_weights_are(way: str, settings: dict[str, Any], weights: str, tmp_path: Path) -> None:
    packed, _ = write_packed("llama-wide", WAYS[way], tmp_path)
    byte_level().tokenizer.save(str(packed / "tokenizer.json"))
    parts = load_parts(ServerConfig(model=str(packed), trace=False, kv_tokens=256, **settings))
    assert parts.summary["weights"] == weights


def test_weights_that_no_blocks_hold_cannot_stay_as_they_are_stored(tmp_path: Path) -> None:
    packed, _ = write_packed("llama-wide", WAYS["gptq-order"], tmp_path)
    byte_level().tokenizer.save(str(packed / "tokenizer.json"))
    with pytest.raises(ConfigError, match="cannot stay as they are stored: most are in no format"):
        load_parts(ServerConfig(model=str(packed), trace=False, weights="stored"))


def test_a_doctor_says_how_a_model_is_quantised(tmp_path: Path) -> None:
    packed, _ = write_packed("llama-wide", WAYS["pack-4"], tmp_path)
    found = doctor.model(ServerConfig(model=str(packed)))
    assert found.detail.endswith("2 layers, context 128, 4 bits (compressed-tensors, pack-quantized))")
