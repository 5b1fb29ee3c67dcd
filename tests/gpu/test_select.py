"""One place decides which backend computes, and says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import torch

from pawl.gpu import select
from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.kv import KvStore
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.native.build import Sums
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.tiny import save_tiny


class Unbuildable:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise BackendUnavailable("native", "there is no compiler")


class Native:
    name = "native"

    def __init__(self, *_: Any, threads: int, rank: Rank | None, sums: Sums | None) -> None:
        self.threads = threads


def chosen(requested: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    source = resolve_source(str(save_tiny("llama", folder)))
    kv = KvStore(source.config, num_pages=1, page_size=4, dtype=dtype, device="cpu")
    return select.select_backend(requested, source.config, load_weights(source, dtype), kv, threads=1)


def test_auto_takes_the_compiled_kernels_where_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "native_backend", lambda: Native)
    assert isinstance(chosen("auto", tmp_path), Native)
    assert isinstance(chosen("torch", tmp_path), TorchDecoder)


def test_auto_falls_back_to_torch_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "native_backend", lambda: Unbuildable)
    with structlog.testing.capture_logs() as logs:
        assert isinstance(chosen("auto", tmp_path), TorchDecoder)
    assert [entry["reason"] for entry in logs] == ["there is no compiler"]


def test_auto_takes_torch_for_a_dtype_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "native_backend", lambda: Native)
    assert isinstance(chosen("auto", tmp_path, torch.float16), TorchDecoder)


def test_native_that_cannot_be_is_an_error_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "native_backend", lambda: Unbuildable)
    with pytest.raises(BackendUnavailable, match="no compiler"):
        chosen("native", tmp_path)
