"""Pages copied out of a runner and into another: the bytes, the tokens computed from them, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.kv import KvStore, PagesNotPortable
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.small import random_weights
from pawl.gpu.runner import Runner
from pawl.lifecycle.step import Int32s
from tests.gpu.driving import DEVICES, int32
from tests.gpu.native_models import HYBRID, ODD
from tests.gpu.test_runner import GREEDY, PAGE, PAGES_PER_SLOT, PROMPTS, Steps, execute, greedy_reference
from tests.gpu.test_runner import made as made_tiny
from tests.gpu.tiny import save_tiny

DTYPES = (torch.float32, torch.bfloat16)
OUT, IN = int32(5, 0, 7), int32(2, 6, 3)


def made(config: ModelConfig = ODD, seed: int = 0, **options: Any) -> Runner:
    settings: dict[str, Any] = {
        "num_pages": 8,
        "page_size": 4,
        "num_slots": 2,
        "max_context": 16,
        "dtype": torch.float32,
        "threads": 1,
        "backend": "torch",
    }
    settings |= options
    return Runner(config, random_weights(config, settings["dtype"], seed), **settings)


def filled(store: KvStore) -> KvStore:
    """Every byte random, not-a-numbers among them."""
    raw = store.data.view(torch.uint8)
    raw.copy_(torch.from_numpy(np.random.default_rng(1).integers(0, 256, raw.shape, np.uint8)))
    return store


def bits(data: torch.Tensor) -> torch.Tensor:
    return data.view(torch.uint8).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_arrive_elsewhere_bit_by_bit_and_nothing_else_changes(dtype: torch.dtype, device: str) -> None:
    source, target = (made(dtype=dtype, device=device) for _ in range(2))
    assert source.layout == target.layout
    filled(source.kv)
    before = bits(target.kv.data).clone()
    blocks = source.read_pages(OUT)
    assert blocks.shape == (3, source.page_bytes)
    assert blocks.dtype == np.uint8
    target.write_pages(IN, blocks)
    assert torch.equal(bits(target.kv.data)[:, :, IN], bits(source.kv.data)[:, :, OUT])
    others = np.setdiff1d(np.arange(8), IN)
    assert torch.equal(bits(target.kv.data)[:, :, others], before[:, :, others])
    assert np.array_equal(target.read_pages(IN), blocks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_one_page_of_every_layer_in_order(dtype: torch.dtype) -> None:
    runner = made(dtype=dtype)
    filled(runner.kv)
    blocks = runner.read_pages(OUT)
    for page, block in zip(OUT, blocks, strict=True):
        assert block.tobytes() == bits(runner.kv.data[:, :, page].contiguous()).numpy().tobytes()
    assert runner.page_bytes == 2 * ODD.num_layers * 4 * ODD.kv_size * dtype.itemsize


def test_a_copy_does_not_change_with_its_page() -> None:
    runner = made()
    filled(runner.kv)
    blocks = runner.read_pages(OUT)
    kept = blocks.copy()
    runner.kv.data.zero_()
    assert np.array_equal(blocks, kept)


def test_no_pages_are_no_bytes() -> None:
    runner = made()
    blocks = runner.read_pages(int32())
    assert blocks.shape == (0, runner.page_bytes)
    runner.write_pages(int32(), blocks)
    assert not runner.kv.data.any()


@pytest.mark.parametrize("writable", [True, False])
def test_blocks_of_a_received_message_can_be_written(writable: bool) -> None:
    """Their memory may be read-only, and begin anywhere."""
    source, target = made(dtype=torch.bfloat16), made(dtype=torch.bfloat16)
    filled(source.kv)
    message = b"x" + source.read_pages(OUT).tobytes()
    blocks = np.frombuffer(bytearray(message) if writable else message, np.uint8, offset=1).reshape(3, -1)
    target.write_pages(IN, blocks)
    assert torch.equal(bits(target.kv.data)[:, :, IN], bits(source.kv.data)[:, :, OUT])


def test_a_prefix_that_was_copied_in_is_decoded_from_as_if_it_had_been_computed(tmp_path: Path) -> None:
    folder = save_tiny("qwen3", tmp_path / "qwen3")
    source, target = made_tiny(folder), made_tiny(folder)
    prompt, steps = PROMPTS[0], Steps()
    execute(source, steps.batch((0, 0, prompt[:PAGE], False), admit={0: GREEDY}))
    first_page = source.page_table[0, :1].copy()
    batch = steps.batch((1, PAGE, prompt[PAGE:], True), admit={1: GREEDY})
    target.write_pages(batch.pages[:1], source.read_pages(first_page))
    assert batch.pages[0] != first_page[0]
    assert len(batch.pages) == PAGES_PER_SLOT
    assert execute(target, batch).tokens.tolist() == greedy_reference(prompt, 1)


@pytest.mark.parametrize("pages", [int32(8), int32(0, -1)])
def test_a_page_that_does_not_exist_is_neither_read_nor_written(pages: Int32s) -> None:
    runner = made()
    with pytest.raises(ValueError, match="a page is not below 8"):
        runner.read_pages(pages)
    with pytest.raises(ValueError, match="a page is not below 8"):
        runner.write_pages(pages, np.ones((len(pages), runner.page_bytes), np.uint8))
    assert not runner.kv.data.any()


def test_blocks_of_another_size_are_refused() -> None:
    runner = made()
    for blocks in (
        np.ones((3, runner.page_bytes - 4), np.uint8),
        np.ones((2, runner.page_bytes), np.uint8),
        np.ones((3, runner.page_bytes), np.int8),
    ):
        with pytest.raises(ValueError, match="where uint8"):
            runner.write_pages(IN, blocks)
    assert not runner.kv.data.any()


def test_half_a_page_is_not_copied() -> None:
    runner = made(HYBRID, num_window_pages=4)
    with pytest.raises(PagesNotPortable):
        runner.read_pages(int32(0))
    with pytest.raises(PagesNotPortable):
        runner.write_pages(int32(0), np.zeros((1, 64), np.uint8))
    with pytest.raises(PagesNotPortable):
        assert runner.page_bytes


def test_the_layout_tells_apart_whatever_makes_other_bytes() -> None:
    longer_rope = msgspec.structs.replace(ODD, rope=msgspec.structs.replace(ODD.rope, base=20_000.0))
    layouts = {
        "first": made().layout,
        "other weights": made(seed=1).layout,
        "other rope": made(longer_rope).layout,
        "bfloat16": made(dtype=torch.bfloat16).layout,
        "longer pages": made(page_size=8).layout,
        "another backend": made(backend="native").layout,
        "another model": made(HYBRID).layout,
    }
    assert len(set(layouts.values())) == len(layouts)
    assert made(num_pages=5, num_slots=1).layout == layouts["first"], "how many pages there are does not matter"
