"""Dequantised GGUF weights, kept as safetensors so that the second start maps a file instead of dequantising it.

An entry's name is a hash of what it was made from (the GGUF file's size, modification time and header, the dtype, and
the version of this code's conventions), so a changed file never meets an old entry. Entries appear by an atomic
rename: a reader sees a whole file or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import structlog
from numpy.typing import NDArray

from pawl.gpu.dtypes import FLOAT32, Dtype, dtype_of, name_of
from pawl.gpu.folders import cache_folder
from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.weights.checks import Keep, Kept, WeightMismatch, all_of_it
from pawl.gpu.weights.finite import NotFinite
from pawl.gpu.weights.gguf import GgufFile
from pawl.gpu.weights.gguf_model import load_gguf_weights
from pawl.gpu.weights.report import Report, unheard
from pawl.gpu.weights.safetensors import FolderError, read_tensors, write_tensors

# Raise when names, layouts or dtypes of the cached tensors change.
CONVENTIONS = 1

log = structlog.get_logger()


def entry_path(file: GgufFile, dtype: Dtype, directory: Path) -> Path:
    """Where the dequantised weights of `file` would be."""
    status = file.path.stat()
    facts = (CONVENTIONS, f"torch.{name_of(dtype)}", status.st_size, status.st_mtime_ns, file.header_digest())
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    return directory / "weights" / f"{file.path.stem}-{digest}.safetensors"


def _read_entry(path: Path, config: ModelConfig, keep: Keep) -> dict[str, NDArray[Any]] | None:
    """What is to `keep` of the entry; None when there is none or it is not whole."""
    if not path.exists():
        return None
    weights = Kept(path, weight_shapes(config), keep)
    try:
        for name, weight in read_tensors(path):
            weights.take({name: weight})
        return weights.complete()
    except (FolderError, NotFinite, WeightMismatch) as error:
        log.warning("cached weights are damaged and are made again", path=str(path), error=str(error))
        return None


def write_entry(path: Path, weights: dict[str, NDArray[Any]]) -> None:
    """Write `weights` to `path` so that it is there whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            write_tensors(weights, file)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def load_cached_weights(
    file: GgufFile,
    config: ModelConfig,
    dtype: Dtype,
    directory: Path | None = None,
    report: Report = unheard,
    *,
    keep: Keep = all_of_it,
) -> dict[str, NDArray[Any]]:
    """The weights of a GGUF file in `dtype`: from the cache when it has them, else dequantised and then cached.

    float32 is not cached: an entry would be several times the size of the model file, for a dtype that serves tests.
    A cache that cannot be written is logged and does not stop the load. Only what is to `keep` is returned; who keeps
    a part makes no entry, for that would take the whole.
    """
    if dtype_of(dtype) == FLOAT32:
        return load_gguf_weights(file, config, dtype, report, keep=keep)
    path = entry_path(file, dtype, directory or cache_folder())
    cached = _read_entry(path, config, keep)
    if cached is not None:
        return cached
    weights = load_gguf_weights(file, config, dtype, report, keep=keep)
    if keep is not all_of_it:
        return weights
    try:
        write_entry(path, weights)
    except OSError as error:
        advice = "set PAWL_CACHE to a folder that can be written"
        log.warning("weights were not cached", path=str(path), error=str(error), advice=advice)
    return weights
