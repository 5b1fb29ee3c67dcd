"""From what a person writes after `--model` to a model: where it is, what it is, and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from pawl.gpu.dtypes import Dtype
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.weights.blocks import Weight
from pawl.gpu.weights.cache import load_cached_weights
from pawl.gpu.weights.checks import Keep, all_of_it
from pawl.gpu.weights.gguf import GgufFile, GgufFormatError, read_gguf
from pawl.gpu.weights.gguf_model import config_from_gguf, load_gguf_blocks, mostly_blocks
from pawl.gpu.weights.locate import ModelNotFound, locate
from pawl.gpu.weights.packed.scheme import Scheme
from pawl.gpu.weights.report import Report, unheard
from pawl.gpu.weights.safetensors import (
    folder_config,
    folder_scheme,
    load_folder_blocks,
    load_folder_weights,
    weight_files,
)
from pawl.gpu.weights.strangers import reading

SourceKind: TypeAlias = Literal["gguf", "huggingface"]

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, not yet loaded."""

    kind: SourceKind
    path: Path
    """A GGUF file, or a Hugging Face folder."""
    config: ModelConfig
    name: str
    """What to call it: the argument's own last part."""
    file: GgufFile | None = None
    """The open file where `kind` is `gguf`: its metadata hold the tokenizer."""
    scheme: Scheme | None = None
    """How the matrices of a folder are quantised; None: they are not."""

    @property
    def has_blocks(self) -> bool:
        """Whether most weights are quantised, in formats that the compiled kernels compute as they are."""
        if self.scheme is not None:
            return self.scheme.has_blocks
        return self.file is not None and mostly_blocks(self.file)


def resolve_source(model: str) -> ModelSource:
    """Find `model`: `smollm2`, a GGUF file, a Hugging Face folder, or a name on the Hugging Face hub.

    Raises ModelNotFound, or what the reader of the format raises (GgufFormatError, FolderError, UnsupportedModel).
    """
    return source_at(*find_model(model))


def find_model(model: str) -> tuple[Path, str]:
    """Where `model` is, which may have to be fetched, and what to call it. Raises ModelNotFound."""
    path = locate(model)
    if path is None:
        return _download(model), model
    if path.is_dir():
        return path, path.resolve().name
    return path, model if model == "smollm2" else path.stem


def source_at(path: Path, name: str) -> ModelSource:
    """The decoder in this folder or GGUF file. Raises as `resolve_source`."""
    return _folder_source(path, name) if path.is_dir() else _gguf_source(path, name)


def _gguf_source(path: Path, name: str) -> ModelSource:
    file = read_gguf(path)
    with reading("the metadata", partial(GgufFormatError, path)):
        return ModelSource("gguf", path, config_from_gguf(file), name, file)


def _folder_source(path: Path, name: str) -> ModelSource:
    config, scheme = folder_config(path), folder_scheme(path)
    weight_files(path)  # refuse a folder without usable weights now, not after everything else has started
    return ModelSource("huggingface", path, config, name, scheme=scheme)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    # The hub client raises a dozen unrelated classes (HTTP, validation, offline mode); each means: not there.
    except Exception as error:
        reason = f"no such folder, and the download from the hub failed: {type(error).__name__}: {error}"
        raise ModelNotFound(model, reason) from error


def load_weights(
    source: ModelSource,
    dtype: Dtype,
    report: Report = unheard,
    *,
    mapped: bool = True,
    keep: Keep = all_of_it,
) -> dict[str, NDArray[Any]]:
    """Every weight in `dtype` (norms float32) under its canonical name (`pawl.gpu.models.config.weight_shapes`), or of
    each what is to `keep`.

    `mapped` as in `load_folder_weights`.
    Raises WeightMismatch, NotFinite, GgufFormatError or FolderError.
    """
    if source.file is None:
        return load_folder_weights(
            source.path, source.config, dtype, report, mapped=mapped, keep=keep, scheme=source.scheme
        )
    with reading("a tensor", partial(GgufFormatError, source.path)):
        return load_cached_weights(source.file, source.config, dtype, report=report, keep=keep)


def load_blocks(source: ModelSource, dtype: Dtype, report: Report = unheard) -> dict[str, Weight]:
    """As `load_weights`, with quantised matrices as blocks: views of a GGUF file, or the numbers of a folder's. For a
    source that `has_blocks`. Raises as `load_weights`."""
    if source.scheme is not None:
        return load_folder_blocks(source.path, source.config, dtype, source.scheme, report)
    assert source.file is not None, "it has blocks"
    with reading("a tensor", partial(GgufFormatError, source.path)):
        return load_gguf_blocks(source.file, source.config, dtype, report)
