"""Memory of a runner that is released and had again: the same words, the same bytes, and whatever fails leaves a state
from which it can be tried again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pawl.gpu.adapters.low_rank import Adapter
from pawl.gpu.adapters.slots import AdapterSlots
from pawl.gpu.backend import RefusedInputs
from pawl.gpu.kv import KvStore
from pawl.gpu.step_runner import AdapterRefused, MemoryRefused, WeightsRefused
from pawl.gpu.weights.blocks import numbers_of
from pawl.gpu.weights.kept import KeptWeights, KeptWeightsDamaged
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.weight_source import FromDisk, FromTensors
from tests.gpu.driving import same_bits
from tests.gpu.test_two_stores import HYBRID
from tests.gpu.test_updates import BACKENDS, BackendChoice, folder, runner_of, said

ALL = tuple(MemoryTag)
KV, WEIGHTS, GRAPH = MemoryTag.KV_CACHE, MemoryTag.WEIGHTS, MemoryTag.CUDA_GRAPH


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tags", [ALL, (KV,), (WEIGHTS,), (GRAPH,)], ids=["all", *ALL])
def test_after_a_release_a_runner_says_what_it_said(
    one: Path, backend: BackendChoice, tags: tuple[MemoryTag, ...]
) -> None:
    runner = runner_of(one, backend)
    before = said(runner)
    runner.release(tags)
    assert runner.released == set(tags)
    runner.release(tags)
    runner.resume(ALL)
    runner.resume(tags)
    assert runner.released == set()
    assert said(runner) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_while_the_weights_are_released_fails_and_changes_nothing(one: Path, backend: BackendChoice) -> None:
    runner = runner_of(one, backend)
    before = said(runner)
    runner.release(ALL)
    with pytest.raises(RefusedInputs, match="the weights are released"):
        said(runner)
    runner.reset()
    runner.resume(ALL)
    runner.reset()
    assert said(runner) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_come_back_to_the_bit_also_where_they_came_from_no_file(
    one: Path, two: Path, backend: BackendChoice
) -> None:
    runner = runner_of(one, backend)
    name = "model.layers.1.mlp.up_proj.weight"
    sent = load_file(two / "model.safetensors")[name]
    runner.stage(1, FromTensors({name: sent}))
    runner.swap(1)
    before = said(runner)
    weights = {name: np.array(numbers_of(weight)) for name, weight in runner.backend.named_weights().items()}
    assert same_bits(weights[name], sent)
    runner.release((WEIGHTS,))
    runner.resume((WEIGHTS,))
    again = runner.backend.named_weights()
    assert again.keys() == weights.keys()
    for each, weight in weights.items():
        assert same_bits(again[each], weight), each
    assert said(runner) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_takes_the_place_of_weights_that_are_released(one: Path, two: Path, backend: BackendChoice) -> None:
    runner, other = runner_of(one, backend), runner_of(two, backend)
    runner.release(ALL)
    runner.stage(1, FromDisk(str(two)))
    runner.swap(1)
    assert runner.released == {KV, GRAPH}
    runner.resume(ALL)
    assert said(runner) == said(other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_new_weights_fit_together_whatever_is_released_or_resumed_between_them(
    one: Path, two: Path, backend: BackendChoice
) -> None:
    names = "model.layers.0.self_attn.o_proj.weight", "model.norm.weight"
    sent = load_file(two / "model.safetensors")
    released, resumed, other = (runner_of(one, backend) for _ in range(3))
    before = said(other)
    for each in (released, resumed, other):
        each.stage(1, FromTensors({names[0]: sent[names[0]]}), last=False)
    released.release(ALL)
    resumed.release(ALL)
    resumed.resume(ALL)
    assert said(resumed) == before
    for each in (released, resumed, other):
        each.stage(1, FromTensors({names[1]: sent[names[1]]}))
        each.swap(1)
    released.resume(ALL)
    assert said(released) == said(resumed) == said(other) != before


def test_pages_keep_their_addresses_and_read_as_zeros(one: Path) -> None:
    runner = runner_of(one, "native")
    said(runner)
    place = runner.kv.data.data_ptr()
    runner.kv.data.fill_(1.0)
    runner.release((KV,))
    runner.resume((KV,))
    assert runner.kv.data.data_ptr() == place
    # What is less than a page of the system at either end keeps its bytes: it is not zeroed, and means nothing.
    assert not runner.kv.data.view(-1)[4096:-4096].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_room_on_the_disk_weights_are_not_released_and_serve_on(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: BackendChoice
) -> None:
    runner = runner_of(one, backend)
    before = said(runner)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(MemoryRefused, match="weights cannot wait in"):
        runner.release(ALL)
    assert runner.released == set()
    assert said(runner) == before


class Scarce:
    """Makes a call fail, once."""

    def __init__(self, call: Callable[..., Any], error: BaseException) -> None:
        self._call = call
        self._error: BaseException | None = error

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._call(*arguments, **named)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_without_memory_for_them_weights_stay_released_and_come_the_next_time(
    one: Path, backend: BackendChoice, error: BaseException
) -> None:
    runner = runner_of(one, backend)
    before = said(runner)
    runner.release(ALL)
    runner.updates._make = Scarce(runner.updates._make, error)
    with pytest.raises(type(error)):
        runner.resume(ALL)
    assert runner.released == set(ALL)
    runner.reset()
    runner.resume(ALL)
    assert said(runner) == before


def test_a_file_that_was_damaged_gives_no_weights(one: Path) -> None:
    runner = runner_of(one, "torch")
    runner.release((WEIGHTS,))
    kept = runner.backend.named_weights()
    assert isinstance(kept, KeptWeights)
    (byte,) = os.pread(kept._file.fileno(), 1, 1000)
    os.pwrite(kept._file.fileno(), bytes([byte ^ 1]), 1000)
    with pytest.raises(MemoryRefused, match="is damaged at"):
        runner.resume((WEIGHTS,))
    assert runner.released == {WEIGHTS}


def test_kept_weights_have_no_name_and_are_what_was_written(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6).reshape(2, 3).to(torch.bfloat16), "b": torch.rand(5, 7)[:, ::2]}
    kept = KeptWeights(weights, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    assert (list(kept), len(kept)) == (list(weights), 2)
    for name, weight in weights.items():
        assert same_bits(kept[name], weight)
    with pytest.raises(KeyError):
        kept["d"]


def test_a_kept_file_that_ends_early_is_damaged(tmp_path: Path) -> None:
    kept = KeptWeights({"a": torch.rand(1000)}, tmp_path)
    kept._file.truncate(100)
    with pytest.raises(KeptWeightsDamaged):
        kept["a"]


def test_graphs_are_recorded_again_once_all_is_resident(one: Path) -> None:
    runner = runner_of(one, "torch")
    recorded: list[str] = []
    runner._graphs = object()  # type: ignore[assignment]
    runner.free_graphs = lambda: setattr(runner, "_graphs", None)  # type: ignore[method-assign]
    runner.prepare_graphs = lambda recorder=None: [1, 2]  # type: ignore[method-assign, list-item]
    runner.record_graph = lambda shape: recorded.append(str(shape))  # type: ignore[method-assign]
    runner.release(ALL)
    assert runner._graphs is None
    runner.resume((WEIGHTS,))
    runner.resume((KV,))
    assert recorded == []
    runner.resume((GRAPH,))
    assert recorded == ["1", "2"]


def test_two_stores_are_released_together() -> None:
    sizes: dict[str, Any] = {"num_pages": 64, "num_window_pages": 64, "page_size": 16}
    store = KvStore(HYBRID, **sizes, dtype=torch.float32, device="cpu")
    assert store.window_data is not None
    for data in (store.data, store.window_data):
        data.fill_(1.0)
    store.release()
    store.resume()
    for data in (store.data, store.window_data):
        assert not data.view(-1)[4096:-4096].any()


def test_an_exchange_whose_steps_cannot_be_recorded_leaves_the_weights_before(one: Path, two: Path) -> None:
    runner = runner_of(one, "torch")
    before = said(runner)
    runner.release((WEIGHTS,))
    runner._recorded = True
    runner.prepare_graphs = Scarce(runner.prepare_graphs, RuntimeError("out of memory"))  # type: ignore[method-assign]
    runner.stage(1, FromDisk(str(two)))
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.swap(1)
    assert runner.released == {WEIGHTS}
    runner.resume(ALL)
    assert said(runner) == before


def test_a_release_that_fails_midway_says_what_is_released(one: Path) -> None:
    runner = runner_of(one, "torch")
    before = said(runner)
    runner.kv.release = Scarce(runner.kv.release, OSError("madvise"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="madvise"):
        runner.release(ALL)
    assert runner.released == {WEIGHTS, GRAPH}
    runner.reset()
    runner.resume(ALL)
    assert said(runner) == before


def test_pages_that_are_released_are_neither_computed_with_nor_copied(one: Path) -> None:
    runner = runner_of(one, "native")
    pages = np.zeros(1, np.int32)
    block = runner.read_pages(pages)
    runner.release((KV,))
    for use in (lambda: said(runner), lambda: runner.read_pages(pages), lambda: runner.write_pages(pages, block)):
        with pytest.raises(RefusedInputs, match="the pages are released"):
            use()


def test_new_weights_for_which_a_device_has_no_memory_are_refused(one: Path, two: Path) -> None:
    runner = runner_of(one, "torch")
    runner.updates._make = Scarce(runner.updates._make, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(WeightsRefused, match="CUDA out of memory"):
        runner.stage(1, FromDisk(str(two)))


def test_an_adapter_for_which_a_device_has_no_memory_is_refused() -> None:
    slots = AdapterSlots(HYBRID, 1, lambda source, config: Adapter("", ()))
    with pytest.raises(AdapterRefused, match="CUDA out of memory"):
        slots.load(1, "somewhere", Scarce(print, torch.OutOfMemoryError("CUDA out of memory")))
