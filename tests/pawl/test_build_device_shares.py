"""CUDA devices of a host, shared out among its replicas."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pawl.build.device_shares import VISIBLE, devices_of, take_devices
from pawl.build.replicas import share_of
from pawl.config import ConfigError, build_config
from pawl.engine import Engine
from tests.gpu.driving import NEEDS_CUDA

SETTINGS: dict[str, Any] = {"model": "smollm2", "device": "cuda", "runtime": "processes", "threads": 8}
FLOAT = {"backend": "torch", "dtype": "fp32"}
TWO_HOSTS = {"nodes": 2, "listen": "tcp://127.0.0.1:0", "keys": "keys"}


@pytest.mark.parametrize(
    ("given", "first", "count", "devices"),
    [
        (None, 0, 1, "0"),
        (None, 4, 2, "4,5"),
        ("0,1,2,3", 2, 2, "2,3"),
        ("7, 3,GPU-a1", 1, 2, "3,GPU-a1"),
        ("7,3", 1, 2, "3"),
        ("7,3", 2, 1, ""),
        ("", 0, 1, ""),
    ],
)
def test_a_process_sees_those_behind_others(given: str | None, first: int, count: int, devices: str) -> None:
    assert devices_of(given, first, count) == devices


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({"dp": 3}, ["0", "1", "2"]),
        ({"dp": 2, "tp": 2}, ["0,1", "2,3"]),
        ({"dp": 2, "tp": 2, "pp": 2}, ["0,1,2,3", "4,5,6,7"]),
        ({"dp": 1, "max_dp": 2, "ep": 2}, ["0,1", "2,3"]),
        ({"dp": 4, **TWO_HOSTS}, ["0", "1", "0", "1"]),
        ({"disaggregate": "1p1d"}, ["0", "1"]),
    ],
)
def test_replicas_of_a_host_have_devices_of_their_own_one_for_each_rank(
    settings: dict[str, Any], devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, found = build_config(SETTINGS | settings), []
    monkeypatch.setattr("pawl.gpu.devices.num_devices", lambda: len(os.environ[VISIBLE].split(",")))
    for place in range(len(devices)):
        monkeypatch.delenv(VISIBLE, raising=False)
        take_devices(share_of(config, place), place)
        found.append(os.environ[VISIBLE])
    assert found == devices


def test_replicas_on_several_hosts_have_devices_for_the_ranks_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config(SETTINGS | {"dp": 2, "pp": 3, "tp": 2, "nodes_per_replica": 2, **TWO_HOSTS})
    monkeypatch.setattr("pawl.gpu.devices.num_devices", lambda: len(os.environ[VISIBLE].split(",")))
    found = []
    for place, part in ((0, 0), (1, 0), (0, 1), (1, 1)):
        monkeypatch.delenv(VISIBLE, raising=False)
        take_devices(share_of(config, place), place, part)
        found.append(os.environ[VISIBLE])
    assert found == ["0,1,2,3", "4,5,6,7", "0,1", "2,3"]


def test_too_few_devices_are_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "5,6,7")
    monkeypatch.setattr("pawl.gpu.devices.num_devices", lambda: len(os.environ[VISIBLE].split(",")))
    config = build_config(SETTINGS | {"dp": 2, "tp": 2})
    with pytest.raises(ConfigError, match="replica 2 of 2 on this host is for CUDA devices 2 to 3, and 1 of 2 are"):
        take_devices(share_of(config, 1), 1)


def test_replicas_that_are_threads_have_one_device() -> None:
    config = build_config(SETTINGS | {"dp": 2, "runtime": "local"})
    with pytest.raises(ConfigError, match="dp: 2 replicas on CUDA devices of a host need --runtime processes"):
        share_of(config, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("settings", [{"runtime": "local"}, pytest.param({"dp": 2}, marks=pytest.mark.slow)])
def test_without_a_device_the_start_is_refused_in_a_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"device: .*CUDA device"):
        Engine(build_config(SETTINGS | settings))


def answers(**settings: Any) -> list[str]:
    """Of four requests."""
    sampling = {"max_new_tokens": 24, "temperature": 0}
    with Engine(build_config(SETTINGS | {"trace": False} | settings)) as engine:
        streams = [engine.stream(f"{number} and {number} is", sampling) for number in range(4)]
        return ["".join(delta.text for delta in stream) for stream in streams]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("settings", [{"dp": 2}, FLOAT | {"tp": 2}, FLOAT | {"pp": 2}], ids=["dp", "tp", "pp"])
@NEEDS_CUDA[0]
def test_two_devices_answer_as_one(settings: dict[str, Any]) -> None:
    assert answers(**settings) == answers(**{name: settings[name] for name in FLOAT.keys() & settings})
