"""One rank, as a backend knows it."""

from __future__ import annotations

from typing import NamedTuple

from pawl.gpu.native.ranks import Joined
from pawl.gpu.parallel.communicator import Communicator
from pawl.gpu.parallel.shard import Shard


class Rank(NamedTuple):
    """What it has of a model, and how it hears of the others."""

    shard: Shard
    communicator: Communicator
    joined: Joined | None = None
    """Where the compiled CPU kernels meet, in place of the communicator, whose shards gather."""
