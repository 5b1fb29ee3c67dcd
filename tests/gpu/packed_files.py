"""Tiny models as folders of quantised matrices, packed number by number as the formats are defined."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.gpu.tiny import save_tiny

Numbers = NDArray[Any]
_QUANTISED = re.compile(r"model\.layers\..*\.(\w+_proj|w[123])\.weight")


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix [outputs, inputs]."""

    quants: Numbers
    """Whole numbers from 0 to 2**bits - 1; or what float8 has."""
    zeros: Numbers
    """[outputs, groups], as many."""
    scales: Numbers
    """float32 [outputs, groups]"""
    groups: Numbers
    """[inputs]"""

    @property
    def numbers(self) -> Tensor:
        """What it means, float32."""
        wholes = (self.quants - self.zeros[:, self.groups]).astype(np.float32)
        return torch.from_numpy(wholes * self.scales[:, self.groups])


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to quantise all linear layers."""

    config: dict[str, Any]
    """What `quantization_config` says."""
    pack: Callable[[Matrix, Way], dict[str, Any]]
    """The tensors of a matrix, by the ends of their names."""
    bits: int = 4
    inputs: int | None = 32
    """That share a scale; None: all."""
    outputs: int | None = 1
    zeros: tuple[int, int] | None = None
    """Zero points are from these, the second one included; None: the middle."""
    ordered: bool = False
    """Inputs belong to groups in an order of their own."""
    floating: bool = False
    block: str | None = None
    """Format of the blocks that its matrices become; None: they become none."""

    def matrix(self, outputs: int, inputs: int, random: np.random.Generator) -> Matrix:
        """A random one."""
        count = -(-inputs // (self.inputs or inputs))
        groups = np.arange(inputs) // (self.inputs or inputs)
        low, high = self.zeros or (1 << (self.bits - 1),) * 2
        quants = random.integers(0, 1 << self.bits, (outputs, inputs))
        quants[0, :2] = 0, (1 << self.bits) - 1
        zeros = random.integers(low, high + 1, (outputs, count))
        if self.floating:
            floats = torch.from_numpy(128 * random.normal(size=(outputs, inputs)))
            quants, zeros = floats.to(torch.float8_e4m3fn).float().numpy(), np.zeros_like(zeros)
        # Seven bits: a number of every type.
        different = random.integers(64, 128, (-(-outputs // (self.outputs or outputs)), count))
        scales = (different * 2.0 ** -(self.bits + 8)).astype(np.float32)
        return Matrix(
            quants=quants,
            zeros=zeros,
            scales=np.repeat(scales, self.outputs or outputs, 0)[:outputs],
            groups=random.permutation(groups) if self.ordered else groups,
        )


def words(numbers: Numbers, bits: int, order: tuple[int, ...] | None = None) -> Numbers:
    """int32 [n, ⌈m / each⌉] of [n, m] numbers: each word has those of `each` columns, in `order`, the lowest bits
    first."""
    each = 32 // bits
    places = order or tuple(range(each))
    found = np.zeros((len(numbers), -(-numbers.shape[1] // each)), np.int64)
    for column in range(numbers.shape[1]):
        word, place = divmod(column, each)
        found[:, word] |= numbers[:, column] << (bits * places.index(place))
    return found.astype(np.uint32).view(np.int32)


# ---- AWQ, GPTQ ----


def _awq(matrix: Matrix, way: Way) -> dict[str, Any]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(matrix.quants.T, 4, order),
        "qzeros": words(matrix.zeros.T, 4, order),
        "scales": matrix.scales.T.astype(np.float16),
    }


def _gptq(matrix: Matrix, way: Way) -> dict[str, Any]:
    zeros = words(matrix.zeros.T, way.bits)
    if way.config.get("checkpoint_format") != "gptq_v2":
        ones = np.full_like(matrix.zeros.T, 1)
        zeros = (zeros.view(np.uint32) - words(ones, way.bits).view(np.uint32)).view(np.int32)
    return {
        "qweight": words(matrix.quants, way.bits).T,
        "qzeros": zeros,
        "scales": matrix.scales.T.astype(np.float16),
        "g_idx": matrix.groups.astype(np.int32),
    }


# ---- compressed-tensors, fp8 ----


def _bfloat16(scales: Numbers, way: Way) -> Tensor:
    """Of rows and columns only those that differ."""
    return torch.from_numpy(scales[:: way.outputs or len(scales)].copy()).bfloat16()


def _pack_quantized(matrix: Matrix, way: Way) -> dict[str, Any]:
    tensors = {
        "weight_packed": words(matrix.quants, way.bits),
        "weight_scale": _bfloat16(matrix.scales, way),
        "weight_shape": np.array(matrix.quants.shape, np.int64),
    }
    if way.zeros is not None:
        tensors["weight_zero_point"] = words(matrix.zeros.T, way.bits).T
    return tensors | ({"weight_g_idx": matrix.groups.astype(np.int32)} if way.ordered else {})


def _older_pack_quantized(matrix: Matrix, way: Way) -> dict[str, Any]:
    signed = {"weight_zero_point": (matrix.zeros - (1 << (way.bits - 1))).astype(np.int8)}
    return _pack_quantized(matrix, way) | signed | {"weight_g_idx": np.full(matrix.groups.shape, -1, np.int32)}


def _int_quantized(matrix: Matrix, way: Way) -> dict[str, Any]:
    signed = {"weight": matrix.quants - 128} | ({"weight_zero_point": matrix.zeros - 128} if way.zeros else {})
    scale = {"weight_scale": _bfloat16(matrix.scales, way), "input_scale": np.ones(1, np.float32)}
    return {name: numbers.astype(np.int8) for name, numbers in signed.items()} | scale


def _float_quantized(matrix: Matrix, way: Way) -> dict[str, Any]:
    scale = _bfloat16(matrix.scales, way)
    name = "weight_scale_inv" if "weight_block_size" in way.config else "weight_scale"
    stored = torch.from_numpy(matrix.quants).to(torch.float8_e4m3fn)
    return {"weight": stored, name: scale.reshape(()) if scale.numel() == 1 else scale}


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "input_activations": None, "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], "config_groups": groups}


def _group(symmetric: bool, **more: Any) -> dict[str, Any]:
    return {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32, **more}


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
_CHANNEL = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
_AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}
WAYS = {
    "awq": Way(config=_AWQ, pack=_awq, zeros=(0, 15), block="Q5_0"),
    "gptq": Way(config=_GPTQ | {"sym": True}, pack=_gptq, block="Q4_0"),
    "gptq-zeros": Way(config=_GPTQ, pack=_gptq, zeros=(0, 15), block="Q5_0"),
    "gptq-v2": Way(config=_GPTQ | {"checkpoint_format": "gptq_v2"}, pack=_gptq, zeros=(0, 15), block="Q5_0"),
    "gptq-rows": Way(config=_GPTQ | {"group_size": -1}, pack=_gptq, inputs=None, zeros=(3, 9), block="Q5_0"),
    "gptq-8": Way(config=_GPTQ | {"bits": 8}, pack=_gptq, bits=8, block="Q8_0"),
    "gptq-8-zeros": Way(config=_GPTQ | {"bits": 8}, pack=_gptq, bits=8, zeros=(0, 255)),
    "gptq-order": Way(config=_GPTQ | {"desc_act": True}, pack=_gptq, zeros=(1, 15), ordered=True),
    "gptq-small": Way(config=_GPTQ | {"group_size": 16}, pack=_gptq, inputs=16),
    "pack-4": Way(config=_compressed("pack-quantized", **_group(True)), pack=_pack_quantized, block="Q4_0"),
    "pack-4-zeros": Way(
        config=_compressed("pack-quantized", **_group(False)), pack=_pack_quantized, zeros=(0, 15), block="Q5_0"
    ),
    "pack-4-older": Way(
        config=_compressed("pack-quantized", **_group(False)), pack=_older_pack_quantized, zeros=(0, 15), block="Q5_0"
    ),
    "pack-4-order": Way(
        config=_compressed("pack-quantized", **_group(True, actorder="group")), pack=_pack_quantized, ordered=True
    ),
    "pack-8": Way(
        config=_compressed("pack-quantized", **_CHANNEL), pack=_pack_quantized, bits=8, inputs=None, block="Q8_0"
    ),
    "int-8": Way(
        config=_compressed("int-quantized", **_CHANNEL), pack=_int_quantized, bits=8, inputs=None, block="Q8_0"
    ),
    "int-8-zeros": Way(
        config=_compressed("int-quantized", **_CHANNEL | {"symmetric": False}),
        pack=_int_quantized,
        bits=8,
        inputs=None,
        zeros=(100, 200),
    ),
    "float-rows": Way(
        config=_compressed("float-quantized", **_FLOAT8, strategy="channel"),
        pack=_float_quantized,
        inputs=None,
        floating=True,
    ),
    "float-one": Way(
        config=_compressed("naive-quantized", **_FLOAT8, strategy="tensor"),
        pack=_float_quantized,
        inputs=None,
        outputs=None,
        floating=True,
    ),
    "fp8": Way(
        config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [24, 40]},
        pack=_float_quantized,
        inputs=40,
        outputs=24,
        floating=True,
    ),
}


@cache
def _saved(name: str) -> tuple[dict[str, Tensor], str]:
    """A tiny model's tensors as a folder has them, and its `config.json`."""
    with TemporaryDirectory() as folder:
        path = save_tiny(name, Path(folder))
        return load_file(path / "model.safetensors"), (path / "config.json").read_text()


def write_packed(name: str, way: Way, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """The folders of a tiny model whose linear layers are quantised, and of the same model in float32."""
    random, (saved, values) = np.random.default_rng(seed), _saved(name)
    plain, packed = dict(saved), dict[str, Tensor]()
    for key, tensor in saved.items():
        if not _QUANTISED.fullmatch(key):
            packed[key] = tensor
            continue
        matrix = way.matrix(*tensor.shape, random)
        plain[key] = matrix.numbers
        for part, found in way.pack(matrix, way).items():
            whole = found if isinstance(found, Tensor) else torch.from_numpy(np.ascontiguousarray(found))
            packed[f"{key.removesuffix('.weight')}.{part}"] = whole.contiguous()
    folders = folder / "packed", folder / "plain"
    configs = json.loads(values) | {"quantization_config": way.config}, json.loads(values)
    for path, config in zip(folders, configs, strict=True):
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
    _in_shards(packed, folders[0])
    save_file(plain, folders[1] / "model.safetensors", {"format": "pt"})
    return folders


def _in_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """In two files, the tensors of a matrix in different ones."""
    names = sorted(tensors)
    files = {f"model-{number}-of-2.safetensors": names[number - 1 :: 2] for number in (1, 2)}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
