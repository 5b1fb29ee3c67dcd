"""Products of bfloat16, one tile of them: in the order that the kernels promise, whatever computes them."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pawl.gpu.native import build
from pawl.gpu.native.build import Sums

COLUMNS = 32
Floats = NDArray[np.float32]


@pytest.fixture(scope="module", params=["here", "blocks", "pairs"])
def tile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sums, ctypes.CDLL]:
    """How a tile sums, and its product: as the kernels of this processor, or in vectors that are told how."""
    path = tmp_path_factory.mktemp("tile") / "tile.so"
    flags = build.flags_for(sums=None if request.param == "here" else request.param)
    told = () if request.param == "here" else ("-DPAWL_NO_TILES",)
    source = Path(__file__).with_name("native_tile.cpp")
    command = [
        build.find_compiler(),
        *flags,
        *told,
        "-O1",
        f"-I{build.SOURCES}",
        "-shared",
        str(source),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    return ("blocks" if library.sums_in_blocks() else "pairs"), library


def bf16(random: np.random.Generator, *shape: int) -> Floats:
    """Numbers of either sign that bfloat16 has, of many magnitudes."""
    numbers = random.standard_normal(shape) * 2.0 ** random.integers(-9, 9, shape)
    return (numbers.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def units(pairs: Floats) -> NDArray[np.uint32]:
    """[..., 2] numbers as units of two bfloat16, the first one in the low half."""
    bits = pairs.view(np.uint32)
    return np.ascontiguousarray(bits[..., 0] >> np.uint32(16) | bits[..., 1])


def summed(sums: Sums, rows: Floats, panel: Floats, begun: Floats) -> Floats:
    """What is promised. A product of two bfloat16 has no rounding in float32, so a sum of it is a fused one."""
    total = begun.copy()
    count, depth, _ = rows.shape
    for first in range(0, depth, 16 if sums == "blocks" else 1):
        last = min(depth, first + 16) if sums == "blocks" else first + 1
        low, high = (np.zeros((count, COLUMNS), np.float32) for _ in range(2))
        for k in range(first, last):
            each = [rows[:, k, half, None] * panel[k, :, half] for half in (0, 1)]
            if sums == "pairs":
                total = (total + each[1]) + each[0]
            low, high = low + each[0], high + each[1]
        if sums == "blocks":
            total = total + (low + high)
    return total


@pytest.mark.parametrize("depth", [1, 15, 16, 17, 32, 45])
@pytest.mark.parametrize("keeps", [False, True], ids=["from nothing", "going on"])
def test_a_tile_sums_in_the_order_that_is_promised(tile: tuple[Sums, ctypes.CDLL], depth: int, keeps: bool) -> None:
    sums, library = tile
    random = np.random.default_rng(depth)
    for count in range(1, library.most_rows() + 1):
        rows, panel = bf16(random, count, depth, 2), bf16(random, depth, COLUMNS, 2)
        begun = random.standard_normal((count, COLUMNS)).astype(np.float32)
        keep = np.where(random.random(count) < 0.5, 1, random.random(count)).astype(np.float32)
        wanted = summed(sums, rows, panel, begun * keep[:, None] if keeps else np.zeros_like(begun))
        # What lies behind a row is its neighbour's: nothing that is not a number may come from there.
        left = np.full((count, depth + 3), 0x7FC07FC0, np.uint32)
        left[:, :depth] = units(rows)
        right, found = units(panel), np.vstack([begun, np.full((1, COLUMNS), 7, np.float32)])
        library.multiply(
            ctypes.c_int(keeps),
            ctypes.c_int(count),
            *(ctypes.c_void_p(array.ctypes.data) for array in (left, right, found, keep)),
            ctypes.c_int64(depth + 3),
            ctypes.c_int64(depth),
        )
        np.testing.assert_array_equal(found[:count], wanted)
        assert (found[count:] == 7).all(), "written behind the last row"
