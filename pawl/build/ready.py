"""What the front and the process of a replica tell each other before they have a link, a frame each."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import msgspec

from pawl.actors.names import Names
from pawl.gpu.step_runner import Abilities
from pawl.loops.select import LoopConfig, Role

FRONT = "front"
"""Name of the process of the front."""


class Home(NamedTuple):
    """A machine, to those who look for it."""

    node: str
    """`front`: that of the front; else the name of its agent, `node.K`."""
    address: str | None
    """As it reaches, or is reached by, the others; None where there are none."""


HERE = Home(FRONT, None)


class Setup(msgspec.Struct, frozen=True):
    """What a replica is started with."""

    config: dict[str, Any]
    names: Names
    """Of its actors, and those of the front."""
    process: str
    """Its own name."""
    address: str
    """Where the front waits for it."""
    switch_s: float
    """After which a thread that computes lets another one have the interpreter."""
    place: int = 0
    """Among all replicas."""
    keys: str | None = None
    """Folder of the keys for links between hosts."""
    peers_at: str | None = None
    """Address, tcp://HOST:0, at which processes of other hosts find this one; None: all are on this host."""
    outposts: tuple[str, ...] = ()
    """Where it finds the processes that start its ranks on other hosts, in their order."""
    part: int = 0
    """Of the hosts of its ranks: which one this is. 0: that of the replica itself; else it is set up for an outpost."""
    host: str = ""
    """The host of an outpost, as people know it."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far loading is, 0 to 1."""

    share: float


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A replica can serve, and what it has."""

    version: str
    pid: int
    name: str
    """Of the model."""
    path: str
    num_embeddings: int
    """Token ids of the model."""
    abilities: Abilities
    loop_config: LoopConfig
    summary: dict[str, Any]
    traced: bool

    def facts(self) -> dict[str, object]:
        """What the front, and every other replica of the model, must have likewise."""
        config = self.loop_config
        facts = {
            "version": self.version,
            "model": self.name,
            "weights": config.weights,
            "token ids": self.num_embeddings,
            "pages": None if config.tiers is None else config.tiers.layout,
            "max running": config.max_running,
            "device": self.summary.get("device"),
            "abilities": self.abilities,
        }
        if config.role is Role.PREFILL:  # with another number of ranks it has other room; no client asks it
            return facts
        return facts | {"max tokens": config.num_pages * config.page_size, "max input": config.max_context}


class Waits(msgspec.Struct, frozen=True, tag=True):
    """An outpost can start ranks, once the replica has come to it here."""

    address: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It cannot be loaded. `usage`: as the settings cannot be."""

    message: str
    usage: bool


Told: TypeAlias = Progress | Ready | Waits | Refused
