"""Experts of a real model under explored schedules: what is counted is what was computed, and tokens are the same."""

from __future__ import annotations

import msgspec
import pytest
import torch

from pawl.actors.control.experts import DumpExpertRecord, StartExpertRecord, StopExpertRecord
from pawl.actors.simulation.faults import Faults
from pawl.gpu.models.config import Experts
from pawl.gpu.models.small import random_weights
from pawl.testing import Workload, explore_workload
from pawl.testing.models import RealModel
from pawl.testing.workload import Control
from tests.pawl.test_explore_real import CONFIG, cpu_backend

MIXTURE = msgspec.structs.replace(
    CONFIG, experts=Experts(count=5, chosen=2, size=24, normalised=True, layers=(True,) * CONFIG.num_layers)
)
RECORD = (
    Control(body=StartExpertRecord(), after_tokens=1),
    Control(body=DumpExpertRecord(), after_tokens=3),
    Control(body=StopExpertRecord(), after_tokens=5),
    Control(body=DumpExpertRecord(), after_tokens=6),
)
"""What is dumped is judged by the row: each token has two experts in each layer."""


@pytest.mark.parametrize("speculate", ["none", "ngram"])
def test_what_is_counted_in_any_schedule_is_what_was_computed(speculate: str) -> None:
    model = RealModel(MIXTURE, lambda: random_weights(MIXTURE, torch.float32), backend=cpu_backend())
    for seed in range(3):
        drawn = Workload.random(seed, window=None, host_pages=0, speculate=speculate)
        workload = msgspec.structs.replace(drawn, controls=RECORD, closing=None)
        outcome = explore_workload(workload, "random", 4, seed=seed, faults=Faults(strike=seed % 2), model=model)
        assert outcome.found is None, outcome.found
