"""Ranks on another host: lines to them over a link with keys, how they and their outpost end, what stages give each
other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import msgspec
import pytest
import torch

from pawl.actors.names import names_of
from pawl.actors.runtime.processes.keys import Keys, make_keys, read_keys
from pawl.build.outpost import LEFT, Outpost
from pawl.build.outposts import Outposts, RanksOverThere
from pawl.build.ranks_here import Begin, Outward, ranks_of_hosts
from pawl.build.ready import Setup
from pawl.build.stage_links import StageLinks
from pawl.config import ServerConfig
from pawl.gpu.native.ranks import RanksLost
from pawl.gpu.parallel.communicator import ALONE
from pawl.gpu.parallel.link import LineClosed
from pawl.gpu.parallel.processes import RanksHere
from pawl.gpu.parallel.ranks import HostGone, RankLost
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.wire import Here

ECHOES = """
import os, socket, sys, threading
from pawl.gpu.parallel.link import LineClosed, Link

def echo(link):
    try:
        while True:
            link.send([b"%d: " % os.getpid(), *link.receive()])
    except LineClosed:
        os._exit(0)

steps, beside = (Link(socket.socket(fileno=int(number))) for number in sys.argv[1:3])
threading.Thread(target=echo, args=(beside,), daemon=True).start()
echo(steps)
"""
"""A rank that says what it hears, with its number as a process."""
LOOPBACK = "tcp://127.0.0.1:0"
TWO_STAGES = Topology(pipeline=2)
LONG = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    return folder


class Pair:
    """A replica's outposts, of which there is one, and this one."""

    def __init__(self, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def started(begin: Begin, config: ServerConfig, outward: Outward) -> RanksHere:
            def here(number: int, store: Path) -> Here:
                return Here(store=str(store), device=0, threads=1, segment=None, **outward._asdict())

            return RanksHere([sys.executable, "-c", self.code], begin.numbers, here)

        monkeypatch.setattr("pawl.build.outpost.start_here", started)
        self.code = ECHOES
        self.ends: SimpleQueue[str] = SimpleQueue()
        setup = Setup({}, names_of(0), "replica-0", "tcp://127.0.0.1:1", 0.005, keys=str(keys), peers_at=LOOPBACK)
        there = msgspec.structs.replace(setup, process="replica-0.1", part=1, host="elsewhere")
        self.outpost = Outpost(ServerConfig(model="ghost"), there, self.ends)
        self.outposts = Outposts(msgspec.structs.replace(setup, outposts=(self.outpost.address,)))
        self._open: list[Outposts | Outpost] = [self.outposts, self.outpost]

    def begin(self, life: int) -> RanksOverThere:
        return self.outposts.start(1, Begin(life, TWO_STAGES, (1,), meets=False))

    def close(self, *ends: Outposts | Outpost) -> None:
        """Of both, or of one, what is not closed."""
        for end in ends or tuple(self._open):
            self._open.remove(end)
            end.close()


@pytest.fixture
def pair(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    made = Pair(keys, monkeypatch)
    yield made
    made.close()


def pid_of(ranks: RanksOverThere) -> int:
    """Of the only one, which says it."""
    line = ranks.ranks[0].steps
    line.send([])
    (told,) = line.receive(60.0)
    return int(told.split(b":")[0])


def test_both_lines_of_a_rank_elsewhere_carry_what_is_said_whole_and_a_new_start_has_lines_of_its_own(
    pair: Pair,
) -> None:
    first = pair.begin(0)
    (rank,) = first.ranks
    pid = pid_of(first)
    sender = Thread(target=rank.beside.send, args=([LONG, b"", b"x"],))
    sender.start()
    rank.steps.send([b"a step"])
    assert rank.steps.receive(60.0)[1:] == [b"a step"]
    assert rank.beside.receive(60.0)[1:] == [LONG, b"", b"x"]
    sender.join()
    first.end()
    with pytest.raises(LineClosed):
        rank.steps.receive(60.0)
    second = pair.begin(1)
    assert pid_of(second) != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    second.end()


@pytest.mark.parametrize(("signum", "blameless"), [("KILL", True), ("SEGV", False)])
def test_how_a_rank_elsewhere_has_ended_is_told_as_of_one_here(pair: Pair, signum: str, blameless: bool) -> None:
    ranks = pair.begin(0)
    os.kill(pid_of(ranks), getattr(signal, f"SIG{signum}"))
    (rank,) = ranks.ranks
    with pytest.raises(LineClosed):
        rank.steps.receive(60.0)
    lost = rank.lost()
    assert (f"was ended by SIG{signum}" in str(lost), lost.blameless, rank.ended) == (True, blameless, True)
    pair.close(pair.outpost)
    assert "replica-0.1 is lost: it has left" in gone(pair)


def gone(pair: Pair) -> str:
    """Why no rank can be started, once that is known."""
    for life in range(1, 1000):
        try:
            ranks = pair.begin(life)
        except HostGone as error:
            return str(error)
        with pytest.raises((LineClosed, RankLost)):
            ranks.ranks[0].steps.receive(60.0)
    raise AssertionError("ranks are started for ever")


def test_ranks_that_cannot_be_started_elsewhere_are_lost_with_the_reason(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*told: object) -> RanksHere:
        raise OSError(11, "no more processes")

    monkeypatch.setattr("pawl.build.outpost.start_here", refused)
    (rank,) = pair.begin(0).ranks
    with pytest.raises(LineClosed):
        rank.steps.receive(60.0)
    assert str(rank.lost()) == "rank 1 cannot be started: [Errno 11] no more processes"


def test_an_outpost_whose_replica_has_left_says_so_and_has_ended_its_ranks(pair: Pair) -> None:
    pid = pid_of(pair.begin(0))
    pair.close(pair.outposts)
    assert pair.ends.get(timeout=60.0) == LEFT
    pair.close(pair.outpost)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_hosts_have_stages_in_a_row_and_all_ranks_of_each() -> None:
    assert ranks_of_hosts(Topology(tensor=2, pipeline=3), 2) == [(0, 1, 2, 3), (4, 5)]
    assert ranks_of_hosts(TWO_STAGES, 1) == [(0, 1)]


# ---- what stages give each other ----

MakeLinks = Callable[..., StageLinks]


@pytest.fixture
def make_links(keys: Path) -> Iterator[MakeLinks]:
    made: list[StageLinks] = []

    def make(limit_s: float = 60.0, own: Keys | None = None) -> StageLinks:
        made.append(StageLinks(ALONE, LOOPBACK, own or read_keys(keys), limit_s))
        return made[-1]

    yield make
    for links in made:
        links.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_the_next_stage_gets_what_was_given_in_order(make_links: MakeLinks, dtype: torch.dtype) -> None:
    first, last = make_links(), make_links()
    first.join(last.address, b"start")
    last.join(first.address, b"start")
    given = [torch.arange(12 * n).reshape(n, 12).to(dtype) for n in (1, 5, 300)]
    for tensor in given:
        first.send(tensor, 1)
        last.send(tensor[:1] + 1, 0)
    for tensor in given:
        got, back = torch.zeros_like(tensor), torch.zeros_like(tensor[:1])
        last.receive(got, 0)
        first.receive(back, 1)
        assert torch.equal(got, tensor)
        assert torch.equal(back, tensor[:1] + 1)
    assert min(first.waited_s, last.waited_s) > 0.0


def test_a_stage_of_another_start_and_one_without_the_keys_are_not_heard(make_links: MakeLinks) -> None:
    import zmq

    last, earlier, stranger, first = (
        make_links(),
        make_links(),
        make_links(own=Keys(*zmq.curve_keypair())),
        make_links(),
    )
    last.join(first.address, b"new")
    for links, start in ((earlier, b"old"), (stranger, b"new"), (first, b"new")):
        links.join(last.address, start)
        links.send(torch.full((2,), len(start) + (links is first)), 1)
    got = torch.zeros(2, dtype=torch.int64)
    last.receive(got, 0)
    assert got.tolist() == [4, 4]
    last._limit_s = 0.1  # the stranger's would be the next
    with pytest.raises(RanksLost, match=r"has sent nothing for 0\.1 s"):
        last.receive(got, 0)


def test_what_was_lost_on_the_way_or_is_of_another_size_breaks_the_step_and_blames_nobody(
    make_links: MakeLinks,
) -> None:
    first, last = make_links(), make_links()
    first.join(last.address, b"start")
    last.join(first.address, b"start")
    receive = partial(last.receive, torch.zeros(3), 0)
    first.send(torch.zeros(2), 1)
    with pytest.raises(RanksLost, match="has sent 8 bytes, where 12 were to come"):
        receive()
    first._num_sent += 1
    first.send(torch.zeros(3), 1)
    with pytest.raises(RanksLost, match="was lost on the way"):
        receive()
