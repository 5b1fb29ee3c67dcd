"""Adapters in the plain decoder and in the compiled kernels: PEFT's logits, and a request's own bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.adapters.low_rank import PackedAdapter
from pawl.gpu.adapters.peft import read_adapter
from pawl.gpu.adapters.small import ALL, random_adapter
from pawl.gpu.backend import GreedyBackend, RefusedInputs
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.registry import torch_decoder
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.adapters import adapted, peft_logits, save, trained, wrapped
from tests.gpu.driving import Piece, forward_inputs, int32, logits_in_pieces
from tests.gpu.native_models import EXPERTS, ODD, SWITCHED, Made, Native, alone, make
from tests.gpu.real import smollm2_source
from tests.gpu.test_real_models import CAPITAL_OF_FRANCE, transformers_smollm2
from tests.gpu.tiny import VOCABULARY, reference_logits, save_tiny

BACKENDS = (TorchDecoder, Native)
TOKENS = [np.random.default_rng(7).integers(0, VOCABULARY, length).tolist() for length in (41, 3, 23, 9)]
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def check(name: str, kind: Any, folder: Path, **models: Any) -> None:
    """A batch in which slot 0 has the base model, and the next ones an adapter each, says what PEFT says of each."""
    source = resolve_source(str(save_tiny(name, folder / "base")))
    made = make(source.config, torch.float32, weights=load_weights(source, torch.float32), page_size=4, kind=kind)
    adapters, expected = {}, [reference_logits(name, TOKENS[0])]
    for slot, (label, model) in enumerate(models.items(), start=1):
        adapter = read_adapter(str(save(model, folder / label)), source.config)
        adapters[slot] = made.backend.pack_adapter(adapter)
        expected.append(peft_logits(model, TOKENS[slot]))
        assert (expected[-1] - reference_logits(name, TOKENS[slot])).abs().max() > 0.05, "the adapter changes something"
    found = logits_in_pieces(made.backend, made.table, TOKENS[: len(expected)], seed=3, adapters=adapters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("target", ALL)
def test_each_target_alone_and_of_two_ranks_scores_like_peft(target: str, kind: Any, tmp_path: Path) -> None:
    one = adapted("llama", 1, target_modules=[target], r=3)
    other = adapted("llama", 2, target_modules=[target], r=16, lora_alpha=24)
    check("llama", kind, tmp_path, one=one, other=other)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        *(("llama", ALL), ("qwen2", ALL), ("qwen3", ALL), ("gemma3", ALL), ("mistral-window", ALL), ("phi3", FUSED)),
        *(("mixtral", ALL[:4]), ("qwen3-moe-mixed", ALL[:4])),
    ],
)
def test_three_adapters_and_the_base_in_one_batch_score_like_peft(
    name: str, targets: tuple[str, ...], kind: Any, tmp_path: Path
) -> None:
    ranks = {"low": 1, "middle": 5, "high": 12}
    models = {label: adapted(name, rank, target_modules=list(targets), r=rank) for label, rank in ranks.items()}
    check(name, kind, tmp_path, **models)


def test_a_model_with_an_operation_of_its_own_scores_like_peft(tmp_path: Path) -> None:
    source = resolve_source(str(save_tiny("granite", tmp_path / "base")))
    check("granite", torch_decoder(source.config), tmp_path, all=adapted("granite", 1))


@pytest.mark.parametrize("kind", BACKENDS)
def test_scales_and_patterns_are_those_of_peft(kind: Any, tmp_path: Path) -> None:
    ranks = {"q_proj": 6, "layers.1.mlp.up_proj": 2}
    alphas = {"o_proj": 20, "^model.layers.2.self_attn.v_proj$": 1}
    models = {
        "stabilised": adapted("llama", 1, use_rslora=True, r=9),
        "patterns": adapted("llama", 2, rank_pattern=ranks, alpha_pattern=alphas),
        "all": adapted("llama", 3, target_modules="all-linear", r=2),
    }
    check("llama", kind, tmp_path, **models)


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_adapter_that_was_trained_scores_like_peft(kind: Any, tmp_path: Path) -> None:
    some = adapted("llama", 4, target_modules=r".*layers\.[12].*\.(q|v)_proj")
    check("llama", kind, tmp_path, trained=trained("llama"), expression=some)


@pytest.mark.slow
def test_smollm2_with_an_adapter_scores_like_peft(tmp_path: Path) -> None:
    source = smollm2_source()
    model = wrapped(transformers_smollm2(source, load_weights(source, torch.float32)), 1, r=8, lora_alpha=4)
    made = make(source.config, torch.float32, weights=load_weights(source, torch.float32), threads=2)
    packed = made.backend.pack_adapter(read_adapter(str(save(model, tmp_path)), source.config))
    tokens = [*CAPITAL_OF_FRANCE, 30, 198, 504, 1685, 5593, 335, 260, 2240, 282, 253]
    expected = peft_logits(model, tokens)
    with model.disable_adapter():
        assert (peft_logits(model, tokens) - expected).abs().max() > 1
    (found,) = logits_in_pieces(made.backend, made.table, [tokens], seed=3, adapters={0: packed})
    # Of logits of some tens, by BLAS kernels of other processors, too.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


# ---- bits ----

CONFIGS = {"odd": ODD, "switched": SWITCHED, "experts": EXPERTS}
LENGTHS = (70, 3, 33, 1)


class Cell:
    """A backend with three adapters, and what each request gets alone with each of them, or with none."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, threads: int = 1) -> None:
        self.made: Made = make(config, dtype, page_size=4, threads=threads)
        shapes = ((4, ALL), (7, ALL), (40, ("q_proj", "v_proj", "down_proj")))
        self.packed: list[PackedAdapter | None] = [
            None,
            *(self.made.backend.pack_adapter(random_adapter(config, rank, rank, parts)) for rank, parts in shapes),
        ]
        random = np.random.default_rng(3)
        self.tokens = [random.integers(0, config.vocab_size, length).tolist() for length in LENGTHS]
        self._alone: dict[tuple[int, int], torch.Tensor] = {}

    def alone(self, slot: int, adapter: int) -> torch.Tensor:
        if (slot, adapter) not in self._alone:
            pieces = [Piece(slot, 0, self.tokens[slot])]
            inputs = forward_inputs(pieces, self.made.table, adapters=self.adapters({slot: adapter}))
            self._alone[slot, adapter] = self.made.backend.forward(inputs)
        return self._alone[slot, adapter]

    def adapters(self, numbers: dict[int, int]) -> dict[int, PackedAdapter]:
        return {slot: own for slot, number in numbers.items() if (own := self.packed[number]) is not None}


@pytest.fixture(
    scope="module",
    params=[(name, dtype, threads) for name in CONFIGS for dtype, threads in ((torch.float32, 1), (torch.bfloat16, 3))],
    ids=lambda each: f"{each[0]}-{each[1]}",
)
def cell(request: pytest.FixtureRequest) -> Cell:
    name, dtype, threads = request.param
    return Cell(CONFIGS[name], dtype, threads)


def test_each_request_gets_the_bits_that_it_gets_alone_whatever_its_neighbours_adapters(cell: Cell) -> None:
    @given(numbers=st.tuples(*[st.integers(0, 3)] * len(LENGTHS)), seed=st.integers(0, 1000))
    def of_random_segments(numbers: tuple[int, ...], seed: int) -> None:
        adapters = cell.adapters(dict(enumerate(numbers)))
        found = logits_in_pieces(cell.made.backend, cell.made.table, cell.tokens, seed, adapters=adapters)
        for slot, number in enumerate(numbers):
            assert torch.equal(found[slot], cell.alone(slot, number))

    of_random_segments()


def test_adapters_differ_from_each_other_and_from_none(cell: Cell) -> None:
    found = [cell.alone(0, number)[-1] for number in range(4)]
    for index, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[:index])


def test_rows_without_an_adapter_keep_the_bits_of_a_batch_without_any(cell: Cell) -> None:
    pieces = [Piece(slot, 0, tokens) for slot, tokens in enumerate(cell.tokens)]
    plain = cell.made.backend.forward(forward_inputs(pieces, cell.made.table))
    mixed = cell.made.backend.forward(forward_inputs(pieces, cell.made.table, adapters=cell.adapters({1: 1, 3: 2})))
    first, last = LENGTHS[0], sum(LENGTHS[:2])
    assert torch.equal(mixed[:first], plain[:first])
    assert torch.equal(mixed[last : sum(LENGTHS[:3])], plain[last : sum(LENGTHS[:3])])


def test_in_plain_torch_too_rows_without_an_adapter_keep_their_bits() -> None:
    made = make(ODD, torch.float32, kind=TorchDecoder)
    packed = made.backend.pack_adapter(random_adapter(ODD, 5, 1))
    pieces = [Piece(slot, 0, list(range(5))) for slot in range(3)]
    plain = made.backend.forward(forward_inputs(pieces, made.table))
    mixed = made.backend.forward(forward_inputs(pieces, made.table, adapters={1: packed}))
    assert torch.equal(mixed[:5], plain[:5])
    assert torch.equal(mixed[10:], plain[10:])
    assert not torch.equal(mixed[5:10], plain[5:10])


def test_vectors_and_greedy_tokens_are_made_with_the_adapter(cell: Cell) -> None:
    backend, pieces = cell.made.backend, [Piece(slot, 0, tokens) for slot, tokens in enumerate(cell.tokens[:2])]
    assert isinstance(backend, GreedyBackend)
    rows = int32(LENGTHS[0] - 1, LENGTHS[0] + LENGTHS[1] - 1)
    inputs = forward_inputs(pieces, cell.made.table, rows, adapters=cell.adapters({1: 2}))
    logits = torch.stack([cell.alone(0, 0)[-1], cell.alone(1, 2)[-1]])
    assert torch.equal(backend.forward_greedy(inputs).long(), logits.argmax(-1))
    alone_hidden = backend.hidden(
        forward_inputs(pieces[1:], cell.made.table, int32(LENGTHS[1] - 1), adapters=cell.adapters({1: 2}))
    )
    assert torch.equal(backend.hidden(inputs)[1], alone_hidden[0])


# ---- what does not fit ----


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_adapter_that_another_backend_packed_is_refused(kind: Any) -> None:
    adapter = random_adapter(ODD, 4, 1)
    other = make(ODD, torch.float32, kind=TorchDecoder if kind is Native else Native)
    made = make(ODD, torch.float32, kind=kind)
    inputs = forward_inputs([Piece(0, 0, [1])], made.table, adapters={0: other.backend.pack_adapter(adapter)})
    with pytest.raises(RefusedInputs, match="another backend"):
        made.backend.forward(inputs)


@pytest.mark.parametrize(("config", "dtype"), [(SWITCHED, torch.float32), (ODD, torch.bfloat16)])
def test_compiled_kernels_refuse_an_adapter_of_another_model_or_dtype(config: ModelConfig, dtype: torch.dtype) -> None:
    packed = make(config, dtype).backend.pack_adapter(random_adapter(config, 4, 1))
    made = make(ODD, torch.float32)
    with pytest.raises(RefusedInputs, match="made for another model"):
        made.backend.forward(forward_inputs([Piece(0, 0, [1])], made.table, adapters={0: packed}))
    assert not made.kv.data.any(), "nothing was written"


def test_an_adapter_outlives_the_decoder_that_packed_it() -> None:
    adapter = random_adapter(ODD, 4, 1)
    first, second = make(ODD, torch.float32), make(ODD, torch.float32)
    packed = first.backend.pack_adapter(adapter)
    inputs = forward_inputs([Piece(0, 0, [1, 2, 3])], first.table, adapters={0: packed})
    expected = first.backend.forward(inputs)
    first.backend.close()
    assert torch.equal(second.backend.forward(inputs), expected)
    assert not torch.equal(alone(second.backend, second.table, 0, [1, 2, 3]), expected)


def test_numbers_that_are_none_stay_with_the_requests_of_their_adapter(cell: Cell) -> None:
    config = cell.made.backend.config
    broken = random_adapter(config, 4, 9)
    broken.layers[0]["qkv"].expand[:] = float("nan")
    adapters = {1: cell.made.backend.pack_adapter(broken), **cell.adapters({2: 1})}
    found = logits_in_pieces(cell.made.backend, cell.made.table, cell.tokens, 5, adapters=adapters)
    assert found[1].isnan().all()
    for slot, number in ((0, 0), (2, 1), (3, 0)):
        assert torch.equal(found[slot], cell.alone(slot, number))
