"""One rank, as a backend knows it."""

from __future__ import annotations

from typing import NamedTuple

from pawl.gpu.parallel.communicator import Communicator
from pawl.gpu.parallel.shard import Shard


class Rank(NamedTuple):
    """What it has of a model, and how it hears of the others."""

    shard: Shard
    communicator: Communicator
