"""Ranks that meet through torch.distributed: gloo between processes, nccl where there are devices enough."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CODE = """
import sys
from pathlib import Path
import torch
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.torch_groups import TorchGroups

device, rank, store = torch.device(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
device = torch.device("cuda", rank) if device.type == "cuda" else device
groups = TorchGroups(Topology(tensor=2), rank, device, store, 60.0)
ones = torch.full((3, 2), float(rank + 1), device=device)
groups.all_reduce(ones)
assert (ones == 3).all()
sizes = [3, 2]
mine = torch.full((2, sizes[rank]), float(rank), device=device)
both = groups.all_gather(mine, sizes)
assert both.tolist() == [[0, 0, 0, 1, 1]] * 2, both
told = torch.full((4,), float(rank), device=device)
groups.broadcast(told, 1)
assert (told == 1).all()
"""


def meet(device: str, folder: Path) -> None:
    command = [sys.executable, "-c", CODE, device]
    ranks = [subprocess.Popen([*command, str(rank), str(folder / "store")]) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]


@pytest.mark.slow
def test_two_processes_add_up_and_gather_parts_of_different_sizes(tmp_path: Path) -> None:
    meet("cpu", tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="ranks on devices need two of them")
def test_two_devices_add_up_and_gather_parts_of_different_sizes(tmp_path: Path) -> None:
    meet("cuda", tmp_path)
