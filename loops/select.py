"""The one place that turns a configuration into a loop cell: pacing x role x policy."""

from __future__ import annotations

import msgspec

from lifecycle.journal import Journal
from lifecycle.table import RequestTable
from loops.admission import Admission
from loops.fetching import LowerTiers, TierConfig, TierEffects
from loops.loop import Effects, Loop
from loops.pacing import Lockstep, Overlap, Pacing
from loops.policy import POLICIES
from loops.roles import Unified
from loops.work import Work
from memory.pool import Memory
from memory.prefix.select import make_cache


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
    lookahead: int = 64
    """Output tokens promised to a running request beyond those it has. Less admits more and retracts more."""
    pacing: str = "overlap"
    mixed: bool = True
    policy: str = "fcfs"
    cache: str = "radix"
    tiers: TierConfig | None = None
    """Cache tiers below the device, where there are some."""
    seed: int = 0


PACINGS: dict[str, type[Lockstep] | type[Overlap]] = {"lockstep": Lockstep, "overlap": Overlap}


def make_loop(
    config: LoopConfig, effects: Effects, journal: Journal, tier_effects: TierEffects | None = None
) -> Loop:
    """A loop with empty memory. With `config.tiers`, what it wants of them goes to `tier_effects`."""
    memory = Memory(
        num_pages=config.num_pages,
        num_slots=config.max_running,
        max_context=config.max_context,
        cache=make_cache(config.cache, config.page_size),
    )
    # One step may still name a row after its request has ended: rows for those, and for one refusal at a time.
    table = RequestTable(2 * config.max_running + config.max_queued + 1, memory.max_context)
    work = Work(table, memory)
    pacing: Pacing = PACINGS[config.pacing]()
    admission = Admission(
        work, POLICIES[config.policy](config.seed), lookahead=config.lookahead, share_prefixes=config.cache != "none"
    )
    role = Unified(work, admission, prefill_chunk=config.prefill_chunk, mixed=config.mixed)
    tiers = None
    if config.tiers is not None and tier_effects is not None:
        tiers = LowerTiers(work, journal, tier_effects, config.tiers)
    return Loop(table, memory, work, role, pacing, effects, journal, max_queued=config.max_queued, tiers=tiers)


def cell_name(config: LoopConfig) -> str:
    """For logs and the trace: which cell of the table of loops this is."""
    return f"unified-{config.pacing}" + ("-mixed" if config.mixed else "")
