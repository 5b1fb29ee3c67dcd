"""`make gpu-check`: what it computes without a device is right, and without a device it says so."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_steps
from benchmarks.gpu_limits import (
    LLAMA_8B,
    attention_operations,
    decode_bytes,
    idle_share,
    matrix_elements,
    prefill_operations,
    share_of_limit,
)
from benchmarks.harness import Result
from pawl.gpu.models.small import random_weights
from pawl.gpu.runner import Runner
from tests.gpu.native_models import ODD


def test_the_model_has_eight_billion_parameters() -> None:
    assert matrix_elements(LLAMA_8B) + 128_256 * 4096 == 8_030_261_248 - 65 * 4096


def test_a_decode_step_reads_matrices_once_and_each_request_its_own_keys_and_values() -> None:
    weights = 2 * matrix_elements(LLAMA_8B)
    assert decode_bytes(LLAMA_8B, 1, 1000) == weights + 1000 * 131_072
    assert decode_bytes(LLAMA_8B, 64, 1000) == weights + 64 * 1000 * 131_072
    windowed = msgspec.structs.replace(LLAMA_8B, windows=(100,) * 32)
    assert decode_bytes(windowed, 64, 1000) == weights + 64 * 100 * 131_072


def test_operations_of_attention_are_those_of_the_pairs_that_see_each_other() -> None:
    pairs = sum(range(1, 51))
    assert attention_operations(LLAMA_8B, 50) == 2 * 2 * pairs * 128 * 32


def test_a_prompt_multiplies_every_matrix_but_the_head_once_a_token() -> None:
    head = 128_256 * 4096
    expected = 2 * 10 * (matrix_elements(LLAMA_8B) - head) + 2 * head + 32 * attention_operations(LLAMA_8B, 10)
    assert prefill_operations(LLAMA_8B, 10) == expected


def test_shares_are_percentages() -> None:
    assert share_of_limit(0.5, 2.0) == 25.0
    assert idle_share([1.0, -0.5, 0.0], [4.0, 5.0]) == 10.0, "a step that began early has left nothing idle"


def test_without_a_device_it_says_so_and_checks_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    before = gpu.FILE.exists()
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert "Nothing was checked" in done.stderr
    assert gpu.FILE.exists() == before


def test_the_report_has_hardware_tests_and_every_figure() -> None:
    results = [Result("decode", gpu_steps.one(80.0), "% of limit", target=85.0, higher_is_better=True)]
    written: Any = gpu.report({"device": "some"}, {"kernels": {"passed": True}}, results)
    assert written["hardware"] == {"device": "some"}
    assert written["tests"]["kernels"]["passed"]
    assert [(line["name"], line["value"], line["met"]) for line in written["results"]] == [("decode", 80.0, False)]


def test_every_file_of_kernel_tests_is_run() -> None:
    run = " ".join(gpu.TEST_RUNS["kernels"])
    for name in ("test_kernels_rows", "test_cuda_decoder", "test_cuda_runner", "test_cuda_memory"):
        assert name in run


def test_its_steps_are_steps_that_a_runner_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "LLAMA_8B", ODD)
    runner = Runner(
        ODD,
        random_weights(ODD, torch.float32),
        num_pages=12,
        page_size=gpu_steps.PAGE,
        num_slots=4,
        max_context=48,
        dtype=torch.float32,
        threads=1,
        backend="torch",
    )
    steps = gpu_steps.Steps(runner)
    counts = [
        len(runner.collect(runner.launch(batch)).tokens)
        for batch in (steps.admit(4, 40), steps.decode(4, 30), steps.decode(3, 31), steps.prefill(20))
    ]
    assert counts == [0, 4, 3, 1]
    assert len(np.unique(runner.page_table)) == 12, "no page is shared"
