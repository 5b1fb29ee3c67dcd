"""Real forward passes under explored schedules: every request gets what it gets from a runner of its own."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import settings

from pawl.actors.simulation.faults import Faults
from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.ghost.language import VOCABULARY_SIZE
from pawl.gpu.models.small import llama_config, random_weights
from pawl.gpu.runner import Runner
from pawl.gpu.select import BackendChoice, native_backend
from pawl.lifecycle.step import StepBatch
from pawl.loops.orders.adapters import LoadAdapter
from pawl.loops.select import LoopConfig
from pawl.testing import NO_FAULTS, Arrival, PropertyFailed, Shape, Workload, explore_workload
from pawl.testing.models import RealModel
from pawl.testing.workload import Control
from tests.gpu.driving import DEVICES

CONFIG = llama_config(vocab_size=VOCABULARY_SIZE, hidden_size=32, head_dim=8, intermediate_size=48, max_position=64)
CELLS = [(pacing, mixed) for pacing in ("lockstep", "overlap") for mixed in (False, True)]
NIGHTLY = settings().max_examples > 1000
SCHEDULES, WORKLOADS = (50, 60) if NIGHTLY else (3, 6)


def cpu_backend() -> BackendChoice:
    """The compiled kernels, whose rows do not depend on their batch, where they can be built."""
    try:
        native_backend()
    except BackendUnavailable:
        return "torch"
    return "native"


def model_on(device: str) -> RealModel:
    """A tiny random Llama in float32."""
    backend: BackendChoice = cpu_backend() if device == "cpu" else "auto"
    return RealModel(
        CONFIG,
        lambda: random_weights(CONFIG, torch.float32),
        device=device,
        backend=backend,
        deterministic=device != "cpu",
    )


@pytest.fixture(scope="module", params=DEVICES)
def model(request: pytest.FixtureRequest) -> RealModel:
    return model_on(request.param)


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_real_passes_give_every_request_its_own_tokens(model: RealModel, pacing: str, mixed: bool) -> None:
    for seed in range(WORKLOADS):
        workload = Workload.random(seed, pacing=pacing, mixed=mixed, window=None, host_pages=0)
        faults = Faults(strike=seed % 2)
        strategy = ("pct", "random", "pos")[seed % 3]
        outcome = explore_workload(
            workload, strategy, SCHEDULES, seed=seed, faults=faults, confirm_every=SCHEDULES, model=model
        )
        assert outcome.found is None, outcome.found
        assert outcome.result.schedules == SCHEDULES


SHARING = Workload(
    arrivals=(
        Arrival(prompt=(97, 98, 97, 98, 98), max_new_tokens=6),
        Arrival(prompt=(97, 98, 97, 98, 97), max_new_tokens=6, seed=3),
        Arrival(prompt=(98, 98, 97), max_new_tokens=5, after_tokens=4),
    ),
    shape=Shape(num_pages=12, max_running=2),
)


def test_prefixes_and_slots_that_are_used_again_give_the_same_tokens(model: RealModel) -> None:
    outcome = explore_workload(SHARING, "pct", SCHEDULES, model=model)
    assert outcome.found is None, outcome.found


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="with a device they run there")
@pytest.mark.usefixtures("sums_in_order")
@pytest.mark.parametrize(
    ("pacing", "mixed"), [CELLS[3], *(pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS[:3])]
)
def test_interpreted_kernels_give_every_request_its_own_tokens(pacing: str, mixed: bool) -> None:
    model = RealModel(
        CONFIG, lambda: random_weights(CONFIG, torch.float32), backend="triton", deterministic=True, longest=24
    )
    # Two requests with a page in common and one that comes later: the interpreter takes a second for ten tokens.
    arrivals = (
        Arrival(prompt=(97, 98, 97), max_new_tokens=3),
        Arrival(prompt=(97, 98, 98), max_new_tokens=2, seed=5, after_tokens=1),
    )
    workload = Workload(arrivals=arrivals, shape=Shape(num_pages=5, max_running=2, pacing=pacing, mixed=mixed))
    for faults in (NO_FAULTS, Faults(strike=1)):
        outcome = explore_workload(workload, "pct", 1, faults=faults, shrink=False, model=model)
        assert outcome.found is None, outcome.found


ADAPTED = Workload(
    arrivals=(
        Arrival(prompt=(97, 98, 97, 98, 98), max_new_tokens=6, adapter="x", after_tokens=1),
        Arrival(prompt=(97, 98, 97, 98, 98), max_new_tokens=6, adapter="y", after_tokens=1),
        Arrival(prompt=(97, 98, 97, 98, 98), max_new_tokens=6),
        Arrival(prompt=(98, 98, 97), max_new_tokens=5, adapter="y", seed=3, after_tokens=4),
    ),
    controls=(
        Control(body=LoadAdapter(name="x", path="ghost:a")),
        Control(body=LoadAdapter(name="y", path="ghost:b")),
    ),
    shape=Shape(num_pages=12, max_running=3, max_loras=2, max_loaded_loras=3),
)


def test_requests_of_different_adapters_are_computed_each_with_its_own(model: RealModel) -> None:
    # With two slots, and with one, which they have in turns.
    for max_loras, faults in ((2, NO_FAULTS), (2, Faults(strike=1)), (1, Faults(strike=1))):
        shape = msgspec.structs.replace(ADAPTED.shape, max_loras=max_loras)
        workload = msgspec.structs.replace(ADAPTED, shape=shape)
        outcome = explore_workload(workload, "pct", SCHEDULES, model=model, faults=faults)
        assert outcome.found is None, outcome.found


def test_the_model_says_other_things_with_other_adapters() -> None:
    alone = model_on("cpu").expectations.alone
    prompt = (97, 98, 97, 98, 98)
    sources = ("", "ghost:a", "ghost:b")
    assert len({alone(Arrival(prompt=prompt, max_new_tokens=6, adapter=source)) for source in sources}) == 3


def test_the_model_says_other_things_to_other_prompts() -> None:
    alone = model_on("cpu").expectations.alone
    outputs = {alone(Arrival(prompt=prompt, max_new_tokens=6)) for prompt in ((97,), (98,), (97, 98), (98, 97))}
    assert len(outputs) == 4


class CarelessRunner:
    """A runner that is not told right."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def launch(self, batch: StepBatch) -> Any:
        pages = batch.pages.copy()
        if len(pages) > 1:
            pages[1] = pages[0]
        return self._runner.launch(msgspec.structs.replace(batch, pages=pages))


class Careless(RealModel):
    """Its runners write the second page of a row where the first one is."""

    def runner(self, config: LoopConfig, number: int = 0) -> Any:
        return CarelessRunner(super().runner(config, number))


def test_a_page_that_is_lost_shows_in_the_tokens() -> None:
    careless = Careless(CONFIG, lambda: random_weights(CONFIG, torch.float32), backend=cpu_backend())
    outcome = explore_workload(SHARING, "fair", 1, shrink=False, model=careless)
    assert outcome.found is not None
    error = outcome.found.failure.error
    assert isinstance(error, PropertyFailed)
    assert error.property == "schedule_equivalence"
