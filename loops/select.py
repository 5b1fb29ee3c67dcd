"""The one place that turns a configuration into a loop cell: pacing x role x policy."""

from __future__ import annotations

from enum import StrEnum
from functools import partial

import msgspec

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.limits import Limits
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.states import Cause
from pawl.loops.adapters import Adapters
from pawl.loops.admission import Admission
from pawl.loops.cache_events import CacheEventLog
from pawl.loops.companion import Companion
from pawl.loops.effects import Effects
from pawl.loops.handing_over import HandingOver
from pawl.loops.limits import LimitKeeper
from pawl.loops.loop import Loop
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.pacing import PACINGS
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.policy import POLICIES
from pawl.loops.queues import Queues
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.speculation import Drafter, SpeculationConfig
from pawl.loops.tiers import RemoteConfig, TierConfig, TierEffects
from pawl.loops.versions import DEFAULT_VERSION
from pawl.loops.weights import Served
from pawl.memory.memory import Memory
from pawl.memory.prefix.select import KINDS, make_cache
from pawl.memory.transaction import Ledger
from pawl.memory.window_pool import WindowPool


class Role(StrEnum):
    """What a replica does of a request."""

    UNIFIED = "unified"
    PREFILL = "prefill"
    """Computes prompts for decode replicas, and sends their pages; draws nothing."""
    DECODE = "decode"
    """Has long prompts computed by prefill replicas, and does the rest."""


class LoopConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What decides how requests are scheduled."""

    num_pages: int
    page_size: int
    max_context: int
    """Tokens of one request, prompt and output."""
    max_running: int = 256
    max_queued: int = 1024
    prefill_chunk: int = 512
    """Prompt tokens computed in one step at the most."""
    max_step_s: float | None = None
    """How long prompts may make a step beside requests that decode, in seconds; see `lifecycle/step_times.py`. None: as
    long as `prefill_chunk` does."""
    lookahead: int = 64
    """Output tokens promised to a running request beyond those it has. Less admits more and retracts more."""
    pacing: str = "overlap"
    stages: int = 1
    """Of a pipeline: parts of the model, one after the other, each of which computes a step of its own."""
    mixed: bool = True
    policy: str = "fcfs"
    cache: str = "radix"
    eviction: str = "lru"
    """Which cached pages leave first."""
    cache_core: str = "python"
    """Which implementation of the cache; what it decides is the same."""
    weights: str = ""
    """Fingerprint of the weights to start with: what others computed is not shared with them."""
    weight_version: str = DEFAULT_VERSION
    """What replies call them."""
    tiers: TierConfig | None = None
    """Cache tiers below the device, where there are some."""
    role: Role = Role.UNIFIED
    remote: RemoteConfig | None = None
    """Which prompts prefill replicas compute; of a decode replica, and of no other."""
    window: int | None = None
    """Keys that a query of a windowed layer sees, its own included; given when those have a pool of their own."""
    num_window_pages: int | None = None
    """Pages of that pool."""
    checkpoint_bytes: int = 0
    """About how much is recorded from one checkpoint to the next; 0: there are none."""
    seed: int = 0
    max_loras: int = 0
    """Adapter slots; 0: requests have no adapters."""
    max_loaded_loras: int = 0
    """Adapters that may be loaded at a time."""
    speculation: SpeculationConfig | None = None
    """How tokens to come are drafted; None: they are not."""

    @property
    def limits(self) -> Limits:
        """Those to start with."""
        return Limits(max_running=self.max_running, prefill_chunk=self.prefill_chunk, max_queued=self.max_queued)

    @property
    def served(self) -> Served:
        """The weights to start with."""
        return Served(self.weight_version, self.weights)


def make_loop(config: LoopConfig, effects: Effects, journal: Journal, tier_effects: TierEffects | None = None) -> Loop:
    """A loop with empty memory. With `config.tiers`, what it wants of them goes to `tier_effects`.

    Raises ValueError for a configuration that cannot be served."""
    memory = make_memory(config)
    # One step may still name a row after its request has ended: rows for those, and for one refusal at a time.
    table = RequestTable(2 * config.max_running + config.max_queued + 1, memory.max_context)
    queues = Queues(table, memory)
    pacing = PACINGS[config.pacing](config.stages)
    limits = LimitKeeper(config.limits)
    adapters = None
    if config.max_loras:
        adapters = Adapters(queues, journal, config.max_loras, config.max_loaded_loras)
    admission = Admission(
        queues,
        POLICIES[config.policy](config.seed),
        limits.now,
        lookahead=config.lookahead,
        share_prefixes=KINDS[config.cache].shares,
        adapters=adapters,
    )
    drafter = None
    if config.speculation is not None:
        drafter = Drafter(table, config.speculation, most=min(config.prefill_chunk, config.speculation.max_positions))
    planner = UnifiedPlanner(
        queues,
        admission,
        limits,
        pacing=pacing,
        mixed=config.mixed,
        max_step_s=config.max_step_s,
        drafter=drafter,
    )
    feed = CacheEventLog(memory, journal)
    companions = _below_the_device(config, queues, journal, tier_effects, feed)
    if adapters is not None:
        companions.append(adapters)
    loop = Loop(
        table,
        memory,
        queues,
        planner,
        pacing,
        effects,
        journal,
        limits=limits,
        feed=feed,
        companions=companions,
        drafter=drafter,
        fresh_memory=partial(make_memory, config),
    )
    if config.role is Role.PREFILL:
        loop.requests.prompt_cause = Cause.HANDED_OVER
    return loop


def _below_the_device(
    config: LoopConfig, queues: Queues, journal: Journal, effects: TierEffects | None, feed: CacheEventLog
) -> list[Companion]:
    """What moves pages between the device, the tiers below it, and other replicas. Raises ValueError."""
    if (config.role is Role.DECODE) != (config.remote is not None):
        raise ValueError("a decode replica, and no other, must know of prefill replicas")
    if config.tiers is None:
        if config.role is not Role.UNIFIED:
            raise ValueError(f"a {config.role} replica without tiers below the device, in which pages travel")
        return []
    if effects is None:
        raise ValueError("lower cache tiers, and nobody who moves their pages")
    tiers = LowerTiers(queues, journal, effects, config.tiers, feed)
    if config.remote is not None:
        return [RemotePrefill(queues, journal, effects, config.remote, tiers), tiers]
    return [tiers, HandingOver(queues, tiers, effects)] if config.role is Role.PREFILL else [tiers]


def make_memory(config: LoopConfig) -> Memory:
    """Memory in which nothing is taken. Raises ValueError for a configuration that cannot be served."""
    windows = make_windows(config)
    return Memory(
        num_pages=config.num_pages,
        num_slots=config.max_running,
        max_context=config.max_context,
        cache=make_cache(config.cache, config.page_size, windows, eviction=config.eviction, core=config.cache_core),
        windows=windows,
    )


def make_windows(config: LoopConfig) -> WindowPool | None:
    """The second pool, where the configuration has one. Raises ValueError when it cannot serve one request."""
    if (config.window is None) != (config.num_window_pages is None):
        raise ValueError("a window needs pages, and window pages need a window")
    if config.window is None or config.num_window_pages is None:
        return None
    if config.tiers is not None:
        raise ValueError("lower cache tiers keep no window pages: what came back from them could not be read on from")
    return WindowPool(
        Ledger(),
        num_pages=config.num_window_pages,
        num_full=config.num_pages,
        num_slots=config.max_running,
        page_size=config.page_size,
        window=config.window,
        chunk=config.prefill_chunk,
        max_context=config.max_context,
    )


def cell_name(config: LoopConfig) -> str:
    """For logs and the trace: which cell of the table of loops this is."""
    return f"{config.role}-{config.pacing}" + ("-mixed" if config.mixed else "")
