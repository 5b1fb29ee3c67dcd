"""Where new weights come from: passed on from who asks for them to the runner that reads them.

Tensors may come in several parts, each of which names some of the model's weights, and a part that is not the last is
kept until the last one comes. Weights that no part names stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from pawl.lifecycle.weight_group import TensorSpec

SegmentName = Annotated[str, msgspec.Meta(pattern=r"^/?[A-Za-z0-9_][A-Za-z0-9_.\-]{0,250}$")]

SegmentSize = Annotated[int, msgspec.Meta(ge=8, le=1 << 48)]


class FromDisk(msgspec.Struct, frozen=True, tag=True):
    """All weights, from what `pawl serve` takes: a folder of safetensors, a GGUF file, the name of one."""

    path: str
    load_format: str = "auto"


class FromBytes(msgspec.Struct, frozen=True, tag=True, eq=False):
    """Some weights, as the bytes of a safetensors file."""

    safetensors: bytes


class FromSharedMemory(msgspec.Struct, frozen=True, tag=True):
    """The same in a POSIX shared memory segment of this machine, which is copied and left as it is."""

    name: SegmentName
    size: SegmentSize
    """Bytes of the file, at the beginning of the segment."""


class FromTensors(NamedTuple):
    """Some weights that are in this process already: host tensors (numpy arrays, for a ghost) under the names that a
    checkpoint has for them. They are copied, and may be written again when `StepRunner.stage` has returned."""

    tensors: Mapping[str, Any]


class FromMemory(NamedTuple):
    """Some weights as bytes in memory, one after the other."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    """Of each, in bytes."""
    memory: Any
    """A buffer."""


class FromTrainer(msgspec.Struct, frozen=True, tag=True):
    """What a trainer has broadcast; the stager finds it under the ticket of the update."""


Sent: TypeAlias = FromDisk | FromBytes | FromSharedMemory | FromTrainer
"""What a message can hold."""
WeightSource: TypeAlias = FromDisk | FromBytes | FromSharedMemory | FromTensors | FromMemory
"""What a runner reads."""
