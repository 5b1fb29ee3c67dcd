"""A Hugging Face folder as a model: `config.json` and safetensors files, one or sharded. Pickles are never opened."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from pawl.gpu.dtypes import FLOAT32, Dtype, converted, dtype_of, floats_of, is_floating, name_of
from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.models.huggingface import config_from_huggingface
from pawl.gpu.models.registry import of_config
from pawl.gpu.weights.blocks import Weight, numbers_of
from pawl.gpu.weights.checks import Keep, Kept, all_of_it, check_names, is_norm
from pawl.gpu.weights.experts import separated
from pawl.gpu.weights.finite import check_finite
from pawl.gpu.weights.locate import PICKLE_SUFFIXES
from pawl.gpu.weights.overlay import Overlay
from pawl.gpu.weights.packed.matrices import Matrices
from pawl.gpu.weights.packed.scaled import Scaled
from pawl.gpu.weights.packed.scheme import Scheme, scheme_of
from pawl.gpu.weights.report import Report, unheard
from pawl.gpu.weights.strangers import one_line, read_object, reading

log = structlog.get_logger("pawl.gpu.weights.safetensors")

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SENT = "what was sent"
"""Stands for a path where tensors come from no file."""
MOST_NAMED = 4
"""Files that a message names."""
Said = TypeVar("Said")
_deserialize: Any = deserialize
_LENGTH = struct.Struct("<Q")
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"} | {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}
"""What a safetensors file calls types of numbers -> what everybody else does."""


class FolderError(Exception):
    """The folder is not a model that can be loaded. `reason` says what to change."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def folder_config(folder: Path) -> ModelConfig:
    """The model that `config.json` describes. Raises FolderError or UnsupportedModel."""
    return _of_config(folder, config_from_huggingface)


def folder_scheme(folder: Path) -> Scheme | None:
    """How `config.json` says that weights are quantised; None: they are not. Raises as `folder_config`."""
    return _of_config(folder, scheme_of)


def _of_config(folder: Path, read: Callable[[Mapping[str, Any]], Said]) -> Said:
    refusal = partial(FolderError, folder)
    try:
        values = read_object(folder / "config.json", refusal)
    except FileNotFoundError:
        raise refusal("there is no config.json: is this a Hugging Face model folder?") from None
    with reading("config.json", refusal):
        return read(values)


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
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if files:
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise refusal(
            f"{pickles[0]} is a pickle, which can run any code when opened, so it is refused; "
            "convert the weights to safetensors"
        )
    raise refusal("there are no *.safetensors files")


def read_tensors(path: Path, *, mapped: bool = True) -> Iterator[tuple[str, NDArray[Any]]]:
    """(name, tensor) for each tensor of one safetensors file, in the order of names, as views of a private memory map.
    Not `mapped`: as copies, which whoever writes the file anew cannot change any more. Raises FolderError."""
    with reading("a safetensors file", partial(FolderError, path)):
        try:
            yield from sorted((_mapped(path) if mapped else _parsed(path.read_bytes())).items())
        except SafetensorError as error:
            raise FolderError(path, f"damaged safetensors file: {one_line(error)}") from error


def names_in(path: Path) -> list[str]:
    """Those of the tensors of one safetensors file. Raises FolderError."""
    with reading("a safetensors file", partial(FolderError, path)):
        try:
            with safe_open(path, framework="numpy") as file:
                return list(file.keys())
        except SafetensorError as error:
            raise FolderError(path, f"damaged safetensors file: {one_line(error)}") from error


def write_tensors(tensors: Mapping[str, Weight], file: BinaryIO) -> None:
    """Write a safetensors file. Raises OSError, or ValueError for a type that such a file cannot hold."""
    arrays = {name: np.ascontiguousarray(numbers_of(tensor)) for name, tensor in sorted(tensors.items())}
    header, end = dict[str, Any](), 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _kind(array.dtype), "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH.size)  # numbers begin where they are aligned
    file.write(_LENGTH.pack(len(text)) + text)
    for array in arrays.values():
        file.write(array.reshape(-1).view(np.uint8).data)


def bytes_of_tensors(tensors: Mapping[str, Weight]) -> bytes:
    """Those of a safetensors file. Raises ValueError as `write_tensors`."""
    file = BytesIO()
    write_tensors(tensors, file)
    return file.getvalue()


def _kind(dtype: np.dtype[Any]) -> str:
    for kind, name in _NAMES.items():
        if name == name_of(dtype):
            return kind
    raise ValueError(f"a safetensors file holds no {name_of(dtype)}")


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """Views of a private map of the file. Raises SafetensorError."""
    with safe_open(path, framework="numpy"):
        pass  # the library has looked at every offset
    with path.open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
    header = json.loads(buffer[_LENGTH.size : begin])
    header.pop("__metadata__", None)
    return {
        name: _array(buffer, found["dtype"], found["shape"], begin + found["data_offsets"][0])
        for name, found in header.items()
    }


def _parsed(data: bytes) -> dict[str, NDArray[Any]]:
    """Copies of the tensors of a file. Raises SafetensorError."""
    return {name: _array(found["data"], found["dtype"], found["shape"]) for name, found in _deserialize(data)}


def _array(buffer: Any, dtype: str, shape: list[int], offset: int = 0) -> NDArray[Any]:
    if dtype not in _NAMES:
        raise ValueError(f"unknown type {dtype[:20]}")
    kind = dtype_of(_NAMES[dtype])
    found: NDArray[Any] = np.ndarray(tuple(shape), kind, buffer, offset)
    return found


def load_folder_weights(
    folder: Path,
    config: ModelConfig,
    dtype: Dtype,
    report: Report = unheard,
    *,
    mapped: bool = True,
    keep: Keep = all_of_it,
    scheme: Scheme | None = None,
) -> dict[str, NDArray[Any]]:
    """Every weight in `dtype` (norms float32) under its canonical name; Gemma's norms with the 1 added. Matrices that
    are quantised, as `scheme` says, are dequantised.

    `mapped`: weights that are stored in `dtype` may be views of the files; else all are copies. Only what is to `keep`
    is returned. Raises FolderError, NotFinite, or WeightMismatch when names or shapes are not what `config` needs.
    """
    weights = Kept(folder, weight_shapes(config), keep)
    for path, name, stored in _stored(folder, config, scheme, mapped=mapped):
        numbers = stored.numbers(dtype_of(dtype)) if isinstance(stored, Scaled) else stored
        weights.take(canonical(path, name, numbers, config, dtype))
        report(weights.share)
    return weights.complete()


def load_folder_blocks(
    folder: Path, config: ModelConfig, dtype: Dtype, scheme: Scheme, report: Report = unheard
) -> dict[str, Weight]:
    """As `load_folder_weights`, but quantised matrices are blocks of the very same numbers, where there are some that
    hold these: the others are dequantised."""
    expected, weights, dense = weight_shapes(config), dict[str, Weight](), 0
    for path, name, stored in _stored(folder, config, scheme, mapped=True):
        blocks = stored.blocks() if isinstance(stored, Scaled) else None
        if blocks is not None:
            weights.update(_named(name, blocks, config))
        else:
            numbers = stored.numbers(dtype_of(dtype)) if isinstance(stored, Scaled) else stored
            weights.update(canonical(path, name, numbers, config, dtype))
            dense += isinstance(stored, Scaled)
        report(min(1.0, len(weights) / len(expected)))
    check_names(folder, expected, {name: weight.shape for name, weight in weights.items()})
    check_finite(folder, weights)
    if dense:
        log.info("quantised matrices are dequantised", number=dense, reason="no blocks hold their very numbers")
    return weights


def _stored(
    folder: Path, config: ModelConfig, scheme: Scheme | None, *, mapped: bool
) -> Iterator[tuple[Path, str, NDArray[Any] | Scaled]]:
    """All tensors of a folder, those of a quantised matrix as one, with a file that each is from."""
    files, refusal = weight_files(folder), partial(FolderError, folder)
    matrices = None
    if scheme is not None:
        names = [name for path in files for name in names_in(path)]
        matrices = Matrices(scheme, names, weight_shapes(config).keys(), refusal)
    for path in files:
        for name, tensor in read_tensors(path, mapped=mapped):
            if matrices is None:
                yield path, name, tensor
                continue
            with reading(f"a quantised matrix, {name},", refusal):
                found = list(matrices.take(name, tensor))
            yield from ((path, *each) for each in found)


def canonical(
    path: Path | str, name: str, stored: NDArray[Any], config: ModelConfig, dtype: Dtype
) -> dict[str, NDArray[Any]]:
    """What one tensor of the checkpoint at `path` is to the model, by canonical names, in `dtype` (norms float32).
    Raises FolderError for numbers that are no weights."""
    return {part: _converted(part, found, config, dtype) for part, found in _parts(path, name, stored, config)}


def _parts(
    path: Path | str, name: str, stored: NDArray[Any], config: ModelConfig
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The same as it is stored: views."""
    for part, found in _named(name, stored, config):
        if not is_floating(found.dtype):
            reason = f"{part} is stored as {name_of(found.dtype)}, which is no floating-point number"
            raise FolderError(path, reason)
        yield part, found


def _named(name: str, stored: Any, config: ModelConfig) -> Iterator[tuple[str, Any]]:
    """What one tensor of a checkpoint, an array or blocks, is to the model, by canonical names: views."""
    for one in separated(name, stored):
        for part, found in of_config(config).split(*one, config):
            # A tied head is sometimes stored again, and old Llama files store the rope's frequencies.
            if not (part == "lm_head.weight" and config.tied_embeddings) and not part.endswith("rotary_emb.inv_freq"):
                yield part, found


def sent_weights(tensors: Mapping[str, Weight], config: ModelConfig, dtype: Dtype) -> dict[str, NDArray[Any]]:
    """Copies of some weights that were sent under the names of a checkpoint, by canonical names. Raises FolderError,
    NotFinite, or WeightMismatch for names or shapes that are not the model's."""
    parts = sent_parts(tensors, config)
    sent = {name: np.array(_converted(name, part, config, dtype)) for name, part in parts.items()}
    check_finite(SENT, sent)
    return sent


def sent_parts(tensors: Mapping[str, Weight], config: ModelConfig) -> dict[str, NDArray[Any]]:
    """The same as they were sent, views. Looks at no numbers, and raises as `sent_weights`."""
    parts = dict[str, NDArray[Any]]()
    for name, tensor in sorted(tensors.items()):
        parts |= _parts(SENT, name, numbers_of(tensor), config)
    shapes = weight_shapes(config)
    wanted = {name: shapes[name] for name in parts if name in shapes}
    check_names(SENT, wanted, {name: part.shape for name, part in parts.items()})
    return parts


def parsed(data: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file. Raises FolderError."""
    with reading("safetensors", partial(FolderError, SENT)):
        try:
            return _parsed(data)
        except SafetensorError as error:
            raise FolderError(SENT, f"damaged safetensors: {one_line(error)}") from error


def as_stored(weights: Mapping[str, Weight], config: ModelConfig) -> Mapping[str, Weight]:
    """Canonical weights with the values that a checkpoint has: what was added to norms is taken away."""
    offset = of_config(config).norm_offset
    if not offset:
        return weights
    norms = {name: floats_of(numbers_of(weights[name])) - np.float32(offset) for name in weights if is_norm(name)}
    return Overlay(norms, weights)


def _converted(name: str, stored: NDArray[Any], config: ModelConfig, dtype: Dtype) -> NDArray[Any]:
    if not is_norm(name):
        return converted(stored, dtype_of(dtype))
    norm, offset = converted(stored, FLOAT32), of_config(config).norm_offset
    return norm + np.float32(offset) if offset else norm
