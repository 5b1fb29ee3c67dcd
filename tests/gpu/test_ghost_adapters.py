"""Adapters of a ghost: what it says depends on the one that computes, and none goes on from what another computed."""

from __future__ import annotations

import msgspec
import pytest

from pawl.gpu.ghost.language import adapter_salt_of
from pawl.gpu.ghost.memory import GhostFault
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.weights import GhostWeights
from pawl.gpu.step_runner import AdapterRefused
from pawl.lifecycle.weight_source import FromDisk
from tests.gpu.ghost_rows import GREEDY, Rows, prompt_of

PROMPT = prompt_of(1, 9)


@pytest.fixture(params=[False, True], ids=["large", "small"])
def rows(request: pytest.FixtureRequest) -> Rows:
    return Rows(small=request.param)


def begin(rows: Rows, slot: int, adapter: int) -> None:
    batch = rows.admission(slot, GREEDY, PROMPT)
    rows.run(msgspec.structs.replace(batch, admitted=(msgspec.structs.replace(batch.admitted[0], adapter=adapter),)))
    rows.run(rows.batch([(slot, PROMPT, True)]))


def test_each_row_of_a_batch_is_computed_with_its_own_adapter(rows: Rows) -> None:
    assert rows.ghost.load_adapter(1, "ghost:a") == "ghost:a"
    rows.ghost.load_adapter(2, "ghost:b")
    for slot in range(3):
        begin(rows, slot, adapter=slot)
    for _ in range(5):
        rows.decode(0, 1, 2)
    salts = (0, adapter_salt_of("ghost:a"), adapter_salt_of("ghost:b"))
    assert rows.output == [expected(PROMPT, 6, salt) for salt in salts]
    assert rows.output[1] != rows.output[0] != rows.output[2]


def test_an_adapter_works_together_with_the_weights(rows: Rows) -> None:
    rows.ghost.load_adapter(1, "ghost:a")
    rows.ghost.stage(1, FromDisk("ghost:b"))
    rows.ghost.swap(1)
    begin(rows, 0, adapter=1)
    assert rows.output[0] == expected(PROMPT, 1, GhostWeights.named("ghost:b").salt + adapter_salt_of("ghost:a"))


def test_a_request_whose_adapter_is_not_there_is_a_fault(rows: Rows) -> None:
    with pytest.raises(GhostFault, match="no adapter in adapter slot 1"):
        begin(rows, 0, adapter=1)
    assert rows.ghost.faults


@pytest.mark.parametrize("change", ["load_adapter", "unload_adapter"])
def test_an_adapter_that_changes_under_a_request_is_a_fault(rows: Rows, change: str) -> None:
    rows.ghost.load_adapter(1, "ghost:a")
    begin(rows, 0, adapter=1)
    getattr(rows.ghost, change)(1, *(["ghost:b"] if change == "load_adapter" else []))
    with pytest.raises(GhostFault, match="another adapter"):
        rows.decode(0)


def test_adapters_outlive_a_reset_and_one_that_is_refused_leaves_its_slot_empty(rows: Rows) -> None:
    rows.ghost.load_adapter(1, "ghost:a")
    rows.ghost.reset()
    begin(rows, 0, adapter=1)
    with pytest.raises(AdapterRefused, match="are called ghost:NAME"):
        rows.ghost.load_adapter(1, "nowhere")
    with pytest.raises(GhostFault, match="no adapter in adapter slot 1"):
        begin(rows, 1, adapter=1)
