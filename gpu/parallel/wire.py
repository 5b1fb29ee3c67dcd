"""What the parent of ranks and its ranks say to each other.

Everything is said to all ranks in the same bytes, and each answers each message once, in order. Two lines lead to a
rank: one for steps and all that stands between them, one for what another thread asks meanwhile.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.gpu.native.address import Address
from pawl.gpu.parallel.placement import Placement
from pawl.gpu.parallel.topology import Topology
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import Int32s, StepBatch, StepResult
from pawl.lifecycle.weight_group import TensorSpec
from pawl.lifecycle.weight_source import FromBytes, FromDisk, FromSharedMemory

Uint8s: TypeAlias = NDArray[np.uint8]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Of a runner's tables."""

    num_pages: int
    num_window_pages: int | None
    page_size: int
    num_slots: int
    max_context: int


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank has of its host, from whoever has started it there. It opens nothing that is not named here or in its
    `Setup`."""

    store: str
    """Beginning of the names of files at which ranks of this host and start meet."""
    device: int
    """Number of its device, where it has one."""
    threads: int
    segment: Address | None
    """Where ranks of the compiled kernels meet, of its stage; None: it is the only one of it, or computes otherwise."""
    waits_at: str | None = None
    """Address, tcp://HOST:0, at which ranks of other hosts find it; None: all are on this one."""
    keys: str | None = None
    """Folder of the keys for links between hosts."""
    head: str | None = None
    """Where the head is found from this host; None: here."""
    host: str = ""
    """This host, as people know it; empty: that of the process of its replica."""


class Setup(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What a rank of any host begins with."""

    rank: int
    topology: Topology
    settings: str
    """Of the server, as JSON."""
    model: str
    """Where the model's folder or file is."""
    name: str
    """What has it on a host where it is not there."""
    sizes: Sizes
    deterministic: bool
    by_kernels: bool
    """It computes by the compiled CPU kernels, and not in plain torch."""
    placement: Placement
    """Where experts are; empty: evenly."""


# ---- what ranks are told ----


class NextStage(msgspec.Struct, frozen=True, tag=True):
    """Before anything is loaded, where stages live on several hosts: where the rank behind this one waits."""

    address: str
    start: bytes
    """Of this start, and of no other one."""


class RunStep(msgspec.Struct, frozen=True, tag=True, eq=False):
    """Compute a step."""

    batch: StepBatch


class ForgetSlots(msgspec.Struct, frozen=True, tag=True):
    """See `StepRunner.reset`."""


class SwapWeights(msgspec.Struct, frozen=True, tag=True):
    """See `StepRunner.swap`."""

    ticket: int


class MoveTags(msgspec.Struct, frozen=True, tag=True):
    """See `StepRunner.release` and `resume`."""

    release: bool
    tags: tuple[MemoryTag, ...]


class CopyOut(msgspec.Struct, frozen=True, tag=True, eq=False):
    """See `StepRunner.read_pages`; a rank has its heads of each page."""

    pages: Int32s


class CopyIn(msgspec.Struct, frozen=True, tag=True, eq=False):
    """See `StepRunner.write_pages`; of the whole pages each rank takes its heads."""

    pages: Int32s
    blocks: Uint8s


class CountExperts(msgspec.Struct, frozen=True, tag=True):
    """Say with each step how many tokens have used each expert, or say it no more."""

    start: bool


class SwitchExperts(msgspec.Struct, frozen=True, tag=True):
    """Compute by the map of experts that is staged under this ticket."""

    ticket: int


class StageWeights(msgspec.Struct, frozen=True, tag=True, eq=False):
    """See `StepRunner.stage`."""

    ticket: int
    source: FromDisk | FromBytes | FromSharedMemory
    last: bool


class StageExperts(msgspec.Struct, frozen=True, tag=True, eq=False):
    """See `HoldsExperts.stage`."""

    ticket: int
    placement: Placement
    source: FromBytes


class ExpectWeights(msgspec.Struct, frozen=True, tag=True):
    """See `StepRunner.expect`."""

    specs: tuple[TensorSpec, ...]


class TakeAdapter(msgspec.Struct, frozen=True, tag=True):
    """See `StepRunner.load_adapter`."""

    slot: int
    source: str


class DropAdapter(msgspec.Struct, frozen=True, tag=True):
    """See `StepRunner.unload_adapter`."""

    slot: int


class ShowWeight(msgspec.Struct, frozen=True, tag=True):
    """One of the weights that compute, as a checkpoint has it: the rank's part."""

    name: str


ToRank: TypeAlias = (
    RunStep | ForgetSlots | SwapWeights | MoveTags | CopyOut | CopyIn | CountExperts | SwitchExperts
)  # fmt: skip
"""On the line of steps."""
Beside: TypeAlias = StageWeights | StageExperts | ExpectWeights | TakeAdapter | DropAdapter | ShowWeight
"""On the other one."""


# ---- what they answer ----


class Waits(msgspec.Struct, frozen=True, tag=True):
    """The first word, where stages live on several hosts: where the rank before this one finds it."""

    address: str


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Before it is ready: the share of its weights that the rank has read, 0 to 1."""

    share: float


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first answer on the line of steps, but for `Loading`: what the rank is and has."""

    rank: int
    stage: int
    tensor: int
    pid: int
    version: str
    """Of Pawl and PyTorch: both compute."""
    device: str
    processor: str
    dtype: str
    backend: str
    max_tokens: int
    """That its pages hold."""
    kv_bytes: int
    page_shape: tuple[int, ...]
    """Of a page: layers, keys and values, tokens, heads, dimensions."""
    page_bytes: int
    fingerprint: str
    """Of the whole model's weights."""
    shard: str
    """Of its own."""
    host: str = ""
    """See `Here.host`."""


class Usage(msgspec.Struct, frozen=True):
    """What a rank has done and uses; see `RankState`."""

    steps: int
    step_s: float
    waiting_s: float
    resident_bytes: int
    device_bytes: int


class Answer(msgspec.Struct, frozen=True, tag=True, eq=False, omit_defaults=True):
    """To one message. Nothing is set but what it asks for."""

    applied: bytes
    """The running hash of all steps that the rank has applied; see `pawl.gpu.parallel.applied`."""
    drawn: bytes = b""
    """That of what they gave; empty at a stage before the last."""
    refusal: str = ""
    """Why it could not be done, in words; empty: it was done."""
    kind: str = ""
    """Of a refusal: the class of what was raised."""
    usage: Usage | None = None
    """After a step."""
    result: StepResult | None = None
    text: str = ""
    data: Uint8s | None = None
    counts: NDArray[np.int64] | None = None
    """[layers, experts], of a step while experts are counted: what it adds, of the layers of the rank's stage."""
    released: tuple[MemoryTag, ...] = ()
    dtype: str = ""
    shape: tuple[int, ...] = ()


FromRank: TypeAlias = Waits | Loading | Ready | Answer
