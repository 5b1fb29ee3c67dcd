"""A Hugging Face folder as a model: `config.json` and safetensors files, one or sharded. Pickles are never opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.models.huggingface import config_from_huggingface
from pawl.gpu.models.registry import of_config
from pawl.gpu.weights.blocks import Weight, numbers_of
from pawl.gpu.weights.checks import Keep, Kept, all_of_it, check_names, is_norm
from pawl.gpu.weights.experts import separated
from pawl.gpu.weights.locate import PICKLE_SUFFIXES
from pawl.gpu.weights.overlay import Overlay
from pawl.gpu.weights.report import Report, unheard
from pawl.gpu.weights.strangers import one_line, read_object, reading

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SENT = "what was sent"
"""Stands for a path where tensors come from no file."""
MOST_NAMED = 4
"""Files that a message names."""


class FolderError(Exception):
    """The folder is not a model that can be loaded. `reason` says what to change."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def folder_config(folder: Path) -> ModelConfig:
    """The model that `config.json` describes. Raises FolderError or UnsupportedModel."""
    refusal = partial(FolderError, folder)
    try:
        values = read_object(folder / "config.json", refusal)
    except FileNotFoundError:
        raise refusal("there is no config.json: is this a Hugging Face model folder?") from None
    with reading("config.json", refusal):
        return config_from_huggingface(values)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order: `model.safetensors`, else those of the index, else all there are.

    Raises FolderError where there is none, or a shard is missing.
    """
    refusal = partial(FolderError, folder)
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        index = read_object(folder / INDEX, refusal)
        with reading(INDEX, refusal):
            names = sorted({str(name) for name in index["weight_map"].values()})
        # The index comes with the checkpoint, and so from anywhere: a name in it must not leave the folder.
        if not names or any(Path(name).name != name for name in names):
            raise refusal(f"{INDEX} names no files, or files outside the folder")
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise refusal(f"shards are missing: {', '.join(absent[:MOST_NAMED])}")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise refusal(
            f"{pickles[0]} is a pickle, which can run any code when opened, so it is refused; "
            "convert the weights to safetensors"
        )
    raise refusal("there are no *.safetensors files")


def read_tensors(path: Path, *, mapped: bool = True) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for each tensor of one safetensors file, in the order of names, as views of a private memory map.
    Not `mapped`: as copies, which whoever writes the file anew cannot change any more. Raises FolderError."""
    with reading("a safetensors file", partial(FolderError, path)):
        try:
            if not mapped:
                yield from sorted(load(path.read_bytes()).items())
                return
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in sorted(file.keys()):
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise FolderError(path, f"damaged safetensors file: {one_line(error)}") from error


def load_folder_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    report: Report = unheard,
    *,
    mapped: bool = True,
    keep: Keep = all_of_it,
) -> dict[str, Tensor]:
    """Every weight in `dtype` (norms float32) under its canonical name; Gemma's norms with the 1 added.

    `mapped`: weights that are stored in `dtype` may be views of the files; else all are copies. Only what is to `keep`
    is returned. Raises FolderError, or WeightMismatch when names or shapes are not what `config` needs.
    """
    weights = Kept(weight_shapes(config), keep)
    for path in weight_files(folder):
        for stored in read_tensors(path, mapped=mapped):
            weights.take(canonical(path, *stored, config, dtype))
            report(weights.share)
    return weights.complete(folder)


def canonical(
    path: Path | str, name: str, stored: Tensor, config: ModelConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What one tensor of the checkpoint at `path` is to the model, by canonical names, in `dtype` (norms float32).
    Raises FolderError for numbers that are no weights."""
    row, found = of_config(config), dict[str, Tensor]()
    for part, tensor in (each for one in separated(name, stored) for each in row.split(*one, config)):
        # A tied head is sometimes stored again, and old Llama files store the rope's frequencies.
        if (part == "lm_head.weight" and config.tied_embeddings) or part.endswith("rotary_emb.inv_freq"):
            continue
        if not tensor.is_floating_point():
            raise FolderError(path, f"{part} is stored as {tensor.dtype}, which is no floating-point number")
        found[part] = _converted(part, tensor, row.norm_offset, dtype)
    return found


def sent_weights(tensors: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of some weights that were sent under the names of a checkpoint, by canonical names. Raises FolderError, or
    WeightMismatch for names or shapes that are not the model's."""
    weights = dict[str, Tensor]()
    for name, tensor in sorted(tensors.items()):
        weights |= canonical(SENT, name, tensor, config, dtype)
    shapes = weight_shapes(config)
    wanted = {name: shapes[name] for name in weights if name in shapes}
    check_names(SENT, wanted, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    return {name: tensor.clone() for name, tensor in weights.items()}


def parsed(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FolderError."""
    with reading("safetensors", partial(FolderError, SENT)):
        try:
            return load(data)
        except SafetensorError as error:
            raise FolderError(SENT, f"damaged safetensors: {one_line(error)}") from error


def as_stored(weights: Mapping[str, Weight], config: ModelConfig) -> Mapping[str, Weight]:
    """Canonical weights with the values that a checkpoint has: what was added to norms is taken away."""
    offset = of_config(config).norm_offset
    if not offset:
        return weights
    return Overlay({name: numbers_of(weights[name]) - offset for name in weights if is_norm(name)}, weights)


def _converted(name: str, tensor: Tensor, norm_offset: float, dtype: torch.dtype) -> Tensor:
    if not is_norm(name):
        return tensor.to(dtype)
    return tensor.to(torch.float32) + norm_offset
