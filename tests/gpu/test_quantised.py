"""The kernels for quantised weights against numpy: the formats, one order of sums, and every row by itself."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pawl.gpu.native import build
from pawl.gpu.weights.blocks import BlockFormat
from tests.gpu.quantised import FORMATS, Floats, numbers, product, random_blocks

SOURCES = (
    Path(__file__).with_name("quantised_products.cpp"),
    *(build.SOURCES / name for name in ("quantised.cpp", "made.cpp")),
)
NATIVE, AVX2 = "native", "haswell"
OTHERS = ("x86-64", "skylake-avx512", "icelake-server", "alderlake")
_NEEDS = {"haswell": "avx2", "skylake-avx512": "avx512bw", "icelake-server": "avx512_vnni", "alderlake": "avx_vnni"}
ON_X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86 processors")


@cache
def kernels(processor: str) -> ctypes.CDLL:
    """The kernels for a kind of processor; skips where this one cannot run them."""
    needed = _NEEDS.get(processor, "")
    if needed not in Path("/proc/cpuinfo").read_text() and needed:
        pytest.skip(f"this processor has no {needed}")
    path = Path(mkdtemp()) / f"{processor}.so"
    command = [build.find_compiler(), *build.flags_for(processor), "-shared", f"-I{build.SOURCES}"]
    subprocess.run([*command, *map(str, SOURCES), "-o", str(path)], check=True, capture_output=True)
    loaded = ctypes.CDLL(str(path))
    loaded.stored_bytes.restype = ctypes.c_int64
    return loaded


def call(processor: str, name: str, kind: BlockFormat, blocks: NDArray[np.uint8], inputs: int, *more) -> None:  # type: ignore[no-untyped-def]
    """Call one of the functions of quantised_products.cpp."""
    arguments = [ctypes.c_void_p(it.ctypes.data) if isinstance(it, np.ndarray) else ctypes.c_int64(it) for it in more]
    sizes = ctypes.c_int64(len(blocks)), ctypes.c_int64(inputs)
    getattr(kernels(processor), name)(ctypes.c_int32(kind), *sizes, ctypes.c_void_p(blocks.ctypes.data), *arguments)


def multiplied(processor: str, kind: BlockFormat, blocks: NDArray[np.uint8], rows: Floats, tile: int = 32) -> Floats:
    """rows [n, inputs] times the weights, by the kernels."""
    found = np.full((len(rows), len(blocks)), np.nan, np.float32)
    call(processor, "product", kind, blocks, rows.shape[1], rows, len(rows), tile, found)
    return found


def activations(count: int, inputs: int, random: np.random.Generator) -> Floats:
    """Rows as norms leave them, with some of the places that are far from the others."""
    rows = random.normal(size=(count, inputs)) * np.where(random.random((count, inputs)) < 0.01, 30, 1)
    rows[:, : inputs // 2 : 7] = 0
    return rows.astype(np.float32)


KINDS = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)


@KINDS
def test_a_format_has_the_name_and_the_sizes_that_its_authors_gave_it(kind: BlockFormat) -> None:
    theirs = GGMLQuantizationType(kind)
    assert (theirs.name, GGML_QUANT_SIZES[theirs]) == (kind.name, (kind.inputs, kind.num_bytes))


@KINDS
@settings(max_examples=20)
@given(seed=st.integers(0, 1 << 30), rows=st.integers(1, 70), groups=st.integers(1, 3))
def test_blocks_come_back_to_the_bit_and_mean_what_the_format_says(
    kind: BlockFormat, seed: int, rows: int, groups: int
) -> None:
    inputs = 256 * groups
    blocks = random_blocks(kind, rows, inputs, np.random.default_rng(seed))
    assert kernels(NATIVE).stored_bytes(int(kind), ctypes.c_int64(rows), ctypes.c_int64(inputs)) == blocks.size
    back = np.zeros_like(blocks)
    call(NATIVE, "there_and_back", kind, blocks, inputs, back)
    assert np.array_equal(back, blocks)
    found = np.zeros((rows, inputs), np.float32)
    call(NATIVE, "numbers", kind, blocks, inputs, found)
    assert np.array_equal(found, numbers(kind, blocks))


@pytest.mark.parametrize("processor", [NATIVE, pytest.param(AVX2, marks=ON_X86)])
@KINDS
def test_products_have_the_bits_of_the_same_sums_in_numpy(kind: BlockFormat, processor: str) -> None:
    random = np.random.default_rng(1)
    blocks, rows = random_blocks(kind, 45, 512, random), activations(5, 512, random)
    rows[1], rows[2, 32:64] = 0, 1e-38
    assert np.array_equal(multiplied(processor, kind, blocks, rows), product(kind, blocks, rows))


@pytest.mark.slow
@ON_X86
@pytest.mark.parametrize("processor", OTHERS)
@KINDS
def test_products_of_other_processors_have_those_bits_too(kind: BlockFormat, processor: str) -> None:
    random = np.random.default_rng(1)
    blocks, rows = random_blocks(kind, 45, 512, random), activations(5, 512, random)
    found, wanted = multiplied(processor, kind, blocks, rows), multiplied(NATIVE, kind, blocks, rows)
    if processor == "x86-64":  # it has no fused multiply and add
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    else:
        assert np.array_equal(found, wanted)


@KINDS
def test_a_row_has_the_same_bits_alone_and_among_others(kind: BlockFormat) -> None:
    random = np.random.default_rng(2)
    blocks, rows = random_blocks(kind, 64, 256, random), activations(70, 256, random)
    alone = multiplied(NATIVE, kind, blocks, rows, tile=1)
    for tile in (2, 7, 32, kernels(NATIVE).most_rows()):
        assert np.array_equal(multiplied(NATIVE, kind, blocks, rows, tile), alone)


@KINDS
def test_products_are_as_near_as_rounded_activations_allow(kind: BlockFormat) -> None:
    random = np.random.default_rng(3)
    blocks, rows = random_blocks(kind, 33, 512, random), activations(9, 512, random)
    weights = numbers(kind, blocks).astype(np.float64)
    # Half of one whole number in each activation, and the rounding of sums.
    half = np.repeat(np.abs(rows).reshape(9, -1, 32).max(-1) / 254, 32, axis=1)
    bound = 1.001 * half @ np.abs(weights).T + 1e-5 * np.abs(rows) @ np.abs(weights).T
    assert (np.abs(multiplied(NATIVE, kind, blocks, rows) - rows @ weights.T) <= bound).all()


@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_spoils_its_own_row_whole_and_no_other(what: float) -> None:
    random = np.random.default_rng(4)
    kind = BlockFormat.Q4_1
    blocks, rows = random_blocks(kind, 40, 64, random), activations(3, 64, random)
    spoiled = rows.copy()
    spoiled[1, 37] = what
    found, wanted = multiplied(NATIVE, kind, blocks, spoiled), multiplied(NATIVE, kind, blocks, rows)
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[[0, 2]], wanted[[0, 2]])


def in_bfloat16(found: Floats) -> Floats:
    """Rounded as the reader of a file rounds them."""
    return torch.from_numpy(found).bfloat16().float().numpy()


def made(processor: str, kind: BlockFormat, blocks: NDArray[np.uint8], inputs: int) -> Floats:
    """The bfloat16 that kernels make of blocks, float32 [outputs, inputs]."""
    panels = (len(blocks) + 31) // 32
    units = np.zeros((panels, inputs // 2, 32), np.uint32)
    call(processor, "made", kind, blocks, inputs, units)
    pairs = np.stack([units << np.uint32(16), units & np.uint32(0xFFFF0000)], -1).view(np.float32)
    return pairs.transpose(0, 2, 1, 3).reshape(panels * 32, inputs)[: len(blocks)]


@pytest.mark.parametrize("processor", [NATIVE, pytest.param(AVX2, marks=ON_X86)])
@KINDS
@settings(max_examples=20)
@given(seed=st.integers(0, 1 << 30), rows=st.integers(1, 70), scale=st.sampled_from((1e-4, 0.02, 50.0)))
def test_bfloat16_that_is_made_of_blocks_is_that_of_their_numbers(
    kind: BlockFormat, processor: str, seed: int, rows: int, scale: float
) -> None:
    blocks = random_blocks(kind, rows, 512, np.random.default_rng(seed), scale)
    assert np.array_equal(made(processor, kind, blocks, 512), in_bfloat16(numbers(kind, blocks)))


@KINDS
def test_scales_that_are_no_numbers_make_none(kind: BlockFormat) -> None:
    blocks = random_blocks(kind, 3, 256, np.random.default_rng(1))
    blocks[1] = random_blocks(kind, 1, 256, np.random.default_rng(2), np.inf)
    found = made(NATIVE, kind, blocks, 256)
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()


@KINDS
def test_what_is_made_while_it_is_multiplied_gives_the_bits_of_what_was_made_before(kind: BlockFormat) -> None:
    if not kernels(NATIVE).has_tiles():
        pytest.skip("no tile registers here: panels are made before they are multiplied")
    random = np.random.default_rng(6)
    blocks, rows = random_blocks(kind, 32, 768, random), activations(32, 768, random)
    halves = (rows.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    alone = [np.zeros((1, 32), np.float32) for _ in rows]
    for row, found in zip(halves, alone, strict=True):
        call(NATIVE, "products_of_made", kind, blocks, 768, row.view(np.uint32), 1, found, found.copy())
    for count in (1, 5, 16, 17, 32):
        beside, before = (np.full((32, 32), 7, np.float32) for _ in range(2))
        call(NATIVE, "products_of_made", kind, blocks, 768, halves[:count].view(np.uint32), count, beside, before)
        assert np.array_equal(beside, before)
        assert np.array_equal(beside[:count], np.vstack(alone)[:count])
        assert (beside[count:] == 7).all(), "written behind the last row"
