"""Adapters as PEFT saves them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

The tensors say which matrices are changed; the configuration says by how much, and must not contradict them. What would
make PEFT compute something else than `low_rank.py` describes is refused by its name. Pickles are never opened.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.adapters.low_rank import PRODUCTS, Adapter, LowRank, adaptable, fused
from pawl.gpu.dtypes import BFLOAT16, FLOAT32, floats_of, name_of, tensor_of
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.registry import of_config
from pawl.gpu.step_runner import AdapterRefused
from pawl.gpu.weights.finite import NOT_FINITE, is_finite
from pawl.gpu.weights.locate import PICKLE_SUFFIXES
from pawl.gpu.weights.safetensors import FolderError, read_tensors
from pawl.gpu.weights.strangers import read_object

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MOST_RANK = 256
MOST_NUMBER = 1e6
"""Of a rank, an alpha and a scale."""
MOST_PATTERNS = 4096
MOST_CONFIG = 1 << 20
"""Bytes."""
MOST_HEADER = 16 << 20
"""Bytes of names and sizes in a safetensors file."""
MOST_NAME = 256
"""Characters of a module's name, and of a pattern."""
_PATTERN = re.compile(r"\^?(\w|\.|\\\.|-)+\$?")
"""A name as an expression. PEFT takes any, but a stranger's could keep a matcher busy for years."""
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_DTYPES = (FLOAT32, BFLOAT16, np.dtype(np.float16))
_OFF: dict[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "fan_in_fan_out": "matrices that are stored transposed",
    "lora_bias": "biases of an adapter",
    "modules_to_save": "modules that are saved whole",
    "layer_replication": "layers that are there more than once",
    "trainable_token_indices": "tokens with embeddings of their own",
    "alora_invocation_tokens": "adapters that begin at a token",
    "target_parameters": "adapters of parameters that are no linear layer, as those of experts",
    "megatron_config": "Megatron's layers",
    "arrow_config": "adapters chosen by a router",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Keys that change the computation, with what they switch on. Off is null, false or empty."""
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the model's own weights alone."""
_DIGITS = 32


class AdapterLimits(NamedTuple):
    """What an operator lets adapters be."""

    max_rank: int = MOST_RANK
    targets: tuple[str, ...] = ()
    """Modules that they may change, by the last part of the name; empty: all."""


Patterns: TypeAlias = list[tuple[re.Pattern[str], float]]


def read_adapter(source: str, config: ModelConfig, limits: AdapterLimits = AdapterLimits()) -> Adapter:  # noqa: B008
    """The adapter in the folder `source`, for the model of `config`, in float32. Raises AdapterRefused."""
    folder = Path(source)
    try:
        _check_files(folder, config)
        return _read(folder, _Settings(read_object(folder / CONFIG, AdapterRefused), limits), config)
    except (OSError, FolderError, MemoryError, ValueError) as error:
        raise AdapterRefused(f"adapter {source}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _check_files(folder: Path, config: ModelConfig) -> None:
    """Raises AdapterRefused where one is missing, or larger than any could be."""
    if not (folder / CONFIG).is_file():
        raise AdapterRefused(f"there is no {CONFIG}: is this a PEFT folder?")
    if not (folder / TENSORS).is_file():
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
        why = f"; {pickles[0]} is a pickle, which is never opened" if pickles else ""
        raise AdapterRefused(f"there is no {TENSORS}{why}")
    most = MOST_HEADER + 4 * MOST_RANK * sum(map(sum, adaptable(config).values()))
    for name, limit in ((CONFIG, MOST_CONFIG), (TENSORS, most)):
        if (size := (folder / name).stat().st_size) > limit:
            raise AdapterRefused(f"{name} has {size} bytes; of no adapter of this model it has more than {limit}")


class _Settings:
    """What `adapter_config.json` says. Raises AdapterRefused."""

    def __init__(self, values: Mapping[str, Any], limits: AdapterLimits) -> None:
        self._limits = limits
        if values.get("peft_type") != "LORA":
            raise AdapterRefused(f"peft_type is {values.get('peft_type')!r:.60}; LORA adapters are served")
        for key, what in _OFF.items():
            if values.get(key) not in (None, False, [], {}):
                raise AdapterRefused(f"{key} is set: {what} are not supported")
        if values.get("bias", "none") != "none":
            raise AdapterRefused(f"bias is {values['bias']!r:.60}: biases of an adapter are not supported")
        begun = values.get("init_lora_weights")
        if isinstance(begun, (list, dict, float)) or begun not in _PLAIN_BEGINNINGS:
            raise AdapterRefused(f"init_lora_weights is {begun!r:.60}, which changes the model's own weights")
        if values.get("use_rslora") not in (None, False, True):
            raise AdapterRefused(f"use_rslora is {values['use_rslora']!r:.60}, not true or false")
        self._stabilised = bool(values.get("use_rslora"))
        self._rank = _number(values, "r", 8)
        self._alpha = _number(values, "lora_alpha", 8)
        self._ranks = _patterns(values, "rank_pattern")
        self._alphas = _patterns(values, "alpha_pattern")
        self._targets = _names(values.get("target_modules"))

    def check_target(self, name: str) -> None:
        """Raises AdapterRefused for tensors of a module that the configuration does not name. An expression is not
        looked at: it chose the modules when the adapter was made, and the tensors are those."""
        allowed, targets = self._limits.targets, self._targets
        if allowed and name.rpartition(".")[2] not in allowed:
            raise AdapterRefused(f"it is incompatible: it changes {name:.120}; served are only {', '.join(allowed)}")
        if isinstance(targets, tuple) and not any(name == one or name.endswith(f".{one}") for one in targets):
            raise AdapterRefused(f"there are tensors for {name:.120}, which target_modules does not name")

    def scale(self, name: str, rank: int) -> float:
        """What the product of rank `rank` for this module is multiplied by. Raises AdapterRefused for another rank
        than the configuration says, or one above the limit."""
        wanted = _value(self._ranks, name, self._rank)
        if rank != wanted:
            raise AdapterRefused(f"{name:.120} has rank {rank}, the configuration says {wanted:g}")
        if not 1 <= rank <= self._limits.max_rank:
            most = self._limits.max_rank
            raise AdapterRefused(f"it is incompatible: {name:.120} has rank {rank}; served are ranks from 1 to {most}")
        scale = _value(self._alphas, name, self._alpha) / (math.sqrt(rank) if self._stabilised else rank)
        if not abs(scale) <= MOST_NUMBER:
            raise AdapterRefused(f"{name:.120} has scale {scale:g}")
        return scale


def _number(values: Mapping[str, Any], key: str, otherwise: float) -> float:
    found = values.get(key, otherwise)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) <= MOST_NUMBER:
        raise AdapterRefused(f"{key} is {found!r:.60}, not a number that can be")
    return float(found)


def _patterns(values: Mapping[str, Any], key: str) -> Patterns:
    found = values.get(key) or {}
    if not isinstance(found, dict) or len(found) > MOST_PATTERNS:
        raise AdapterRefused(f"{key} is not an object of at most {MOST_PATTERNS} entries")
    for pattern in found:
        if len(pattern) > MOST_NAME or not _PATTERN.fullmatch(pattern):
            raise AdapterRefused(f"{key} has the expression {pattern[:60]!r}; names of modules are read, with dots")
    return [(re.compile(rf"(.*\.)?({pattern})$"), _number(found, pattern, 0)) for pattern in found]


def _value(patterns: Patterns, name: str, otherwise: float) -> float:
    """The value of the first pattern that means the module `name`, as PEFT chooses it."""
    return next((value for pattern, value in patterns if pattern.match(name)), otherwise)


def _names(targets: Any) -> tuple[str, ...] | str:
    if isinstance(targets, str):
        return targets
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise AdapterRefused(f"target_modules is {targets!r:.60}, neither a list of names nor an expression")
    return tuple(targets)


def _read(folder: Path, settings: _Settings, config: ModelConfig) -> Adapter:
    shapes = adaptable(config)
    modules: dict[str, dict[str, NDArray[Any]]] = {}
    # Whoever writes the file anew must not change what is read.
    for name, tensor in read_tensors(folder / TENSORS, mapped=False):
        found = _NAME.fullmatch(name) if len(name) <= MOST_NAME else None
        if found is None:
            raise AdapterRefused(_of_others(name) or f"{name:.120} is no matrix of a LoRA adapter of a linear layer")
        if tensor.ndim != 2 or tensor.dtype not in _DTYPES:
            raise AdapterRefused(
                f"{name:.120} is {name_of(tensor.dtype)} {tensor.shape}, not a matrix of floating point"
            )
        modules.setdefault(found[1], {})[found[2]] = tensor
    matrices: dict[str, LowRank] = {}
    for module, pair in modules.items():
        for name, low in _matrices(module, pair, settings, config, shapes):
            if name in matrices:
                raise AdapterRefused(f"{name} is changed twice")
            matrices[name] = low
    if not matrices:
        raise AdapterRefused("it changes nothing")
    digest = hashlib.sha256()
    for name, low in sorted(matrices.items()):
        digest.update(f"{name} {tuple(low.shrink.shape)}\n".encode())
        for part in low:
            digest.update(part.contiguous().numpy().astype("<f4").tobytes())
    return fused(config, digest.hexdigest()[:_DIGITS], matrices)


def _matrices(
    module: str,
    pair: Mapping[str, NDArray[Any]],
    settings: _Settings,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, int]],
) -> Iterator[tuple[str, LowRank]]:
    """What is added to each matrix of the model by one module of a checkpoint, which may hold several of them."""
    if len(pair) != 2:
        raise AdapterRefused(f"{module} has no lora_{'A' if 'B' in pair else 'B'}")
    down, up = pair["A"], pair["B"]
    if len(down) != up.shape[1]:
        raise AdapterRefused(f"{module} has rank {len(down)} in lora_A and {up.shape[1]} in lora_B")
    settings.check_target(module)
    scale = settings.scale(module, len(down))
    for weight, rows in of_config(config).split(f"{module}.weight", up, config):
        name = weight.removesuffix(".weight")
        if name not in shapes:
            known = ", ".join(part.split(".")[1] for product in PRODUCTS.values() for part in product)
            reason = f"{name} is not a matrix of this {config.architecture} that an adapter can change ({known})"
            raise AdapterRefused(_of_others(name) or reason)
        outputs, inputs = shapes[name]
        if (len(rows), down.shape[1]) != (outputs, inputs):
            raise AdapterRefused(f"{name} is for a matrix of {len(rows)} x {down.shape[1]}, not {outputs} x {inputs}")
        with np.errstate(over="ignore", invalid="ignore"):
            parts = {"A": floats_of(down), "B": floats_of(rows) * np.float32(scale)}
        for part, numbers in parts.items():
            if not is_finite(numbers):
                raise AdapterRefused(f"{module}.lora_{part} {NOT_FINITE}")
        yield name, LowRank(*map(tensor_of, parts.values()))


def _of_others(name: str) -> str | None:
    """Why a part of a model that adapters may change elsewhere is refused here, in words."""
    if "expert" in name or name.endswith(("mlp.gate", "block_sparse_moe.gate")):
        return f"{name:.120}: adapters of experts and of their router are not supported"
    if any(part in name for part in ("lm_head", "embed_tokens")):
        return f"{name:.120}: adapters of embeddings and of the head are not supported"
    return None
