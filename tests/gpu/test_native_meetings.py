"""Ranks meet or are lost together: whoever is gone, late, of another life or told another step lets nobody wait."""

from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from pawl.gpu.backend import ForwardInputs, RefusedInputs
from pawl.gpu.kv import KvStore
from pawl.gpu.models.small import random_weights
from pawl.gpu.native.build import NativeUnavailable, build
from pawl.gpu.native.ranks import MOST_RANKS, Address, Joined, RanksLost, Segment
from pawl.gpu.parallel.communicator import Alone
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Shard, part_of
from pawl.gpu.parallel.topology import Topology
from tests.gpu.driving import Piece, forward_inputs, int32
from tests.gpu.native_models import EXPERTS, ODD, Native
from tests.gpu.native_ranks import DEADLINE_S, joined_of, make_ranks

SHORT_S = 0.2
"""For those that do not come."""

CHILD = """
import ctypes, sys
_, library, path, life, ranks, rank, meetings = sys.argv
native, joined = ctypes.CDLL(library), ctypes.c_void_p()
native.pawl_native_meet.restype = ctypes.c_char_p
life, deadline = ctypes.c_uint64(int(life)), ctypes.c_double(60.0)
native.pawl_native_join(path.encode(), life, int(rank), int(ranks), deadline, ctypes.byref(joined))
print("joined", flush=True)
reason = native.pawl_native_meet(joined, ctypes.c_int64(int(meetings)))
print("met" if reason is None else reason.decode(), flush=True)
sys.stdin.read()
"""
"""A rank that is a process, without all that Python would import for it."""

Start = Callable[[Address, int, int], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that is a rank, meets the others so many times, says so, and stays. It has joined by then."""
    started: list[subprocess.Popen[str]] = []

    def start_one(address: Address, rank: int, meetings: int) -> subprocess.Popen[str]:
        numbers = map(str, (address.life, address.ranks, rank, meetings))
        arguments = [sys.executable, "-c", CHILD, str(build()), address.path, *numbers]
        started.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert said_by(started[-1]) == "joined"
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def said_by(process: subprocess.Popen[str]) -> str:
    """The next line of its output."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def join_all(segment: Segment, timeout_s: float = DEADLINE_S) -> list[Joined]:
    return [Joined(segment.address, rank, timeout_s) for rank in range(segment.address.ranks)]


def lost_to(joined: Joined, meet: int = 1) -> str:
    """What this rank says when the others are lost."""
    with pytest.raises(RanksLost) as lost:
        joined.meet(meet)
    return str(lost.value)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_nobody_goes_on_before_all_have_come(ranks: int) -> None:
    joined = join_all(Segment(ranks, 0))
    counts = [0] * ranks

    def run(rank: int) -> None:
        for meeting in range(300):
            counts[rank] += 1
            joined[rank].meet()
            assert min(counts) > meeting
            joined[rank].meet()

    with ThreadPoolExecutor(ranks) as threads:
        list(threads.map(run, range(ranks)))
    assert counts == [300] * ranks


def test_ranks_meet_across_processes_while_their_numbers_wrap(start: Start) -> None:
    segment = Segment(2, 7)
    with open(segment.address.path, "r+b", 0) as memory:
        for rank in (0, 1):
            os.pwrite(memory.fileno(), struct.pack("=I", 2**32 - 50), 64 * (1 + rank))
    joined = Joined(segment.address, 0, DEADLINE_S)
    child = start(segment.address, 1, 1000)
    joined.meet(1000)
    assert said_by(child) == "met"


def test_a_rank_that_was_killed_lets_the_others_out_long_before_the_deadline(start: Start) -> None:
    segment = Segment(3, 0)
    others = [Joined(segment.address, rank, DEADLINE_S) for rank in (0, 2)]
    child = start(segment.address, 1, 10)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda joined: joined.meet(10), others))
        child.kill()
        # Nobody has waited for it: it is a zombie, whose number is still taken.
        reasons = list(threads.map(lost_to, others))
    assert all("rank 1" in reason for reason in reasons)
    assert "rank 1 is gone" in reasons
    assert all("rank 1" in lost_to(joined) for joined in others), "once lost, lost for good"


def test_a_rank_that_is_stopped_is_given_up_at_the_deadline_and_hears_of_it_when_it_goes_on(start: Start) -> None:
    segment = Segment(2, 0)
    joined = Joined(segment.address, 0, SHORT_S)
    child = start(segment.address, 1, 3)
    os.kill(child.pid, signal.SIGSTOP)
    # It may have come to the first meeting before.
    assert lost_to(joined, 3) == "rank 1 did not come within 0.200000 s"
    os.kill(child.pid, signal.SIGCONT)
    assert said_by(child) == "rank 1 was given up by another rank"


def test_a_rank_that_leaves_is_gone() -> None:
    one, other = join_all(Segment(2, 0))
    with ThreadPoolExecutor(1) as thread:
        reason = thread.submit(lost_to, one)
        other.leave()
        assert reason.result() == "rank 1 is gone"


def test_a_rank_that_never_joins_is_given_up_at_the_deadline() -> None:
    segment = Segment(2, 0)
    assert lost_to(Joined(segment.address, 1, SHORT_S)) == "rank 0 did not come within 0.200000 s"


def test_whoever_comes_late_to_a_broken_group_is_told_for_whom_it_broke() -> None:
    segment = Segment(3, 0)
    assert "rank 1" in lost_to(Joined(segment.address, 0, SHORT_S))
    assert "given up" in lost_to(Joined(segment.address, 2, DEADLINE_S))


def test_a_place_is_taken_once_in_a_life_and_by_nobody_of_another() -> None:
    segment = Segment(2, 5)
    first = Joined(segment.address, 0, SHORT_S)
    for taken in (first, None):
        with pytest.raises(NativeUnavailable, match="the place of rank 0 was taken"):
            Joined(segment.address, 0, SHORT_S)
        if taken is not None:
            taken.leave()
    earlier = msgspec.structs.replace(segment.address, life=4)
    more = msgspec.structs.replace(segment.address, ranks=3)
    for address in (earlier, more):
        with pytest.raises(NativeUnavailable, match="another life"):
            Joined(address, 1, SHORT_S)
    with pytest.raises(NativeUnavailable, match="no such rank"):
        Joined(segment.address, 2, SHORT_S)
    segment.close()
    with pytest.raises(NativeUnavailable, match="cannot be opened"):
        Joined(segment.address, 1, SHORT_S)


def test_more_ranks_than_have_a_place_are_refused() -> None:
    with pytest.raises(NativeUnavailable, match=f"{MOST_RANKS + 1} ranks, of at most {MOST_RANKS}"):
        Segment(MOST_RANKS + 1, 0)


def test_no_file_no_descriptor_and_no_mapping_is_left() -> None:
    def held() -> tuple[list[str], list[str], list[str]]:
        """What there is of segments: in the folder of shared memory, open, and mapped."""
        opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        mapped = Path("/proc/self/maps").read_text().splitlines()
        return tuple(
            [each for each in lines if "pawl-ranks" in each] for lines in (os.listdir("/dev/shm"), opened, mapped)
        )

    gc.collect()
    before = held()
    made = make_ranks(ODD, torch.float32, 2)
    made.backend.forward(forward_inputs([Piece(0, 0, [1, 2])], made.table))
    files, opened, mapped = held()
    assert not files
    assert len(opened) > len(before[1])
    assert len(mapped) > len(before[2])
    for backend in made.backend.backends:
        backend.close()
        joined_of(backend).leave()
    assert held() == before


def test_the_segment_is_its_owners_alone() -> None:
    segment = Segment(2, 0)
    assert Path(segment.address.path).stat().st_mode & 0o777 == 0o600


# ---- inside a step ----


def lost_in_step(backend: Native, inputs: ForwardInputs) -> str:
    with pytest.raises(RanksLost) as lost:
        backend.forward(inputs)
    return str(lost.value)


def test_a_rank_that_does_not_compute_a_step_ends_it_for_all_and_every_later_one() -> None:
    made = make_ranks(msgspec.structs.replace(ODD, num_heads=6, num_kv_heads=3), torch.float32, 3, timeout_s=SHORT_S)
    inputs = forward_inputs([Piece(0, 0, [1, 2, 3])], made.table)
    with ThreadPoolExecutor(2) as threads:
        reasons = list(threads.map(lambda backend: lost_in_step(backend, inputs), made.backend.backends[:2]))
    assert all("rank 2" in reason for reason in reasons)
    assert "rank 2" in lost_in_step(made.backend.backends[2], inputs)


def test_a_rank_that_leaves_ends_the_step_of_the_others() -> None:
    made = make_ranks(ODD, torch.float32, 2)
    inputs = forward_inputs([Piece(0, 0, [1, 2, 3])], made.table)
    staying, leaving = made.backend.backends
    with ThreadPoolExecutor(1) as thread:
        reason = thread.submit(lost_in_step, staying, inputs)
        joined_of(leaving).leave()
        assert reason.result() == "rank 1 is gone"
    with pytest.raises(RefusedInputs, match="closed"):
        leaving.forward(inputs)


@pytest.mark.parametrize("what", ["tokens", "positions", "rows", "kind"])
def test_ranks_that_are_told_different_steps_give_up(what: str) -> None:
    made = make_ranks(ODD, torch.float32, 2)
    inputs = forward_inputs([Piece(0, 3, [1, 2, 3])], made.table)
    other = {
        "tokens": forward_inputs([Piece(0, 3, [1, 2, 4])], made.table),
        "positions": forward_inputs([Piece(0, 4, [1, 2, 3])], made.table),
        "rows": replace(inputs, logit_rows=inputs.logit_rows[1:]),
        "kind": inputs,
    }[what]
    calls: list[Callable[[], Tensor]] = [
        lambda: made.backend.backends[0].forward(inputs),
        lambda: (Native.forward_greedy if what == "kind" else Native.forward)(made.backend.backends[1], other),
    ]

    def reason(call: Callable[[], Tensor]) -> str:
        with pytest.raises(RanksLost) as lost:
            call()
        return str(lost.value)

    with ThreadPoolExecutor(2) as threads:
        reasons = list(threads.map(reason, calls))
    assert any("were told different steps" in found for found in reasons)


class Before(Alone):
    """The stage before, which gives the same rows for every step."""

    def receive(self, tensor: Tensor, stage: int) -> None:
        """See `Communicator.receive`."""
        tensor.fill_(0.5)


def test_a_rank_that_is_a_step_ahead_is_not_taken_for_one_that_was_told_another() -> None:
    # Ranks of a last stage of one layer meet once in a step that scores nothing.
    topology, segment = Topology(tensor=2, pipeline=ODD.num_layers), Segment(2, 0)
    weights = random_weights(ODD, torch.float32)

    def backend_of(number: int) -> Native:
        shard = Shard(ODD, topology, number, gathers=True, stage=topology.pipeline - 1)
        kv = KvStore(shard.config, num_pages=1, page_size=16, dtype=torch.float32, device="cpu")
        rank = Rank(shard, Before(), Joined(segment.address, number, DEADLINE_S))
        return Native(shard.config, dict(part_of(shard, weights)), kv, threads=1, rank=rank)

    steps = [forward_inputs([Piece(0, 0, [token])], int32([0]), int32()) for token in (1, 2)]

    def run(backend: Native) -> None:
        for number in range(1000):
            backend.forward(steps[number % 2])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, [backend_of(number) for number in range(2)]))


def test_a_step_that_is_refused_is_refused_by_all_and_the_next_one_is_computed() -> None:
    made = make_ranks(EXPERTS, torch.float32, 2)
    inputs = forward_inputs([Piece(0, 0, [1, 2, 3])], made.table)
    expected = made.backend.forward(inputs)
    wrong = forward_inputs([Piece(0, 0, [1, EXPERTS.vocab_size])], made.table)
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(backend.forward, wrong) for backend in made.backend.backends]:
            with pytest.raises(RefusedInputs, match="outside the vocabulary"):
                done.result()
    assert torch.equal(made.backend.forward(inputs), expected)
