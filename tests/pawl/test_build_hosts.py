"""Hosts: who is let in and what it is told, in this process; and a node on another host, which may die."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest

from benchmarks.second_host import SecondHost
from pawl import __version__
from pawl.actors.names import DECODE, PREFILL, UNIFIED, names_of
from pawl.actors.runtime.processes.keys import Keys, make_keys, read_keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.build.hosts.addresses import host_and_port
from pawl.build.hosts.agent import LEFT, Head, Stay
from pawl.build.hosts.door import ask
from pawl.build.hosts.head import NodeHosts, NodesMissing
from pawl.build.hosts.host import HostLost, ReplicaFailed
from pawl.build.hosts.layout import MIXED, Block, Layout, layout_of, side_by_side
from pawl.build.hosts.messages import Full, Join, Unwanted, Welcome
from pawl.build.ready import Refused, Setup
from pawl.build.replica_process import ReplicaProcess, started
from pawl.build.replicas import share_of
from pawl.config import ConfigError, ServerConfig
from pawl.engine import Engine, RequestFailed
from tests.actors.linked_systems import wait_for

ONE_JOINS = Layout((Block(0, 1),), head_serves=False)
SETTINGS: dict[str, Any] = {"model": "ghost", "runtime": "processes", "kv_tokens": 8192, "seed": 5}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def make_head(keys: Path) -> Iterator[Callable[..., NodeHosts]]:
    made: list[NodeHosts] = []

    def make(layout: Layout = ONE_JOINS, address: str = "tcp://127.0.0.1:0", timeout_s: float = 60.0) -> NodeHosts:
        made.append(NodeHosts(layout, address, read_keys(keys), str(keys), timeout_s))
        return made[-1]

    yield make
    for head in made:
        head.close()


class Visitor:
    """One that knows the head's address, and has some keys."""

    def __init__(self, head: NodeHosts, keys: Path) -> None:
        self.head = Head(head.address, read_keys(keys), str(keys))
        self.sockets = Sockets()

    def asks(self, instance: str, version: str = __version__, keys: Keys | None = None, role: str | None = None) -> Any:
        join = Join(version, instance, "127.0.0.9", role=role)
        return ask(self.sockets, self.head.address, keys or self.head.keys, join)


@pytest.fixture
def visit(keys: Path) -> Iterator[Callable[[NodeHosts], Visitor]]:
    made: list[Visitor] = []

    def make(head: NodeHosts) -> Visitor:
        made.append(Visitor(head, keys))
        return made[-1]

    yield make
    for visitor in made:
        visitor.sockets.close()


def test_each_node_gets_one_place_however_often_it_asks_and_one_more_waits(
    make_head: Callable[..., NodeHosts], visit: Callable[[NodeHosts], Visitor]
) -> None:
    visitor = visit(make_head(Layout(tuple(side_by_side([UNIFIED] * 3, [1, 1, 1])), head_serves=True)))
    first, again, second = visitor.asks("one"), visitor.asks("one"), visitor.asks("two")
    assert (first.name, again, second.name) == ("node.1", first, "node.2")
    assert first.address != second.address
    assert visitor.asks("three") == Full()
    assert visitor.asks("two", version="0") == Unwanted(f"the head is Pawl {__version__}, and this node 0")


def test_a_node_gets_the_place_of_its_role_and_one_that_nobody_needs_is_told_so(
    make_head: Callable[..., NodeHosts], visit: Callable[[NodeHosts], Visitor]
) -> None:
    apart = Layout(tuple(side_by_side((DECODE, PREFILL, PREFILL), [1, 1, 1])), head_serves=False)
    head = make_head(apart, timeout_s=0.0)
    visitor = visit(head)
    ends: SimpleQueue[str] = SimpleQueue()
    stays = [Stay(visitor.sockets, visitor.head, visitor.asks(name, role=PREFILL), ends) for name in ("one", "two")]
    assert visitor.asks("three", role=PREFILL) == Full()
    with pytest.raises(NodesMissing, match=r"2 of 3 nodes are there \(.*\); 1 for decode missing after 0 s"):
        head.of(0, threading.Event())
    assert [head.of(place, threading.Event()).name[:6] for place in (1, 2)] == ["node.1", "node.2"]
    stays[0].end()
    wait_for(lambda: isinstance(visitor.asks("four", role=PREFILL), Welcome))
    decode = visitor.asks("five", role=DECODE)
    assert decode.name == "node.4"
    assert visitor.asks("six", role=DECODE) == visitor.asks("seven") == Full()
    stays[1].end()
    plain = visit(make_head())
    assert plain.asks("one", role=DECODE) == Unwanted("no node is needed for decode: prefill and decode are not apart")


def test_a_stranger_at_the_door_gets_no_answer_and_costs_nobody_a_place(
    make_head: Callable[..., NodeHosts], visit: Callable[[NodeHosts], Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import zmq

    monkeypatch.setattr("pawl.build.hosts.door.ASK_S", 0.3)
    visitor = visit(make_head())
    ours, stranger = visitor.head.keys, Keys(*zmq.curve_keypair())
    assert visitor.asks("stranger", keys=stranger) is None
    asking = visitor.sockets.socket(zmq.DEALER, visitor.head.address, ours, server=False)
    asking.connect(visitor.head.address)
    for garbage in ([b""], [b"\xc1" * 40], [b"x"] * 100, [msgspec.msgpack.encode({"type": "Join"})]):
        asking.send_multipart(garbage)
    asking.close(linger=1000)
    with socket.create_connection(host_and_port(visitor.head.address)) as raw:
        raw.sendall(random.Random(1).randbytes(100_000))
    assert isinstance(visitor.asks("node"), Welcome)


def test_the_head_says_who_is_missing_when_nodes_do_not_come_in_time(make_head: Callable[..., NodeHosts]) -> None:
    head = make_head(Layout((Block(0, 1), Block(1, 1)), head_serves=True), timeout_s=0.0)
    head.of(0, threading.Event())
    with pytest.raises(
        NodesMissing, match=r"1 of 2 nodes are there \(this host\) after 0 s.*pawl node --join tcp://127"
    ):
        head.of(1, threading.Event())


def test_a_head_that_ends_waits_for_nobody(make_head: Callable[..., NodeHosts]) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(ReplicaFailed, match="the server ends"):
        make_head().of(0, stopping)


def setup_of(head: NodeHosts, **settings: Any) -> Setup:
    config = msgspec.to_builtins(ServerConfig(**SETTINGS | settings))
    return Setup(config, names_of(0), "replica-0", head.bind().address, 0.005)


def test_a_node_shares_the_threads_out_that_the_user_has_named_not_those_that_a_replica_here_has(
    make_head: Callable[..., NodeHosts], visit: Callable[[NodeHosts], Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_head(Layout((Block(0, 4),), head_serves=True, hosts_each=2, threads=12))
    visitor, started = visit(head), SimpleQueue[Setup]()
    stay = Stay(visitor.sockets, visitor.head, visitor.asks("node"), SimpleQueue())
    monkeypatch.setattr("pawl.build.hosts.agent.Child", lambda setup: started.put(setup) or no_more_processes(setup))
    (node,) = head.beside(0, threading.Event())
    setup = msgspec.structs.replace(setup_of(head, model="smollm2", threads=1), part=1, address="")
    assert node.start(setup).heard() == Refused("[Errno 11] no more processes", usage=False)
    told = started.get(timeout=60.0)
    assert (told.config["threads"], told.address, told.keys) == (3, head.address, visitor.head.folder)
    assert told.peers_at == "tcp://127.0.0.1:0"
    stay.end()


def no_more_processes(setup: Setup) -> None:
    raise OSError(11, "no more processes")


def test_what_a_node_cannot_start_is_told_and_its_loss_is_that_of_its_processes(
    make_head: Callable[..., NodeHosts], visit: Callable[[NodeHosts], Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_head(Layout((Block(0, 4096),), head_serves=False))
    visitor = visit(head)
    ends: SimpleQueue[str] = SimpleQueue()
    stay = Stay(visitor.sockets, visitor.head, visitor.asks("node"), ends)
    assert stay.met
    node = head.of(0, threading.Event())
    assert node.name == "node.1 at 127.0.0.9"
    refused = node.start(setup_of(head, model="smollm2"))
    told = refused.heard()
    assert isinstance(told, Refused)
    assert told.usage
    assert told.message.startswith("dp: 4096 replicas need a thread each")
    assert (refused.heard(), refused.wait()) == (None, "refused")
    monkeypatch.setattr("pawl.build.hosts.agent.Child", no_more_processes)
    assert node.start(setup_of(head)).heard() == Refused("[Errno 11] no more processes", usage=False)
    stay.end()
    wait_for(lambda: isinstance(visitor.asks("next"), Welcome))
    with pytest.raises(HostLost, match=r"node\.1 at 127\.0\.0\.9: it has left"):
        node.start(setup_of(head))


def test_a_node_hears_that_its_head_has_left(
    make_head: Callable[..., NodeHosts], visit: Callable[[NodeHosts], Visitor]
) -> None:
    head = make_head()
    visitor = visit(head)
    ends: SimpleQueue[str] = SimpleQueue()
    stay = Stay(visitor.sockets, visitor.head, visitor.asks("node"), ends)
    head.close()
    assert ends.get(timeout=60.0) == LEFT
    stay.end()


# ---- settings ----

REFUSED = [
    (
        {"nodes": 2},
        "nodes: a replica on 2 nodes has a stage on each .--pp., and pp is 1; ranks of a stage .--tp, --ep.",
    ),
    ({"nodes": 2, "tp": 2}, "nodes: a replica on 2 nodes has a stage on each .--pp., and pp is 1"),
    ({"nodes": 3, "dp": 2, "pp": 2}, "nodes: of 3 nodes each of 2 replicas has as many, and that leaves 1"),
    (
        {"nodes": 3, "nodes_per_replica": 2, "pp": 2},
        "nodes_per_replica: of 3 nodes each replica has 2, and that leaves 1",
    ),
    ({"nodes": 2, "nodes_per_replica": 2, "dp": 2}, "nodes_per_replica: a replica on 2 nodes has a stage on each"),
    (
        {"ray": "auto", "nodes_per_replica": 2, "pp": 2},
        "nodes_per_replica: with --ray all ranks of a replica are on one",
    ),
    (
        {"nodes": 4, "nodes_per_replica": 2, "dp": 1, "max_dp": 2, "pp": 2},
        "dp: at least one replica for each of 2 nodes",
    ),
    ({"nodes": 2, "dp": 3}, "nodes: each of 2 nodes has as many replicas, and dp is 3$"),
    ({"nodes": 2, "dp": 2}, "nodes: say where the head waits for them, --listen"),
    (
        {"nodes": 2, "dp": 2, "listen": "tcp://10.0.0.1:7000"},
        "keys: links between hosts go with keys only: --keys DIR",
    ),
    ({"nodes": 2, "dp": 2, "listen": "10.0.0.1", "keys": "k"}, "listen: tcp://HOST:PORT, not '10.0.0.1'"),
    ({"listen": "tcp://10.0.0.1:7000"}, "listen: all replicas are on this host, and nobody joins"),
    ({"keys": "k"}, "keys: all replicas are on this host, and nobody joins"),
    ({"role": "prefill"}, "role: of replicas on the host of the head, where --disaggregate shares them out"),
    ({"role": "prefill", "disaggregate": "1p1d"}, "role: of replicas on the host of the head"),
    ({"role": "decode", "disaggregate": "1p1d", "nodes": 2, "head_serves": False}, "role: of replicas on the host"),
    (
        {"role": "prefill", "disaggregate": "1p3d", "nodes": 2},
        "role: no host is for prefill alone: 1p3d on 2 nodes are decode, mixed",
    ),
    (
        {"disaggregate": "2p1d", "nodes": 4},
        "nodes: of 4 nodes each of 3 replicas has as many, and that leaves 1",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_hosts_that_cannot_be_are_refused_with_what_to_change(settings: dict[str, Any], message: str) -> None:
    config = ServerConfig(**{"model": "ghost", "runtime": "processes"} | settings)
    with pytest.raises(ConfigError, match=message):
        layout_of(config)


def test_replicas_share_the_memory_of_their_host_and_the_requests_of_all() -> None:
    hosts = {"nodes": 2, "listen": "tcp://10.0.0.1:7000", "keys": "k"}
    config = ServerConfig(**SETTINGS | {"dp": 4, "kv_memory_gb": 2.0, "max_running": 64} | hosts)
    share = share_of(config, 3)
    assert (share.kv_memory_gb, share.max_running, share.kv_tokens) == (1.0, 16, 2048)
    assert [layout_of(config).node_of(place) for place in range(4)] == [0, 0, 1, 1]


def test_hosts_with_more_replicas_give_each_less() -> None:
    hosts = {"nodes": 2, "listen": "tcp://10.0.0.1:7000", "keys": "k", "disaggregate": "2p1d"}
    config = ServerConfig(**SETTINGS | {"kv_memory_gb": 2.0, "max_running": 64, "trace_limit_mb": 100} | hosts)
    shares = [share_of(config, place) for place in range(3)]
    assert [share.kv_memory_gb for share in shares] == [2.0, 1.0, 1.0]
    assert [share.trace_limit_mb for share in shares] == [100, 50, 50]
    assert [share.max_running for share in shares] == [21] * 3


@pytest.mark.parametrize(
    ("settings", "hosts_each", "sizes", "node_of"),
    [
        ({"pp": 2, "nodes": 2}, 2, [1], [0]),
        ({"pp": 3, "nodes": 2}, 2, [1], [0]),
        ({"pp": 2, "dp": 2, "nodes": 2}, 1, [1, 1], [0, 1]),
        ({"pp": 2, "dp": 2, "nodes": 2, "nodes_per_replica": 2}, 2, [2], [0, 0]),
        ({"pp": 2, "dp": 2, "nodes": 4}, 2, [1, 1], [0, 2]),
        ({"pp": 2, "dp": 4, "nodes": 4, "nodes_per_replica": 2}, 2, [2, 2], [0, 0, 2, 2]),
        ({"pp": 2, "disaggregate": "1p1d", "nodes": 4}, 2, [1, 1], [0, 2]),
    ],
    ids=str,
)
@pytest.mark.parametrize("head_serves", [True, False])
def test_a_replica_is_on_one_host_unless_there_are_more_of_them_or_the_user_says_so(
    settings: dict[str, Any], hosts_each: int, sizes: list[int], node_of: list[int], head_serves: bool
) -> None:
    hosts: dict[str, Any] = {"listen": "tcp://10.0.0.1:7000", "keys": "k", "head_serves": head_serves}
    layout = layout_of(ServerConfig(**SETTINGS | hosts | settings))
    assert (layout.num_nodes, layout.hosts_each) == (settings["nodes"], hosts_each)
    assert layout.num_joined == len(layout.joined) == settings["nodes"] - head_serves
    assert [block.size for block in layout.blocks] == sizes
    assert [layout.node_of(place) for place in range(len(node_of))] == node_of


@pytest.mark.parametrize("decoding", range(1, 9))
@pytest.mark.parametrize("prefilling", range(1, 9))
def test_every_host_has_a_replica_and_every_replica_one_host(prefilling: int, decoding: int) -> None:
    count = prefilling + decoding
    hosts: dict[str, Any] = {"listen": "tcp://10.0.0.1:7000", "keys": "k", "disaggregate": f"{prefilling}p{decoding}d"}
    for nodes in range(2, count + 1):
        layout = layout_of(ServerConfig(**SETTINGS | hosts | {"nodes": nodes}))
        assert sorted(place for block in layout.blocks for place in range(count) if place in block) == list(
            range(count)
        )
        assert len(layout.blocks) == nodes
        assert min(block.size for block in layout.blocks) > 0
        if count % nodes:
            assert MIXED not in {block.role for block in layout.blocks}
            of_roles = [[each.size for each in layout.blocks if each.role == role] for role in (PREFILL, DECODE)]
            assert all(max(sizes) - min(sizes) <= 1 for sizes in of_roles)


@pytest.mark.parametrize(
    ("apart", "nodes", "role", "roles", "node_of"),
    [
        ("2p1d", 3, None, (DECODE, PREFILL, PREFILL), [0, 1, 2]),
        ("1p2d", 3, PREFILL, (PREFILL, DECODE, DECODE), [1, 2, 0]),
        ("2p4d", 3, DECODE, (DECODE, DECODE, PREFILL), [0, 0, 1, 1, 2, 2]),
        ("2p2d", 2, PREFILL, (PREFILL, DECODE), [1, 1, 0, 0]),
        ("3p1d", 2, PREFILL, (PREFILL, MIXED), [1, 1, 0, 0]),
        ("2p1d", 2, None, (DECODE, PREFILL), [0, 1, 1]),
        ("2p1d", 2, PREFILL, (PREFILL, DECODE), [1, 0, 0]),
        ("1p2d", 2, None, (DECODE, PREFILL), [0, 0, 1]),
        ("5p2d", 3, None, (DECODE, PREFILL, PREFILL), [0, 0, 1, 1, 1, 2, 2]),
        ("4p1d", 4, PREFILL, (PREFILL, DECODE, PREFILL, PREFILL), [1, 0, 0, 2, 3]),
        ("1p6d", 5, None, (DECODE, DECODE, DECODE, DECODE, PREFILL), [0, 0, 1, 1, 2, 3, 4]),
    ],
)
def test_nodes_have_the_roles_of_their_replicas_and_the_head_that_which_it_was_given(
    apart: str, nodes: int, role: str | None, roles: tuple[str, ...], node_of: list[int]
) -> None:
    hosts: dict[str, Any] = {"nodes": nodes, "listen": "tcp://10.0.0.1:7000", "keys": "k"}
    layout = layout_of(ServerConfig(**SETTINGS | hosts | {"disaggregate": apart, "role": role}))
    assert tuple(block.role for block in layout.blocks) == roles
    assert [layout.node_of(place) for place in range(len(node_of))] == node_of


# ---- another host ----


def stream_through(engine: Engine, meanwhile: Callable[[], None]) -> str:
    stream = engine.stream("hello", {"max_new_tokens": 600, "seed": 7})
    text = next(stream).text
    meanwhile()
    return text + "".join(delta.text for delta in stream)


def test_a_stream_goes_on_when_the_only_node_is_killed_and_started_again(
    host: SecondHost, make_head: Callable[..., NodeHosts], keys: Path, tmp_path: Path
) -> None:
    head = make_head(address=f"tcp://{host.head}:0")
    words = ("node", "--join", head.address, "--keys", str(keys))
    nodes = [host.start(*words)]
    hosts = {"nodes": 1, "head_serves": False, "listen": head.address, "keys": str(keys)}
    config = ServerConfig(**SETTINGS | hosts | {"trace_dir": str(tmp_path)})

    def full_speed() -> bool:
        """Whether there is somebody to be told."""
        try:
            engine.control("slow-down", forward_sleep_time=None)
        except RequestFailed:
            return False
        return True

    def fall() -> None:
        nodes[0].kill()
        nodes[0].wait()
        nodes.append(host.start(*words))
        wait_for(full_speed)

    with Engine(config, parts=started({0: share_of(config, 0)}, [UNIFIED], head)) as engine:
        (replica,) = engine.replicas.live()
        assert isinstance(replica, ReplicaProcess)
        assert replica.where == f"replica-0 on node.1 at {host.address}"
        engine.control("slow-down", forward_sleep_time=0.2)  # else it may have said everything before it is killed
        text = stream_through(engine, fall)
        (again,) = engine.replicas.live()
        assert again.where == f"replica-1 on node.2 at {host.address}"
        (home,) = engine.replicas.homes()
        assert b"pawl.build.replica" in Path(f"/proc/{home.pop('pid')}/cmdline").read_bytes()
        assert home == {"replica": 1, "role": UNIFIED, "node": "node.2", "address": host.address}
    assert nodes[1].wait(60.0) == 0
    with Engine(ServerConfig(**SETTINGS | {"runtime": "local", "trace_dir": str(tmp_path / "here")})) as engine:
        assert text == stream_through(engine, lambda: None)
