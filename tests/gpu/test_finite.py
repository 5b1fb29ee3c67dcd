"""Weights with numbers that are not finite are refused where they are read, in one line with their name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pawl.commands.failures import EXIT_FAILED, exit_status
from pawl.gpu.alone import NoScores, check_scores
from pawl.gpu.dtypes import DTYPES, dtype_of, floats_of
from pawl.gpu.models.config import UnsupportedModel
from pawl.gpu.models.small import random_weights
from pawl.gpu.parallel.shard import Shard, keeper
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.runner import Runner
from pawl.gpu.weights.blocks import BlockFormat, Blocks
from pawl.gpu.weights.cache import entry_path, load_cached_weights, write_entry
from pawl.gpu.weights.fingerprint import Samples
from pawl.gpu.weights.finite import NotFinite, is_finite
from pawl.gpu.weights.safetensors import sent_weights
from pawl.gpu.weights.source import ModelSource, load_blocks, load_weights, source_at
from tests.gpu.driving import same_bits
from tests.gpu.gguf_files import write_model
from tests.gpu.native_models import HYBRID, ODD
from tests.gpu.packed_files import WAYS, write_packed
from tests.gpu.quantised import FORMATS, numbers, random_blocks
from tests.gpu.tiny import save_tiny

NAN, INFINITE = float("nan"), float("inf")
VALUES = [NAN, INFINITE, -INFINITE]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e5m2", "float8_e4m3fn"])
def test_every_pattern_of_bits_is_judged_as_the_number_that_it_is(name: str) -> None:
    dtype = dtype_of(name)
    patterns = np.arange(1 << 8 * dtype.itemsize).astype(f"u{dtype.itemsize}").view(dtype)
    finite = np.isfinite(floats_of(patterns))
    assert is_finite(patterns[finite])
    assert not any(is_finite(patterns[place : place + 1]) for place in np.flatnonzero(~finite))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_numbers_are_finite_and_what_is_none_is_found_in_any_place(dtype: Any) -> None:
    weight = np.full((300, 1000), np.finfo(dtype).max, dtype)
    weight[::2] *= -1
    assert is_finite(weight)
    for value in (*VALUES, -np.array(NAN, dtype)):
        for place in ((0, 0), (131, 71), (299, 999)):
            found = weight.copy()
            found[place] = value
            assert not is_finite(found), (value, place)
            assert is_finite(found[:, : place[1]])
            assert not is_finite(found[:, place[1] :]), "a view, as a rank has of some columns"
            assert not is_finite(found.T)
    assert is_finite(weight[:0])


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_blocks_are_finite_if_their_scales_are(kind: BlockFormat) -> None:
    blocks = random_blocks(kind, 3, 512, np.random.default_rng(5))
    assert is_finite(Blocks(blocks, kind))
    places = [
        place
        for place in range(0, kind.num_bytes, 2)
        if not np.isfinite(numbers(kind, _with(blocks, kind, place, NAN))).all()
    ]
    assert 1 <= len(places) <= 2
    for place in places:
        for value in VALUES:
            assert not is_finite(Blocks(_with(blocks, kind, place, value), kind)), (place, value)
    others = set(range(0, kind.num_bytes - 1, 2)) - set(places)
    for place in others:
        assert is_finite(Blocks(_with(blocks, kind, place, NAN), kind)), "what is no scale may have any bits"


def _with(blocks: np.ndarray[Any, Any], kind: BlockFormat, place: int, value: float) -> np.ndarray[Any, Any]:
    """The same with a number of half precision at a place of the last block."""
    found = blocks.copy()
    at = found.shape[1] - kind.num_bytes + place
    found[-1, at : at + 2] = np.array([value], np.float16).view(np.uint8)[: found.shape[1] - at]
    return found


def change(folder: Path, part: str, edit: Callable[[torch.Tensor], object]) -> None:
    """Edit a tensor of a folder."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if part in tensors:
            edit(tensors[part])
        save_file(tensors, path, {"format": "pt"})


def refusal(load: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(NotFinite) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    assert exit_status(caught.value) == EXIT_FAILED
    return str(caught.value)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_is_refused_by_the_name_of_its_weight(dtype: str, value: float, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    change(tmp_path, UP, lambda tensor: tensor[3].fill_(value))
    found = refusal(load_weights, source_at(tmp_path, "tiny"), DTYPES[dtype])
    assert found == f"{tmp_path}: {UP} holds a number that is not finite (NaN or an infinity)"


def test_a_number_too_large_for_the_type_that_is_computed_with_is_none(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    change(tmp_path, UP, lambda tensor: tensor[3].fill_(3.4e38))
    source = source_at(tmp_path, "tiny")
    assert UP in refusal(load_weights, source, DTYPES["bf16"])
    assert load_weights(source, torch.float32)[UP][3, 0] == np.float32(3.4e38)


def test_a_double_too_large_for_single_precision_is_none(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[UP] = tensors[UP].double()
    tensors[UP][3, 3] = 1e300
    save_file(tensors, file, {"format": "pt"})
    for dtype in DTYPES.values():
        assert UP in refusal(load_weights, source_at(tmp_path, "tiny"), dtype)


def test_of_ranks_the_one_that_keeps_it_refuses(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    change(tmp_path, UP, lambda tensor: tensor[-1].fill_(NAN))
    source = source_at(tmp_path, "tiny")
    first, last = (keeper(Shard(source.config, Topology(tensor=2), rank), Samples()) for rank in (0, 1))
    assert UP in refusal(load_weights, source, torch.float32, keep=last)
    assert UP in load_weights(source, torch.float32, keep=first)


SCALES = {"fp8": "weight_scale_inv", "float-rows": "weight_scale"}


@pytest.mark.parametrize("way", SCALES)
def test_float8_that_is_no_number_is_refused_and_so_is_a_product_too_large(way: str, tmp_path: Path) -> None:
    for part, edit in (
        ("weight", lambda tensor: tensor.view(torch.uint8)[1].fill_(0x7F)),
        (SCALES[way], _largest),
    ):
        packed, _ = write_packed("llama-wide", WAYS[way], tmp_path / part)
        change(packed, f"{UP.removesuffix('.weight')}.{part}", edit)
        for load in (load_weights, load_blocks):
            assert UP in refusal(load, source_at(packed, "tiny"), torch.float32)


def _largest(tensor: torch.Tensor) -> None:
    tensor.fill_(torch.finfo(tensor.dtype).max)


def gguf_with(path: Path, name: str, value: float, *formats: BlockFormat) -> ModelSource:
    """A tiny model with a number in the first scale, or the first number, of a tensor."""
    write_model("llama-wide" if formats else "llama", "llama", path, formats=formats)
    tensor = next(each for each in gguf.GGUFReader(path).tensors if each.name == name)
    kind = np.float16 if tensor.tensor_type != gguf.GGMLQuantizationType.F32 else np.float32
    data, at = bytearray(path.read_bytes()), int(tensor.data_offset)
    data[at : at + np.dtype(kind).itemsize] = np.array([value], kind).tobytes()
    path.write_bytes(data)
    return source_at(path, "tiny")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("name", "canonical", "formats"),
    [
        ("blk.1.ffn_up.weight", UP, (BlockFormat.Q4_1, BlockFormat.Q8_0)),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight", (BlockFormat.Q8_0,)),
        ("blk.1.ffn_up.weight", UP, ()),
    ],
)
def test_a_gguf_file_is_refused_whether_its_blocks_are_kept_or_not(
    name: str, canonical: str, formats: tuple[BlockFormat, ...], value: float, tmp_path: Path
) -> None:
    source = gguf_with(tmp_path / "tiny.gguf", name, value, *formats)
    assert source.has_blocks == bool(formats)
    for load in (load_weights, load_blocks) if formats else (load_weights,):
        assert canonical in refusal(load, source, torch.float32)


def test_kept_weights_with_such_a_number_are_made_again(tmp_path: Path) -> None:
    write_model("llama", "llama", tmp_path / "tiny.gguf")
    source = source_at(tmp_path / "tiny.gguf", "tiny")
    assert source.file is not None
    first = load_cached_weights(source.file, source.config, torch.bfloat16, tmp_path)
    wanted = {name: weight.copy() for name, weight in first.items()}
    damaged = {name: weight.copy() for name, weight in wanted.items()}
    damaged[UP].view(np.uint16)[2, 2] = 0xFF80
    write_entry(entry_path(source.file, torch.bfloat16, tmp_path), damaged)
    for _ in range(2):
        found = load_cached_weights(source.file, source.config, torch.bfloat16, tmp_path)
        assert all(same_bits(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("value", VALUES)
def test_weights_that_are_sent_are_refused(value: float, tmp_path: Path) -> None:
    config = source_at(save_tiny("llama", tmp_path), "tiny").config
    sent = {UP: np.zeros((config.intermediate_size, config.hidden_size), np.float32)}
    assert sent_weights(sent, config, torch.bfloat16).keys() == {UP}
    sent[UP][-1, -1] = value
    assert refusal(sent_weights, sent, config, torch.bfloat16).startswith(f"what was sent: {UP} holds")


@pytest.mark.parametrize("factor", [*VALUES, 0.0, 1e-45])
def test_a_rope_that_turns_by_no_number_is_refused(factor: float, tmp_path: Path) -> None:
    config = source_at(save_tiny("llama", tmp_path), "tiny").config
    factors = (1.0,) * (config.head_dim // 2 - 1)
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    good = type(config)(**fields | {"rope": type(config.rope)(config.rope.base, (*factors, 8.0))})
    with pytest.raises(UnsupportedModel, match="angles that are not finite"):
        type(config)(**fields | {"rope": type(config.rope)(config.rope.base, (*factors, factor))})
    assert good.rope.factors[-1] == 8.0


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("value", [3e38, 1.0])
def test_a_model_whose_finite_weights_are_too_large_for_any_score_is_refused_at_its_start(
    value: float, windows: bool
) -> None:
    config = HYBRID if windows else ODD
    weights = random_weights(config, torch.float32)
    if value != 1.0:
        weights["model.layers.0.self_attn.o_proj.weight"].fill_(value)
    more = {"num_window_pages": 8} if windows else {}
    size: dict[str, Any] = {"num_pages": 8, "page_size": 4, "num_slots": 2, "max_context": 16}
    runner = Runner(config, weights, dtype=torch.float32, **size, **more)
    if value == 1.0:
        check_scores(runner, "m", config.vocab_size, 4, windows=windows)
        return
    with pytest.raises(NoScores, match="m: the model's scores are not finite numbers, whatever it reads") as caught:
        check_scores(runner, "m", config.vocab_size, 4, windows=windows)
    assert exit_status(caught.value) == EXIT_FAILED
