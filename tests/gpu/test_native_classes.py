"""The compiled kernels for other x86 processors, on this one: the same bits, but for those that cannot fuse a sum.

Products of bfloat16 are summed in one of two ways, whatever the processor: each class is held to the kernels of this
one that sum in the same way.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from pawl.gpu.native import bindings, build, store
from pawl.gpu.native.build import Sums
from tests.gpu.driving import logits_in_pieces
from tests.gpu.native_models import EXPERTS, SWITCHED, alone, make
from tests.gpu.test_quantised_decoder import WIDE, quantised_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors"),
]

PROCESSORS = {
    "x86-64": ("generic", ""),
    "haswell": ("avx2", "fma"),
    "alderlake": ("avx2 with byte products", "avx_vnni"),
    "skylake-avx512": ("avx512", "avx512bw"),
    "icelake-server": ("avx512 with byte products", "avx512_vnni"),
    "cooperlake": ("avx512 with bf16 products", "avx512_bf16"),
    "sapphirerapids": ("avx512 with tiles", "amx_bf16"),
}
"""For each: the class of its kernels, and what a processor must have to run them."""
MODELS = {
    "float32": (SWITCHED, torch.float32, False),
    "bf16": (SWITCHED, torch.bfloat16, False),
    "experts, bf16": (EXPERTS, torch.bfloat16, False),
    "quantised, bf16": (WIDE, torch.bfloat16, True),
}
TOKENS = [list(range(90)), [5, 6, 7], list(range(40, 60))]


@pytest.fixture(scope="module", params=("pairs", "blocks"))
def sums(request: pytest.FixtureRequest) -> Sums:
    """How products of bfloat16 are summed."""
    found: Sums = request.param
    return found


@pytest.fixture(scope="module", params=PROCESSORS)
def other(
    request: pytest.FixtureRequest, sums: Sums, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, bindings.Library]:
    """The class of a processor, and its kernels; skips where this processor cannot run them, once they are compiled."""
    name, needed = PROCESSORS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_tiles_granted", lambda: "tiles" in name)
        flags = build.flags_for(request.param, sums=sums)
    path = build.build(tmp_path_factory.mktemp("other"), flags)
    if needed not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"compiled, but this processor has no {needed}")
    if "tiles" in name and "-DPAWL_NO_TILES" in build.flags_for():
        pytest.skip("compiled, but the system does not grant the tile registers")
    return name, bindings.Library(path)


@pytest.mark.parametrize("model", MODELS)
def test_a_decoder_has_the_same_bits_on_other_processors(
    model: str, other: tuple[str, bindings.Library], sums: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, library = other
    config, dtype, quantised = MODELS[model]

    def computed() -> tuple[Any, list[torch.Tensor]]:
        made = make(config, dtype, threads=2, weights=quantised_weights(config, dtype) if quantised else None)
        found = logits_in_pieces(made.backend, made.table, TOKENS, seed=1)
        assert torch.equal(alone(made.backend, made.table, 3, TOKENS[0]), found[0])
        return made.backend.target, [*found, made.kv.data]

    monkeypatch.setattr(store, "load_library", lambda _: bindings.load_library(sums))
    ours, native = computed()
    monkeypatch.setattr(store, "load_library", lambda _: library)
    target, theirs = computed()
    assert target.partition(",")[0] == name
    assert build.sums_of(target) == build.sums_of(ours) == sums
    # Where the sum of a product is rounded twice, values differ in the last place, and experts that are close change.
    tolerance = 0.0 if "generic" not in (name, ours) else 1e-4 if dtype == torch.float32 else 0.1
    for found, wanted in zip(theirs, native, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
