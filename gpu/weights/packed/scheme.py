"""How the matrices of a Hugging Face folder are quantised: what its `config.json` says of it, checked.

    compressed-tensors   pack-quantized (int4, int8), int-quantized and naive-quantized (int8), float-quantized (float8)
    awq                  4 bits, of the version "gemm"
    gptq                 4 and 8 bits, of the formats "gptq" and "gptq_v2"
    fp8                  float8

How activations are to be rounded is not followed: they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pawl.gpu.models.facts import Facts

Layout: TypeAlias = Literal["awq", "gptq", "packed", "plain"]
"""How a matrix lies in the file: see `pawl.gpu.weights.packed.layouts`."""
KEYS = ("quantization_config", "compression_config")
"""Of `config.json`, the second one in old files."""
BLOCK_INPUTS = 32
"""Inputs that share a scale in the smallest blocks that the compiled kernels compute."""
_KINDS = {
    "pack-quantized": ("int",),
    "int-quantized": ("int",),
    "naive-quantized": ("int", "float"),
    "float-quantized": ("float",),
}
"""Of numbers, in the formats of compressed-tensors."""
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What all quantised matrices of a folder have in common."""

    method: str
    """Its name in the file."""
    layout: Layout
    bits: int
    outputs: int | None = 1
    """Outputs that share a scale; None: all of a matrix."""
    inputs: int | None = None
    """Inputs that do, and share a zero point; None: all of a row."""
    required: tuple[str, ...]
    """Tensors of a matrix, by the ends of their names."""
    optional: tuple[str, ...] = ()
    zeros_less_one: bool = False
    """Zero points are stored less one."""
    floating: bool = False
    """Numbers are float8, and no integers."""
    reordered: bool = False
    """Which inputs share a scale is said for each input by itself."""

    @property
    def scale(self) -> str:
        """The name of the tensor of scales."""
        return self.required[-1]

    @property
    def has_blocks(self) -> bool:
        """Whether its matrices can be blocks that the compiled kernels compute: integers, a scale for 32 of a row."""
        return not (self.floating or self.reordered) and (self.inputs or BLOCK_INPUTS) % BLOCK_INPUTS == 0


def scheme_of(values: Mapping[str, Any]) -> Scheme | None:
    """That of the model of a `config.json`; None where it is not quantised. Raises UnsupportedModel for one that is not
    known."""
    facts = Facts(str(values.get("model_type", "(none)")), values)
    if not any(key in facts for key in KEYS):
        return None
    said = facts.within(*KEYS)
    return _METHODS[_known(said, "quant_method", said.word("quant_method"), tuple(_METHODS))](said)


def _known(said: Facts, key: str, value: Any, known: tuple[Any, ...]) -> Any:
    """The value, if it is one of `known`. Raises UnsupportedModel."""
    if value not in known:
        raise said.refuse(
            f"{key} {str(value)[:_SHOWN]!r} of its quantised weights; known: {', '.join(map(str, known))}"
        )
    return value


def _group(said: Facts) -> int | None:
    """Inputs that share a scale; None: all."""
    size = said.whole("group_size", least=-1)
    if size == 0:
        raise said.refuse("group_size 0 of its quantised weights")
    return size if size > 0 else None


def _awq(said: Facts) -> Scheme:
    _known(said, "version", said.word("version", said.word("format", "gemm")).lower(), ("gemm",))
    return Scheme(
        method="awq",
        layout="awq",
        bits=_known(said, "bits", said.whole("bits"), (4,)),
        inputs=_group(said),
        required=("qweight", "qzeros", "scales"),
    )


def _gptq(said: Facts) -> Scheme:
    written = said.word("checkpoint_format", said.word("format", "gptq"))
    _known(said, "checkpoint_format", written, ("gptq", "gptq_v2"))
    _known(said, "pack_dtype", said.word("pack_dtype", "int32"), ("int32",))
    others = [name for name in said.raw("dynamic", {}) if not str(name).startswith("-:")]
    if others:
        raise said.refuse(f"dynamic {others[0][:_SHOWN]!r}: modules that are quantised otherwise are not supported")
    return Scheme(
        method="gptq",
        layout="gptq",
        bits=_known(said, "bits", said.whole("bits"), (4, 8)),
        inputs=_group(said),
        required=("qweight", "qzeros", "scales"),
        optional=("g_idx",),
        zeros_less_one=written == "gptq",
        reordered=said.flag("desc_act"),
    )


def _compressed_tensors(said: Facts) -> Scheme:
    for key in ("kv_cache_scheme", "transform_config"):
        if key in said and said.raw(key) != {}:
            raise said.refuse(f"{key} of its quantised weights is set, which is not supported")
    sparsity = said.within("sparsity_config")
    _known(sparsity, "format", sparsity.word("format", "dense"), ("dense",))
    groups = said.raw("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise said.refuse(f"{len(groups)} config_groups of its quantised weights; known: 1")
    group = said.within("config_groups").within(*groups)
    written = group.word("format", said.word("format"))
    kinds = _KINDS[_known(said, "format", written, tuple(_KINDS))]
    weights = group.within("weights")
    kind = _known(weights, "type", weights.word("type", "int"), kinds)
    packed = written == "pack-quantized"
    outputs, inputs = _shared(weights)
    reordered = weights.raw("actorder", "") in ("group", "dynamic")
    stored = ("weight_packed", "weight_shape") if packed else ("weight",)
    zero_point = () if "symmetric" not in weights or weights.flag("symmetric") else ("weight_zero_point",)
    order = ("weight_g_idx",) if reordered else ()
    return Scheme(
        method=f"compressed-tensors, {written}",
        layout="packed" if packed else "plain",
        bits=_known(weights, "num_bits", weights.whole("num_bits", 8), (4, 8) if packed else (8,)),
        outputs=outputs,
        inputs=inputs,
        required=(*stored, *zero_point, *order, "weight_scale"),
        optional=("weight_zero_point", "weight_g_idx"),
        floating=kind == "float",
        reordered=reordered,
    )


def _shared(weights: Facts) -> tuple[int | None, int | None]:
    """Outputs and inputs that share a scale."""
    size = weights.raw("group_size", 0)
    inferred = "tensor" if size == 0 else "channel" if size == -1 else "group"
    strategy = weights.word("strategy", inferred)
    match _known(weights, "strategy", strategy, ("tensor", "channel", "group", "block")):
        case "tensor":
            return None, None
        case "channel":
            return 1, None
        case "group":
            return 1, _group(weights)
        case _:
            return _block(weights, "block_structure")


def _fp8(said: Facts) -> Scheme:
    _known(said, "fmt", said.word("fmt", "e4m3"), ("e4m3",))
    blocks = "weight_block_size" in said
    outputs, inputs = _block(said, "weight_block_size") if blocks else (None, None)
    return Scheme(
        method="fp8",
        layout="plain",
        bits=8,
        outputs=outputs,
        inputs=inputs,
        required=("weight", "weight_scale_inv" if blocks else "weight_scale"),
        floating=True,
    )


def _block(said: Facts, key: str) -> tuple[int, int]:
    """A list of two sizes."""
    sizes = dict(zip(("outputs", "inputs"), said.sequence(key) or (), strict=False))
    within = Facts(said.model, sizes, file=key)
    return within.whole("outputs"), within.whole("inputs")


_METHODS: Mapping[str, Callable[[Facts], Scheme]] = {
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "gptq": _gptq,
}
