"""The compiled kernels of processors with NEON: cross-compiled, run by qemu, and equal to those of x86 to the bit."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pawl.gpu.native import build, store
from pawl.gpu.native.bindings import load_library
from tests.gpu.driving import Piece, forward_inputs, logits_in_pieces
from tests.gpu.native_calls import Calls
from tests.gpu.native_models import EXPERTS, ODD, SWITCHED, make
from tests.gpu.test_quantised_decoder import BIASED, PLAIN, WIDE, quantised_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compares with an x86 processor"),
]

PROCESSORS = {
    "neon": ("cortex-a57", "cortex-a57"),
    "neon with byte products": ("neoverse-n1", "neoverse-n1"),
    "neon with bf16 products": ("neoverse-v1", "max"),
}
"""For each class: the processor that is compiled for, and which qemu is to be."""

BF16, FLOAT32 = torch.bfloat16, torch.float32
MODELS = {
    "odd": (ODD, FLOAT32, False),
    "odd, bf16": (ODD, BF16, False),
    "switched": (SWITCHED, FLOAT32, False),
    "switched, bf16": (SWITCHED, BF16, False),
    "experts, bf16": (EXPERTS, BF16, False),
    "plain, quantised": (PLAIN, FLOAT32, True),
    "wide, quantised, bf16": (WIDE, BF16, True),
    "biased, quantised, bf16": (BIASED, BF16, True),
}
TOKENS = [list(range(90)), [5, 6, 7], list(range(40, 60))]


def cross_compiler() -> str:
    """The path of a C++ compiler that makes programs for aarch64; skips where there is none."""
    if found := shutil.which("aarch64-linux-gnu-g++"):
        return found
    pytest.skip("no cross compiler: apt install g++-aarch64-linux-gnu")


def emulator() -> str:
    """The program that runs them; skips where there is none."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return found
    pytest.skip("no emulator: apt install qemu-user-static")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each class the command that makes recorded calls again on such a processor."""
    compiler, qemu = cross_compiler(), emulator()
    folder = tmp_path_factory.mktemp("aarch64")
    sources = [*map(str, build.SOURCES.glob("*.cpp")), str(Path(__file__).with_name("native_calls.cpp"))]
    commands = {}
    for name, (compiled_for, processor) in PROCESSORS.items():
        program = str(folder / name.replace(" ", "-"))
        flags = build.flags_for(compiled_for, "aarch64")
        subprocess.run([compiler, *flags, "-static", f"-I{build.SOURCES}", *sources, "-o", program], check=True)
        commands[name] = [qemu, "-cpu", processor, program]
    return commands


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_decoder_has_the_bits_of_x86(
    processor: str, model: str, programs: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dtype, quantised = MODELS[model]
    calls = Calls(load_library("pairs"))
    monkeypatch.setattr(store, "load_library", lambda _: calls)
    made = make(config, dtype, threads=2, weights=quantised_weights(config, dtype) if quantised else None)
    logits_in_pieces(made.backend, made.table, TOKENS, seed=1)
    made.backend.forward_greedy(forward_inputs([Piece(3, 0, TOKENS[0][:70])], made.table))
    written = tmp_path / "calls"
    written.write_bytes(calls.written)
    done = subprocess.run([*programs[processor], str(written)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == calls.answers
