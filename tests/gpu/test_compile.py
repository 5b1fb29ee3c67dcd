"""Every kernel compiles for the device it is meant for, as it is launched there, and fits it.

The interpreter runs what the compiler refuses, so no other test here sees that. What is compiled is not run.
"""

from __future__ import annotations

import pytest

from tests.gpu.compile_tools import CAPABILITY, Compiled, compile_cases

SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that one program may have on compute capability 9.0."""
REGISTER_LIMIT = 64 * 1024
"""Registers of a multiprocessor: all threads of a program must fit."""
STACK_LIMIT = {"turn_and_store_kernel": 32}
"""Bytes of local memory of a thread, where there may be any: the cosine of a very large angle needs an array."""


def check(found: list[Compiled]) -> None:
    """All that is asked of every kernel."""
    for one in found:
        assert one.ptx_target == f"sm_{CAPABILITY}a", one
        assert one.ptx_lines > 50, one
        assert one.shared_bytes <= SHARED_LIMIT, one
        assert one.registers * 32 * one.num_warps <= REGISTER_LIMIT, one
        # Products of float32 have no tensor cores and hold whole rows in registers: slow, and for comparison only.
        assert one.stack_bytes <= STACK_LIMIT.get(one.kernel, 0) or "float32" in one.case, one


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[Compiled]]:
    return compile_cases("CASES", "CANARY")


@pytest.fixture(scope="module")
def found(compiled: dict[str, list[Compiled]]) -> list[Compiled]:
    return compiled["CASES"]


def products(found: list[Compiled], kernel: str, part: str = "") -> set[tuple[str, ...]]:
    """The instructions that multiply matrices, of each variant of a kernel."""
    variants = {one.products for one in found if one.kernel == kernel and part in one.case}
    assert variants, f"no {kernel} was compiled"
    return variants


def test_every_kernel_compiles_fits_its_device_and_spills_nothing(found: list[Compiled]) -> None:
    check(found)


@pytest.mark.slow
def test_every_variant_compiles_fits_its_device_and_spills_nothing() -> None:
    check(compile_cases("MORE_CASES")["MORE_CASES"])


def test_few_rows_and_many_are_multiplied_by_the_same_instruction(found: list[Compiled]) -> None:
    # A row's bits are the same in both only if they are added up in the same way.
    expected = {("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",)}
    for few in ("few rows in pieces", "few rows whole", "many rows"):
        assert products(found, "matmul_kernel", few) == expected


def test_bfloat16_is_multiplied_by_tensor_cores(found: list[Compiled]) -> None:
    (decode,) = products(found, "split_kernel", "heads of 128")
    assert decode == ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",)
    for prefill in products(found, "segments_kernel"):
        assert prefill
        assert all(one.startswith("wgmma.mma_async") and one.endswith("f32.bf16.bf16") for one in prefill)


def test_a_kernel_that_needs_too_much_is_seen(compiled: dict[str, list[Compiled]]) -> None:
    (one,) = compiled["CANARY"]
    assert one.stack_bytes > 0
    with pytest.raises(AssertionError):
        check([one])
