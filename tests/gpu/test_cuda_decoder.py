"""The decoder of Triton kernels says what the one of plain torch says, with graphs and without.

Where there is no device, kernels run under Triton's interpreter, which takes milliseconds for what a device does in
one: models and batches here are as small as they can be and still have every switch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.backend import GreedyBackend, RefusedInputs
from pawl.gpu.cuda.decoder import TritonDecoder
from pawl.gpu.cuda.graphs import CudaRecorder, Replay
from pawl.gpu.cuda.shapes import GraphShape
from pawl.gpu.cuda.tables import DeviceTables
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import Experts, ModelConfig
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.small import random_weights
from tests.gpu.driving import Piece, WindowPages, forward_inputs, int32
from tests.gpu.kernel_tools import DEVICE
from tests.gpu.native_models import HYBRID, ODD, Made, make

LENGTHS = (13, 1, 5)
SEQUENCES = [np.random.default_rng(seed).integers(0, 101, length).tolist() for seed, length in enumerate(LENGTHS)]
CONTEXT = 16
SLOTS = len(LENGTHS)


SINGLE = msgspec.structs.replace(ODD, num_layers=1, windows=(None,))
FEW_EXPERTS = msgspec.structs.replace(
    ODD, experts=Experts(count=5, chosen=2, size=13, normalised=True, layers=(True, False))
)

SINGLE_EXPERTS = msgspec.structs.replace(
    SINGLE, experts=Experts(count=3, chosen=2, size=8, normalised=False, layers=(True,))
)


def both(config: ModelConfig, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Made, Made]:
    """The decoder under test and the one of plain torch, with equal weights and tables."""
    options = {"context": CONTEXT, "num_slots": SLOTS, "page_size": 4, "device": DEVICE} | options
    return make(config, dtype, kind=TritonDecoder, **options), make(config, dtype, kind=TorchDecoder, **options)


class AgainRecorder:
    """A recorder whose graphs simply run again. Counts what a device would have recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, run: Callable[[], None]) -> Replay:
        self.recorded += 1
        run()

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def with_graphs(made: Made, *shapes: GraphShape) -> AgainRecorder | CudaRecorder:
    """Record graphs of these shapes, on a device really."""
    recorder = AgainRecorder() if DEVICE == "cpu" else CudaRecorder(torch.device(DEVICE))
    graphs = made.backend.allocate_graphs(
        recorder, max_rows=8, num_slots=len(made.table), pages_per_slot=made.table.shape[1], max_context=CONTEXT
    )
    for shape in shapes:
        graphs.record(shape)
    return recorder


BATCHES = (
    ((0, 0, 7), (2, 0, 4)),
    # Chunks and decoding rows mixed, a new request among them.
    ((2, 4, 5), (0, 7, 12), (1, 0, 1)),
    ((0, 12, 13),),
)
"""(slot, first, last) of each segment; together they are all of `SEQUENCES`."""


def in_batches(made: Made, windows: WindowPages | None = None) -> torch.Tensor:
    """Logits of every row of `BATCHES`, with NaN in every page before."""
    made.kv.data.fill_(float("nan"))
    found = []
    for batch in BATCHES:
        pieces = [Piece(slot, first, SEQUENCES[slot][first:last]) for slot, first, last in batch]
        if windows is not None:
            windows.cover(pieces)
        table = None if windows is None else windows.table
        inputs = forward_inputs(pieces, made.table, device=DEVICE, window_table=table)
        found.append(made.backend.forward(inputs).clone())
    return torch.cat(found)


def test_experts_in_chunks_and_decode_steps_score_like_plain_torch() -> None:
    ours, theirs = both(FEW_EXPERTS)
    torch.testing.assert_close(in_batches(ours), in_batches(theirs), rtol=1e-4, atol=1e-4)


def test_two_stores_with_every_switch_score_like_plain_torch() -> None:
    made = both(HYBRID, num_window_pages=12)
    found, expected = (
        in_batches(decoder, WindowPages(decoder.kv, HYBRID, SLOTS, decoder.table.shape[1])) for decoder in made
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_as_near_to_float32_as_plain_torch_is() -> None:
    weights = random_weights(ODD, torch.bfloat16)
    wide = {name: weight.float() for name, weight in weights.items()}
    logits = [
        made.backend.forward(forward_inputs([Piece(0, 0, SEQUENCES[0])], made.table, device=DEVICE))
        for made in (*both(ODD, torch.bfloat16), both(ODD, weights=wide)[1])
    ]
    ours, theirs = ((found - logits[-1]).abs().mean() for found in logits[:2])
    assert ours < 1.5 * theirs


def prefilled(config: ModelConfig, **options: Any) -> tuple[Made, Made]:
    """Both decoders with every sequence but its last token in the pages."""
    ours, theirs = both(config, **options)
    pieces = [Piece(slot, 0, sequence[:-1]) for slot, sequence in enumerate(SEQUENCES) if len(sequence) > 1]
    for made in (ours, theirs):
        made.backend.forward(forward_inputs(pieces, made.table, device=DEVICE))
    return ours, theirs


def decode_pieces() -> list[Piece]:
    return [Piece(slot, len(sequence) - 1, sequence[-1:]) for slot, sequence in enumerate(SEQUENCES)]


@pytest.mark.parametrize("config", [SINGLE, SINGLE_EXPERTS], ids=["dense", "experts"])
def test_a_replayed_step_scores_like_one_that_is_not(config: ModelConfig) -> None:
    ours, _ = prefilled(config)
    inputs = forward_inputs(decode_pieces(), ours.table, device=DEVICE)
    plain = ours.backend.forward(inputs).clone()
    recorder = with_graphs(ours, GraphShape(4, CONTEXT))
    torch.testing.assert_close(ours.backend.forward(inputs), plain, rtol=1e-4, atol=1e-4)
    wanted = replace(inputs, logit_rows=int32(0, 2))
    torch.testing.assert_close(ours.backend.forward(wanted), plain[[0, 2]], rtol=1e-4, atol=1e-4)
    # A step of a size that has no graph.
    pair = forward_inputs(decode_pieces()[1:], ours.table, device=DEVICE)
    torch.testing.assert_close(ours.backend.forward(pair), plain[1:], rtol=1e-4, atol=1e-4)
    if isinstance(recorder, AgainRecorder):
        assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_greedy_is_the_argmax_of_the_logits() -> None:
    ours, _ = prefilled(SINGLE)
    assert isinstance(ours.backend, GreedyBackend)
    inputs = forward_inputs(decode_pieces(), ours.table, device=DEVICE)
    greedy = ours.backend.forward_greedy(inputs)
    assert greedy.dtype == torch.int32
    assert torch.equal(greedy.long(), ours.backend.forward(inputs).argmax(-1))


def test_padding_rows_touch_nothing() -> None:
    ours, theirs = prefilled(SINGLE)
    with_graphs(ours, GraphShape(8, CONTEXT), GraphShape(4, CONTEXT))
    inputs = forward_inputs(decode_pieces(), ours.table, device=DEVICE)
    for made in (ours, theirs):
        expected = made.kv.data.clone()
        made.backend.forward(inputs)
        written = torch.zeros_like(expected, dtype=torch.bool)
        for piece in decode_pieces():
            written[:, :, made.table[piece.slot, piece.start // 4], piece.start % 4] = True
        assert torch.equal(made.kv.data != expected, written)


def test_recording_touches_no_page() -> None:
    ours, _ = both(SINGLE)
    ours.kv.data.fill_(7.0)
    with_graphs(ours, GraphShape(2, CONTEXT))
    assert bool((ours.kv.data == 7.0).all())


@pytest.mark.usefixtures("sums_in_order")
def test_only_named_changes_of_the_tables_are_taken_over() -> None:
    ours, _ = prefilled(SINGLE)
    inputs = forward_inputs(decode_pieces(), ours.table, device=DEVICE)
    plain = ours.backend.forward(inputs).clone()
    # The first page of slot 0 moves to one that nobody uses, and leaves NaN behind.
    old, new = int(ours.table[0, 0]), int(ours.table[1, 3])
    ours.kv.data[:, :, new] = ours.kv.data[:, :, old]
    ours.kv.data[:, :, old] = float("nan")
    ours.table[0, 0] = new
    named = replace(inputs, changed=(int32(0, 0), int32(0, 0)))
    unnamed = replace(inputs, changed=(int32(), int32()))
    assert bool(ours.backend.forward(unnamed)[0].isnan().all())
    assert torch.equal(ours.backend.forward(named), plain)


def test_a_table_of_another_size_is_refused_once_graphs_exist() -> None:
    ours, _ = prefilled(SINGLE)
    with_graphs(ours, GraphShape(1, CONTEXT))
    wider = np.concatenate((ours.table, ours.table), axis=1)
    with pytest.raises(RefusedInputs, match="another size"):
        ours.backend.forward(forward_inputs(decode_pieces(), wider, device=DEVICE))
    ours.backend.free_graphs()
    ours.backend.forward(forward_inputs(decode_pieces(), wider, device=DEVICE))


def deterministic(config: ModelConfig, weights: dict[str, torch.Tensor], kv: KvStore, *, threads: int) -> TritonDecoder:
    return TritonDecoder(config, weights, kv, threads=threads, deterministic=True)


@pytest.mark.usefixtures("sums_in_order")
def test_deterministic_rows_have_the_same_bits_alone_chunked_batched_and_replayed() -> None:
    ours = make(SINGLE, torch.float32, kind=deterministic, context=CONTEXT, num_slots=SLOTS, page_size=4, device=DEVICE)
    tokens = SEQUENCES[0][:6]

    def last_logits(*batches: list[Piece]) -> torch.Tensor:
        """Of slot 0's last row, which is the first of the last batch."""
        for pieces in batches:
            logits = ours.backend.forward(forward_inputs(pieces, ours.table, device=DEVICE))
        return logits[0].clone()

    other = Piece(1, 0, SEQUENCES[2])
    found = last_logits([Piece(0, 0, tokens[:5])], [Piece(0, 5, tokens[5:])])
    assert torch.equal(last_logits([Piece(0, 0, tokens)], [Piece(0, 5, tokens[5:]), other]), found)
    chunked = [[Piece(0, 0, tokens[:2]), other], [Piece(0, 2, tokens[2:])], [Piece(0, 5, tokens[5:])]]
    assert torch.equal(last_logits(*chunked), found)
    with_graphs(ours, GraphShape(4, CONTEXT), GraphShape(2, CONTEXT))
    both_rows = [Piece(0, 5, tokens[5:]), Piece(1, len(SEQUENCES[2]), [3])]
    assert torch.equal(last_logits(both_rows), found)
    three = [*both_rows, Piece(2, 0, [5])]
    assert torch.equal(last_logits(three), found)


def test_tables_that_follow_for_the_first_time_take_over_what_others_were_told() -> None:
    tables, host = DeviceTables(torch.device("cpu")), np.arange(12, dtype=np.int32).reshape(3, 4)
    tables.allocate(1, *host.shape)
    address = tables.of(False).data_ptr()
    nothing = np.zeros(0, np.int32)
    inputs = replace(forward_inputs([Piece(0, 0, [1])], host), changed=(nothing, nothing))
    tables.follow(inputs)
    assert tables.of(False).tolist() == host.tolist()
    assert tables.of(False).data_ptr() == address
    host[1, 2], host[2, 3] = 90, 91
    tables.follow(replace(inputs, changed=(int32(1), int32(2))))
    assert tables.of(False)[1:, 2:].tolist() == [[90, 7], [10, 11]], "later only what changed"


def test_a_graph_counts_no_experts_of_the_step_before() -> None:
    ours, _ = prefilled(SINGLE_EXPERTS)
    inputs = forward_inputs(decode_pieces(), ours.table, device=DEVICE)
    counts = torch.zeros((1, 3), dtype=torch.int64, device=DEVICE)
    ours.backend.forward(replace(inputs, expert_counts=counts))
    before = counts.clone()
    with_graphs(ours, GraphShape(4, CONTEXT))
    assert ours.backend._counts is None
    assert torch.equal(counts, before)
