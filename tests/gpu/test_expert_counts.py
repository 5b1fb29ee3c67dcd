"""Which experts tokens use: counted by both backends, compared with transformers' own routers and with a hand count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pawl.actors.control.experts import DUMP_EXPERTS, START_EXPERTS, STOP_EXPERTS, DumpExpertRecord
from pawl.actors.messages.control import Reply
from pawl.actors.worker import Worker
from pawl.gpu.expert_counts import ExpertCounts, tally
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.profiler import Profiler
from pawl.gpu.tracers import torch_tracer
from pawl.gpu.weights.source import load_weights, resolve_source
from pawl.lifecycle.step import StepBatch
from pawl.testing.experts import SimulatedExperts
from tests.gpu.driving import Piece, forward_inputs, int32
from tests.gpu.native_models import EXPERTS, Native, make
from tests.gpu.tiny import VOCABULARY, save_tiny, tiny_model

BACKENDS = (Native, TorchDecoder)


def tokens_of(length: int, seed: int = 7) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()
    return drawn


def counted(made: Any, pieces: list[list[Piece]], rows: list[int] | None = None) -> NDArray[np.int64]:
    """What forwards of these pieces add up to; logits of `rows` alone are wanted."""
    counts = ExpertCounts(made.backend.config.experts, torch.device("cpu"))
    counts.start()
    for each in pieces:
        inputs = forward_inputs(each, made.table, None if rows is None else int32(*rows))
        made.backend.forward(replace(inputs, expert_counts=counts.counts))
    return counts.take()


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "qwen3-moe-mixed"])
def test_counts_are_those_of_the_routers_of_transformers(name: str, kind: Any, tmp_path: Path) -> None:
    source = resolve_source(str(save_tiny(name, tmp_path)))
    experts = source.config.experts
    assert experts is not None
    made = make(source.config, torch.float32, kind=kind, weights=load_weights(source, torch.float32))
    tokens = tokens_of(19)
    chunks = [[Piece(1, start, tokens[start:end])] for start, end in ((0, 7), (7, 8), (8, 19))]
    found = counted(made, chunks, rows=[0])
    with torch.no_grad():
        said = tiny_model(name)(torch.tensor([tokens]), output_router_logits=True).router_logits
    routed = iter(logits for logits in said if logits is not None)
    for layer, has in enumerate(experts.layers):
        chosen = next(routed).topk(experts.chosen, -1).indices.flatten() if has else torch.zeros(0, dtype=torch.long)
        assert found[layer].tolist() == torch.bincount(chosen, minlength=experts.count).tolist(), layer
    assert found.sum() == len(tokens) * experts.chosen * sum(experts.layers)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("rows", [[], [2], [0, 3]])
def test_every_row_counts_in_every_layer_whoever_wants_its_scores(kind: Any, rows: list[int]) -> None:
    made = make(EXPERTS, torch.float32, kind=kind)
    found = counted(made, [[Piece(0, 0, [5, 6, 7]), Piece(2, 0, [8])]], rows)
    assert found.sum(1).tolist() == [12, 0, 12]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_give_the_same_bits_while_experts_are_counted(dtype: torch.dtype) -> None:
    made = make(EXPERTS, dtype, threads=2)
    inputs = forward_inputs([Piece(0, 0, tokens_of(40)), Piece(2, 0, [8])], made.table, int32(7, 39, 40))
    plain = made.backend.forward(inputs)
    counts = torch.zeros((3, 37), dtype=torch.int64)
    assert torch.equal(plain, made.backend.forward(replace(inputs, expert_counts=counts)))
    assert counts.sum(1).tolist() == [123, 0, 123]


def test_a_tally_is_a_count_by_hand() -> None:
    counts = torch.zeros(4, dtype=torch.int64)
    tally(counts, torch.tensor([[0, 3], [3, 1]], dtype=torch.int32))
    tally(counts, torch.tensor([[3, 2]]))
    assert counts.tolist() == [1, 1, 1, 3]


# ---- the worker ----


class Steps:
    """A runner of a model with experts, or none."""

    depth = 0

    def __init__(self, *, experts: bool = True) -> None:
        self.experts = SimulatedExperts() if experts else None

    def launch(self, batch: StepBatch) -> None:
        if self.experts is not None:
            self.experts.computed(batch)


class Desk:
    """A worker, and what it answers."""

    def __init__(self, folder: Path, *, experts: bool = True) -> None:
        self.runner: Any = Steps(experts=experts)
        self.worker = Worker(self.runner, profiler=Profiler(torch_tracer, folder))
        self.worker.context = type("Clock", (), {"wall": lambda _: 12.5})()

    def step(self, *lengths: int) -> None:
        batch: Any = type("Batch", (), {"step": 0, "lengths": int32(*lengths)})()
        self.runner.launch(batch)
        self.worker.experts.computed(batch)

    def tell(self, row: Any) -> tuple[int, dict[str, Any]]:
        outcome = row.by_worker(self.worker, row.message())
        return row.show(Reply(1, outcome.ok, outcome.message, outcome.facts), {})  # type: ignore[no-any-return]


def test_what_is_computed_between_start_and_stop_is_counted_and_taken_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.step(9)
    assert desk.tell(START_EXPERTS)[0] == 200
    desk.step(3, 1)
    desk.step(2)
    assert desk.tell(STOP_EXPERTS)[0] == 200
    desk.step(5)
    status, record = desk.tell(DUMP_EXPERTS)
    assert (status, record["num_tokens"], record["logical_count"]) == (200, 6, [[0, 0, 0, 0], [5, 0, 1, 0]])
    written = Path(record["file"])
    assert written.stat().st_mode & 0o777 == 0o600
    assert msgspec.json.decode(written.read_bytes()).items() <= record.items()
    assert DUMP_EXPERTS.check(DumpExpertRecord(), Reply(1, True, body=record)) is None
    assert DUMP_EXPERTS.check(DumpExpertRecord(), Reply(1, True, body=record | {"num_tokens": 7})) is not None
    assert desk.tell(DUMP_EXPERTS)[0] == 409


def test_a_record_that_is_taken_while_it_goes_on_begins_anew(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.tell(START_EXPERTS)
    desk.step(4)
    assert desk.tell(DUMP_EXPERTS)[1]["num_tokens"] == 4
    desk.step(3)
    assert desk.tell(DUMP_EXPERTS)[1]["logical_count"] == [[0, 0, 0, 0], [2, 0, 1, 0]]


def test_a_second_start_and_a_stop_of_nothing_are_conflicts_and_a_model_without_experts_refuses(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert [desk.tell(row)[0] for row in (STOP_EXPERTS, DUMP_EXPERTS, START_EXPERTS, START_EXPERTS)] == [
        *(409, 409, 200, 409)
    ]
    plain = Desk(tmp_path, experts=False)
    for row in (START_EXPERTS, STOP_EXPERTS, DUMP_EXPERTS):
        status, body = plain.tell(row)
        assert (status, body["error"]["message"]) == (400, "the model that is served has no experts")


def test_a_file_that_cannot_be_written_costs_no_counts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    desk = Desk(tmp_path / "file")
    desk.tell(START_EXPERTS)
    desk.step(4)
    status, body = desk.tell(DUMP_EXPERTS)
    assert (status, body["num_tokens"], "cannot be written" in body["message"]) == (400, 4, True)
