"""The decoder of Triton kernels with adapters says what the one of plain torch says, and a request has its own bits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from pawl.gpu.adapters.low_rank import PackedAdapter
from pawl.gpu.adapters.small import random_adapter
from pawl.gpu.cuda.decoder import TritonDecoder
from pawl.gpu.cuda.shapes import GraphShape
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.decoder import TorchDecoder
from tests.gpu.driving import Piece, forward_inputs, int32
from tests.gpu.kernel_tools import DEVICE
from tests.gpu.native_models import ODD, SWITCHED, Made, make
from tests.gpu.test_cuda_decoder import AgainRecorder, deterministic, with_graphs

SINGLE = msgspec.structs.replace(ODD, num_layers=1, windows=(None,))
TOKENS = ([3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8])


def made(config: ModelConfig, kind: Any) -> tuple[Made, list[PackedAdapter]]:
    """A decoder and two adapters."""
    own = make(config, torch.float32, kind=kind, context=16, num_slots=3, page_size=4, device=DEVICE)
    return own, [own.backend.pack_adapter(random_adapter(config, rank, rank)) for rank in (3, 9)]


@pytest.mark.parametrize("config", [ODD, SWITCHED], ids=["odd", "switched"])
def test_adapters_and_the_base_in_one_batch_score_like_plain_torch(config: ModelConfig) -> None:
    found = []
    for kind in (TritonDecoder, TorchDecoder):
        own, packed = made(config, kind)
        adapters = {0: packed[0], 2: packed[1]}
        pieces = [Piece(slot, 0, tokens) for slot, tokens in enumerate(TOKENS)]
        first = own.backend.forward(forward_inputs(pieces, own.table, device=DEVICE, adapters=adapters)).clone()
        decode = [Piece(slot, len(tokens), [slot]) for slot, tokens in enumerate(TOKENS)]
        inputs = forward_inputs(decode, own.table, int32(0, 2), device=DEVICE, adapters=adapters)
        found.append(torch.cat((first, own.backend.forward(inputs), own.backend.hidden(inputs)[:, :1].expand(-1, 101))))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("sums_in_order")
def test_deterministic_rows_have_their_own_bits_whatever_their_neighbours_adapters() -> None:
    own, packed = made(SINGLE, deterministic)

    def last_logits(pieces: list[Piece], adapters: dict[int, PackedAdapter]) -> torch.Tensor:
        inputs = forward_inputs(pieces, own.table, device=DEVICE, adapters=adapters)
        logits = own.backend.forward(inputs)
        return logits[inputs.offsets[1] - 1].clone()

    pieces = [Piece(slot, 0, tokens) for slot, tokens in enumerate(TOKENS)]
    plain, adapted = last_logits(pieces[:1], {}), last_logits(pieces[:1], {0: packed[0]})
    assert not torch.equal(plain, adapted)
    assert torch.equal(last_logits(pieces, {1: packed[0], 2: packed[1]}), plain)
    assert torch.equal(last_logits(pieces, {0: packed[0], 2: packed[0]}), adapted)
    assert torch.equal(last_logits(pieces, {0: packed[0], 1: packed[1]}), adapted)


def test_a_step_with_an_adapter_is_not_replayed() -> None:
    own, packed = made(SINGLE, TritonDecoder)
    decode = [Piece(0, 0, [3]), Piece(1, 0, [4])]
    inputs = forward_inputs(decode, own.table, device=DEVICE, adapters={1: packed[0]})
    expected = own.backend.forward(inputs).clone()
    recorder = with_graphs(own, GraphShape(2, 16))
    torch.testing.assert_close(own.backend.forward(inputs), expected, rtol=1e-4, atol=1e-4)
    own.backend.forward(forward_inputs(decode, own.table, device=DEVICE))
    if isinstance(recorder, AgainRecorder):
        assert recorder.replayed == 1, "that of the step without one"
