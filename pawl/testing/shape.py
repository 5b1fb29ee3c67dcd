"""The size of a simulated server. What one field may be stands in its annotation, what several may be together in
`Shape.check`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from pawl.actors.names import DECODE, PREFILL, UNIFIED
from pawl.actors.placement import PLACEMENTS
from pawl.loops.pacing import PACINGS
from pawl.loops.saving import WritePolicy
from pawl.loops.select import LoopConfig, Role, make_memory
from pawl.loops.speculation import KINDS as SPECULATIONS
from pawl.loops.speculation import SpeculationConfig
from pawl.loops.tiers import RemoteConfig, TierConfig
from pawl.settings import AtLeastOne, AtLeastZero, UpTo64, UpTo1024

TIER_LAYOUT = "ghost"
OF_THE_LOOP = frozenset(info.name for info in msgspec.structs.fields(LoopConfig))
MOST_TOKENS = 1 << 24
"""Of all requests that a table has room for."""
NAMED: Mapping[str, Collection[str]] = {
    "pacing": PACINGS,
    "placement": PLACEMENTS,
    "speculate": SPECULATIONS,
    "write_policy": tuple(WritePolicy),
}
"""Field -> its values, where nobody else looks whether it has one of them."""
Ranks = Annotated[int, Meta(ge=1, le=2)]
Replicas = Annotated[int, Meta(ge=1, le=16)]
UpTo16 = Annotated[int, Meta(ge=0, le=16)]
Seconds = Annotated[float, Meta(ge=0, le=1000)]
SomeSeconds = Annotated[float, Meta(gt=0, le=1000)]


class Shape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The server: the fields of `LoopConfig` that matter here."""

    num_pages: AtLeastOne = 8
    page_size: UpTo1024 = 2
    max_running: AtLeastOne = 3
    prefill_chunk: AtLeastOne = 4
    max_step_s: SomeSeconds | None = None
    lookahead: AtLeastZero = 2
    pacing: str = "overlap"
    stages: UpTo64 = 1
    stage_s: tuple[Seconds, ...] = ()
    """Virtual seconds of a step in each stage; empty: an equal part of `step_s`."""
    mixed: bool = True
    policy: str = "fcfs"
    cache: str = "radix"
    eviction: str = "lru"
    cache_core: str = "python"
    save_pages: AtLeastOne = 32
    max_saving_pages: AtLeastOne = 256
    max_fetch_pages: AtLeastOne = 512
    """Pages in one message on the way down, on the way down at a time, and of one fetch, at the most."""
    host_pages: AtLeastZero = 0
    """Pages that host memory holds below the device; 0: there is no such tier."""
    storage_pages: AtLeastZero = 0
    """Pages that files hold, on a disk that may fail; 0: there is no such tier."""
    write_policy: str = "write-through"
    fetch_lease_s: SomeSeconds = 2.0
    fetch_s: Seconds = 0.0
    """Virtual seconds that a request waits for pages from there at the most, and that it takes to read them."""
    window: AtLeastOne | None = None
    num_window_pages: AtLeastOne | None = None
    """None: as many as there are others, where there is a window."""
    max_context: AtLeastOne | None = None
    """None: what the pages hold."""
    max_queued: AtLeastOne = 16
    ranks: Ranks = 1
    """Two ghosts that are told the same, of which one may die or diverge."""
    rank_hosts: Ranks = 1
    """Two: the second rank of every replica lives on one host, which may die with all of them."""
    asynchronous: bool = False
    """The worker takes a step while the one before runs."""
    step_s: Seconds = 0.0
    """Virtual seconds of one step; 0: work takes no time."""
    token_s: Seconds = 0.0
    """Those of every position in it."""
    hitches: tuple[Seconds, ...] = ()
    """Virtual seconds that steps take longer than that, in turns."""
    mailbox: AtLeastOne | None = None
    """Requests that may wait in the mailbox of the tokenizer, and in that of the scheduler, before more are refused;
    then few messages fit in the detokenizer's. None: as many as on a server."""
    speculate: str = "none"
    num_speculative_tokens: UpTo64 = 3
    prompt_lookup_min: UpTo64 = 1
    prompt_lookup_max: UpTo64 = 1
    max_loras: AtLeastZero = 0
    max_loaded_loras: AtLeastZero = 0
    checkpoint_bytes: AtLeastZero = 0
    """About how much is recorded from one checkpoint to the next; 0: there are none."""
    replicas: Replicas = 1
    """Engines of this shape behind one gateway."""
    prefillers: UpTo16 = 0
    """Replicas that prefill for those, on whom a request waits no longer than the next, in virtual seconds."""
    prefill_lease_s: SomeSeconds = 5.0
    prefill_pages: AtLeastOne | None = None
    """Pages that may be on their way to one that decodes; None: as many as it has."""
    prefill_ranks: Ranks | None = None
    """Ranks of those that prefill; None: as many as others have."""
    placement: str = "round_robin"
    affinity_bound: AtLeastZero = 0
    """Open requests that a replica may have more than the least busy one, and be chosen for a prefix all the same."""
    max_restarts: AtLeastZero = 0
    """Replicas that are started again when one is lost."""
    max_replicas: UpTo16 = 0
    """Replicas that there may be while it runs; 0: as many as there are."""
    scale_at: AtLeastZero = 0
    """Open requests for each that are too many; 0: the load asks for no other number."""
    scale_up_s: Seconds = 0.0
    scale_down_s: Seconds = 0.0
    """Virtual seconds for which the load must be high, or low."""
    short: AtLeastZero | None = None
    """Tokens of a call beyond which a tokenizer of its own reads the prompts; None: there is only one."""
    scheduler: str = ""
    """A scheduler of your own, see `pawl.testing.plugins`; policy and cache may be your own as well."""

    def loop_config(self, role: str = UNIFIED) -> LoopConfig:
        """As the scheduler takes it."""
        fields = {name: value for name, value in msgspec.structs.asdict(self).items() if name in OF_THE_LOOP}
        if self.host_pages or self.storage_pages:
            durable = self.storage_pages > 0
            policy = str(WritePolicy.HAND_OVER) if role == PREFILL else self.write_policy
            most = {name: getattr(self, name) for name in ("save_pages", "max_saving_pages", "max_fetch_pages")}
            lease_s = self.fetch_lease_s
            fields["tiers"] = TierConfig(
                layout=TIER_LAYOUT, write_policy=policy, durable=durable, lease_s=lease_s, **most
            )
        if role == DECODE:
            most_pages = self.prefill_pages or self.num_pages
            fields["remote"] = RemoteConfig(max_pages=most_pages, lease_s=self.prefill_lease_s)
        if self.speculate != "none":
            names = ("num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max")
            fields["speculation"] = SpeculationConfig(**{name: getattr(self, name) for name in names})
        if self.window is not None and self.num_window_pages is None:
            fields["num_window_pages"] = self.num_pages
        if self.max_context is None:
            fields["max_context"] = self.num_pages * self.page_size
        return LoopConfig(**fields, role=Role(role), weights="ghost")

    @property
    def roles(self) -> tuple[str, ...]:
        """Of its replicas, by number."""
        return (DECODE if self.prefillers else UNIFIED,) * self.replicas + (PREFILL,) * self.prefillers

    @property
    def routed(self) -> bool:
        """Whether a router stands before its replicas: there are several, or there may be."""
        return len(self.roles) > 1 or self.max_replicas > 1

    def ranks_of(self, role: str) -> int:
        """Ranks of a replica of this role."""
        return self.ranks if role != PREFILL or self.prefill_ranks is None else self.prefill_ranks

    @property
    def times(self) -> tuple[float, ...]:
        """Virtual seconds of a step in each stage."""
        return self.stage_s or (self.step_s / self.stages,) * self.stages

    @property
    def steps_take_time(self) -> bool:
        """Whether any does."""
        return sum((*self.times, self.token_s, *self.hitches)) > 0

    @property
    def work_takes_time(self) -> bool:
        """Whether time passes while something is done."""
        return self.steps_take_time or self.fetch_s > 0

    @property
    def room(self) -> int:
        """Tokens that one request may have, prompt and output."""
        room = self.num_pages * self.page_size
        return room if self.max_context is None else min(room, self.max_context)

    def check(self) -> None:
        """Raises ValueError, in one line, for a server that cannot be, or is too large to be simulated."""
        for name, known in NAMED.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")
        if self.prefillers and not (self.host_pages or self.storage_pages):
            raise ValueError("replicas that prefill hand pages over below the device: they need host or storage pages")
        if self.prefillers and self.max_replicas:
            raise ValueError("beside replicas that prefill, none come and go")
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(f"{self.replicas} replicas are more than the {self.max_replicas} that there may be")
        if self.stages > 1 and self.pacing != "pipeline":
            raise ValueError(f"{self.stages} stages need the pacing pipeline")
        if self.stage_s and len(self.stage_s) != self.stages:
            raise ValueError(f"{len(self.stage_s)} times of {self.stages} stages")
        if self.prefill_chunk < self.page_size:
            raise ValueError(f"a chunk of {self.prefill_chunk} is less than a page of {self.page_size} tokens")
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        if least > most:
            raise ValueError(f"a lookup of at least {least} and at most {most} tokens")
        tokens = (2 * self.max_running + self.max_queued) * self.room
        if tokens > MOST_TOKENS:
            raise ValueError(f"requests of {tokens:,} tokens; a simulated server has room for {MOST_TOKENS:,}")
        for role in dict.fromkeys(self.roles):
            make_memory(self.loop_config(role))
