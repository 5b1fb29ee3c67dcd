"""Hosts of a Ray cluster, with two of its nodes on this machine: a tier of its own, as it needs Ray (pawl-engine[ray]).

`python -m pytest -m ray tests/pawl/test_build_hosts_ray.py`
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.names import DECODE, PREFILL, UNIFIED
from pawl.build.hosts.layout import layout_of
from pawl.build.hosts.ray import needs_of
from pawl.build.hosts.select import hosts_of
from pawl.build.replica_process import ReplicaProcess
from pawl.cli import main
from pawl.config import ConfigError, ServerConfig, build_config
from pawl.engine import Engine
from tests.pawl.test_engine_apart_processes import received

HAS_RAY = importlib.util.find_spec("ray") is not None
MARKS = (
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'pawl-engine[ray]'"),
)
PROMPTS = [f"stream number {number} goes on" for number in range(4)]
SAMPLING: dict[str, Any] = {"max_new_tokens": 200, "temperature": 1.0, "ignore_eos": True}
SMALL: dict[str, Any] = {"object_store_memory": 80 << 20}


def with_ray(test: Callable[..., None]) -> Callable[..., None]:
    """A test of this tier."""
    for mark in MARKS:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "keys"
    assert main(["keys", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    for _ in range(2):
        made.add_node(num_cpus=1, **SMALL)
    yield made
    made.shutdown()


@pytest.fixture
def config(cluster: Any, keys: Path, tmp_path: Path) -> Callable[..., ServerConfig]:
    here = {"ray": cluster.address, "keys": str(keys), "trace_dir": str(tmp_path), "log_level": "error"}
    return lambda **settings: build_config({"model": "ghost", "seed": 5, **here, **settings})


def texts(engine: Engine, half_way: Callable[[], object] = lambda: None) -> list[str]:
    """What clients of all prompts get; `half_way` is called when each has had something."""
    made = [engine.stream(prompt, SAMPLING | {"seed": number}) for number, prompt in enumerate(PROMPTS)]
    begun = [next(stream).text for stream in made]
    half_way()
    return [first + "".join(delta.text for delta in rest) for first, rest in zip(begun, made, strict=True)]


def undisturbed(folder: Path) -> list[str]:
    with Engine(build_config({"model": "ghost", "seed": 5, "trace_dir": str(folder), "log_level": "error"})) as engine:
        return texts(engine)


def replicas(engine: Engine) -> list[ReplicaProcess]:
    return engine.replicas.live()


def wait_for_others(engine: Engine, before: list[ReplicaProcess], count: int) -> None:
    """Until so many serve, and one of those before is not among them."""
    while len(engine.control("state")["replicas"]) != count or set(before) <= set(replicas(engine)):
        pass


def agent_of(replica: ReplicaProcess) -> int:
    """Its parent."""
    return int(Path(f"/proc/{replica.ready.pid}/stat").read_text().rpartition(")")[2].split()[1])


@with_ray
def test_streams_outlive_the_kill_of_an_agent_and_of_a_ray_node_and_both_are_started_again(
    config: Callable[..., ServerConfig], cluster: Any, tmp_path: Path
) -> None:
    expected = undisturbed(tmp_path / "one")
    with Engine(config(dp=2)) as engine:
        assert all(" on node." in replica.where for replica in replicas(engine))
        engine.control("slow-down", forward_sleep_time=0.02)
        before = replicas(engine)
        assert texts(engine, lambda: os.kill(agent_of(before[0]), signal.SIGKILL)) == expected
        wait_for_others(engine, before, 2)
        before = replicas(engine)
        lost = next(iter(cluster.worker_nodes))
        assert texts(engine, lambda: cluster.remove_node(lost, allow_graceful=False)) == expected
        cluster.add_node(num_cpus=1, **SMALL)
        wait_for_others(engine, before, 2)
        assert texts(engine) == expected


@with_ray
def test_a_replica_that_is_added_gets_a_placement_group_and_one_that_leaves_gives_it_back(
    config: Callable[..., ServerConfig],
) -> None:
    from ray.util.placement_group import placement_group_table

    def num_groups() -> int:
        return sum(each["state"] != "REMOVED" for each in placement_group_table().values())

    with Engine(config(max_dp=2, scale_at=1000)) as engine:
        assert (len(replicas(engine)), num_groups()) == (1, 1)
        engine.control("scale-replicas", replicas=2, on_load=False)
        while len(engine.control("state")["replicas"]) != 2:
            pass
        assert num_groups() == 2
        engine.control("scale-replicas", replicas=1)
        while num_groups() != 1:
            pass


@with_ray
def test_a_cluster_that_is_too_small_is_refused_with_the_numbers(config: Callable[..., ServerConfig]) -> None:
    with pytest.raises(ConfigError, match="each of 3 replicas needs 1 CPU on one machine, and there is room for 2"):
        Engine(config(dp=3))


@with_ray
def test_a_prefill_replica_that_ray_has_placed_computes_for_a_decode_replica_and_is_placed_again(
    config: Callable[..., ServerConfig], tmp_path: Path
) -> None:
    expected = undisturbed(tmp_path / "one")
    with Engine(config(disaggregate="1p1d", page_size=4)) as engine:
        decode, prefill = before = replicas(engine)
        assert [each.names.role for each in before] == [DECODE, PREFILL]
        assert decode.where.rpartition(" on ")[2] != prefill.where.rpartition(" on ")[2]
        engine.control("slow-down", forward_sleep_time=0.02)
        assert texts(engine, lambda: os.kill(agent_of(prefill), signal.SIGKILL)) == expected
        wait_for_others(engine, before, 2)
        assert texts(engine) == expected
    assert sum(record.count for record in received(tmp_path / "replica-0" / "run-000001")) > 0


@pytest.mark.parametrize(("place", "role"), [(0, DECODE), (1, PREFILL), (2, PREFILL)])
def test_with_ray_a_replica_of_each_role_has_a_node_of_its_own(place: int, role: str) -> None:
    layout = layout_of(build_config({"model": "ghost", "ray": "auto", "keys": "k", "disaggregate": "2p1d"}))
    assert layout.joined[layout.node_of(place)] == (place, 1, role)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ray": "auto"}, "links between hosts go with keys only"),
        ({"ray": "auto", "keys": "k", "nodes": 2, "dp": 2}, "with --ray each replica has a place of its own"),
        ({"ray": "auto", "keys": "k", "listen": "here"}, "listen: tcp://HOST:PORT, not 'here'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    made = build_config({"model": "ghost", **settings})
    with pytest.raises(ConfigError, match=message):
        layout_of(made)


def test_a_placement_group_has_all_that_the_ranks_of_a_replica_need() -> None:
    assert needs_of(build_config({"model": "m", "threads": 6, "tp": 2}), UNIFIED) == {"CPU": 6.0}
    cuda = build_config({"model": "m", "device": "cuda", "tp": 2, "pp": 2, "prefill_tp": 1, "disaggregate": "1p1d"})
    needs = {role: needs_of(cuda, role) for role in (UNIFIED, DECODE, PREFILL)}
    gpus = {UNIFIED: 4.0, DECODE: 4.0, PREFILL: 2.0}
    assert needs == {role: {"CPU": 1.0, "GPU": count} for role, count in gpus.items()}
    with pytest.raises(ConfigError, match="how many CPUs Ray is to keep for each replica: --threads"):
        needs_of(build_config({"model": "m"}), UNIFIED)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no cluster at 127.0.0.1:1: .*refused"),
        ("127.0.0.1:99999", "no cluster at 127.0.0.1:99999"),
        ("ray://head:10001", "auto, or HOST:PORT of the cluster's head"),
        ("local", "auto, or HOST:PORT of the cluster's head"),
    ],
)
def test_an_address_at_which_nobody_is_is_refused_at_once(keys: Path, address: str, message: str) -> None:
    made = build_config({"model": "ghost", "ray": address, "keys": str(keys)})
    with pytest.raises(ConfigError, match=message):
        hosts_of(made)


def test_without_ray_the_server_says_how_to_install_it(
    keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "ghost", "--ray", "auto", "--keys", str(keys)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "pawl: ray: it is not installed: pip install 'pawl-engine[ray]'"
