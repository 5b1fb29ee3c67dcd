"""Lines to ranks that are processes: why one has not answered, and what ends with whom."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from pawl.actors.codec import make_codec
from pawl.gpu.native.ranks import RanksLost
from pawl.gpu.parallel.link import LineClosed, Link
from pawl.gpu.parallel.processes import ProcessLine, RankProcess, RankProcesses, RanksHere, next_stages
from pawl.gpu.parallel.ranks import RankLost
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.wire import Answer, ForgetSlots, FromRank, Here, Loading, Setup

LOADS = """
import socket, sys, threading
from pawl.gpu.parallel.link import Link
from pawl.gpu.parallel.serve import listen
steps, beside = (Link(socket.socket(fileno=int(number))) for number in sys.argv[1:3])
listen(beside)
steps.send([b"loading"])
threading.Event().wait()
"""
"""A rank that never ends loading."""


class Ended(RankProcess):
    """A rank of which nothing is left but its number."""

    ended = True

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def lost(self) -> RankLost:
        return RankLost(self.rank, "has ended")


class Lines:
    """A line to two ranks, and their ends of it."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.theirs = [Link(end) for _, end in pairs]
        self.line = ProcessLine([Ended(0), Ended(1)], [Link(end) for end, _ in pairs], make_codec(FromRank), 1.0)

    def lost(self) -> RankLost:
        """Why there are not two answers now."""
        with pytest.raises(RankLost) as lost:
            self.line.answers(0.0)
        return lost.value


def refused(kind: str, words: str) -> Answer:
    return Answer(applied=b"", kind=kind, refusal=words)


@pytest.mark.parametrize("number", [0, 1])
def test_where_one_rank_has_failed_and_the_others_wait_for_it_its_reason_is_told_and_the_step_is_blamed(
    number: int,
) -> None:
    lines = Lines()
    lines.theirs[number].send(make_codec(FromRank).encode(refused("RefusedInputs", "no such slot")))
    lost = lines.lost()
    assert str(lost) == f"rank {number} alone has failed: RefusedInputs: no such slot"
    assert not lost.blameless


def test_a_rank_that_failed_because_another_has_ended_is_not_the_one_that_is_named() -> None:
    lines, codec = Lines(), make_codec(FromRank)
    lines.theirs[0].send(codec.encode(Answer(applied=b"")))
    lines.theirs[1].send(codec.encode(refused("RuntimeError", "connection closed by peer")))
    assert str(lines.lost()) == "rank 0 has ended"


def test_a_rank_that_others_have_waited_for_in_vain_is_the_one_that_is_lost() -> None:
    lines = Lines()
    lines.theirs[0].send(make_codec(FromRank).encode(refused(RanksLost.__name__, "rank 1 did not come")))
    lost = lines.lost()
    assert str(lost).startswith("rank 1 has not answered")
    assert lost.blameless


def test_a_line_that_another_thread_has_closed_is_one_to_ranks_that_are_lost() -> None:
    lines = Lines()
    lines.line.close()
    assert str(lines.lost()) == "rank 0 has ended"
    with pytest.raises(RankLost, match="rank 0 has ended"):
        lines.line.tell(ForgetSlots())


def test_a_start_that_fails_half_way_leaves_neither_a_rank_nor_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = os.listdir("/proc/self/fd")

    def setup(rank: int) -> Setup:
        raise AssertionError("no rank has started")

    def here(rank: int, store: Path) -> Here:
        return Here(store=str(store), device=0, threads=1, segment=None)

    hosts = [partial(RanksHere, ["/no/such/program"], (0, 1), here)]
    with pytest.raises(FileNotFoundError):
        RankProcesses(Topology(tensor=2), hosts, setup, lambda: make_codec(FromRank), 1.0)
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == len(opened)


def test_each_rank_gives_to_the_one_of_its_number_in_the_next_stage_and_the_last_ones_to_the_first() -> None:
    told = next_stages(Topology(tensor=2, pipeline=3), [f"at {rank}" for rank in range(6)])
    assert [each.address for each in told] == ["at 2", "at 3", "at 4", "at 5", "at 0", "at 1"]
    again = next_stages(Topology(pipeline=2), ["at 0", "at 1"])
    assert len({each.start for each in told} | {each.start for each in again}) == 2


def test_a_rank_that_loads_a_model_ends_with_its_parent() -> None:
    rank = RankProcess([sys.executable, "-c", LOADS], 0)
    try:
        assert rank.steps.receive() == [b"loading"]
        rank.beside.close()  # as the parent's end does
        with pytest.raises(LineClosed):
            rank.steps.receive()
    finally:
        rank.kill()
        rank.steps.close()


@pytest.mark.parametrize(("signum", "blameless"), [("KILL", True), ("SEGV", False)])
def test_nobody_is_blamed_for_a_rank_that_somebody_has_ended(signum: str, blameless: bool) -> None:
    rank = RankProcess(["sh", "-c", f"kill -{signum} $$"], 0)
    try:
        with pytest.raises(LineClosed):
            rank.steps.receive()
        lost = rank.lost()
    finally:
        rank.kill()
        rank.steps.close()
        rank.beside.close()
    assert f"was ended by SIG{signum}" in str(lost)
    assert lost.blameless == blameless


def test_the_shares_that_ranks_have_read_are_heard_as_one_until_each_has_answered() -> None:
    lines, encode, heard = Lines(), make_codec(FromRank).encode, list[float]()
    done = Answer(applied=b"done")
    for number, told in ((0, Loading(0.5)), (1, Loading(0.25)), (0, Loading(1.0)), (0, done), (1, done)):
        lines.theirs[number].send(encode(told))
    assert [answer.applied for answer in lines.line.receive(1.0, heard.append)] == [b"done"] * 2
    assert sorted(heard) == heard
    assert (len(heard), heard[-1]) == (3, 0.625)
