"""Names under which the actors of one replica, and those in front of it, reach each other."""

from __future__ import annotations

import msgspec

UNIFIED, PREFILL, DECODE = "unified", "prefill", "decode"
"""Roles of replicas (`pawl.loops.select.Role`)."""


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """Who is called what. Given to every actor that sends, so that several replicas can live in one system."""

    gateway: str = "gateway"
    tokenizer: str = "tokenizer"
    long_tokenizer: str = "long_tokenizer"
    """Reads long prompts."""
    scheduler: str = "scheduler"
    grammar: str = "grammar"
    worker: str = "worker"
    stager: str = "stager"
    groups: str = "groups"
    storage: str = "storage"
    detokenizer: str = "detokenizer"
    linker: str = "linker"
    watchdog: str = "watchdog"
    recorder: str = "recorder"
    router: str = "router"
    replica: int = 0
    """Number of the replica, which no other ever has; one that is started again has a new one."""
    role: str = UNIFIED

    @property
    def routed(self) -> bool:
        """Whether these are of a replica behind the router."""
        return self.gateway == self.router or self.role == PREFILL

    @property
    def vital(self) -> frozenset[str]:
        """Without one of these no request, or no update of the weights, can end on its own."""
        text = (self.tokenizer, self.long_tokenizer, self.detokenizer)
        return frozenset((*text, self.scheduler, self.grammar, self.worker, self.stager, self.groups))

    @property
    def own(self) -> frozenset[str]:
        """Names of the actors that the replica has for itself."""
        names = frozenset(getattr(self, name) for name in OF_A_REPLICA)
        return names | {self.detokenizer} if self.role == PREFILL else names


NAMES = Names()
"""Where there is one replica, and nobody between it and the front."""

ROUTER = NAMES.router
DESK = "desk"
"""Stands, of a replica that prefills, where gateway and detokenizer would; lives in its process."""
OF_A_REPLICA = ("scheduler", "grammar", "worker", "stager", "groups", "storage", "linker", "watchdog", "recorder")
"""Actors that each replica has for itself."""
FRONT = msgspec.structs.replace(NAMES, **dict.fromkeys(OF_A_REPLICA, ROUTER))
"""For the actors in front of several replicas: the router stands where the scheduler and its helpers would."""


def names_of(replica: int, role: str = UNIFIED) -> Names:
    """For the actors of one of several replicas: the router stands where gateway and detokenizer would; for one that
    prefills, its desk does."""
    own = {name: f"{name}.{replica}" for name in OF_A_REPLICA}
    front = f"{DESK}.{replica}" if role == PREFILL else ROUTER
    return msgspec.structs.replace(NAMES, **own, gateway=front, detokenizer=front, replica=replica, role=role)


def is_behind_router(name: str) -> bool:
    """Whether it is the name of an actor of one of several replicas (`names_of`)."""
    actor, numbered, _ = name.partition(".")
    return bool(numbered) and actor in (*OF_A_REPLICA, DESK)
