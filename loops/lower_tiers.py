"""The cache tiers below the device, as the loop's companion: what goes down, what comes up, and what the tiers tell.

Pages go down as the device's cache stores and drops them (loops/saving.py), and come up for requests that wait
(loops/fetching.py). Both know the same two things: which pages the device has, by key, and which the tiers have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.records import TierTold
from pawl.lifecycle.snapshot import Plain
from pawl.loops.batch import ScheduledBatch
from pawl.loops.cache_events import CacheEventLog
from pawl.loops.companion import Companion
from pawl.loops.fetching import Fetching
from pawl.loops.queues import Queues
from pawl.loops.saving import Saving, WritePolicy
from pawl.loops.tiers import TierConfig, TierEffects
from pawl.memory.page_pool import Reservation
from pawl.memory.prefix.events import CacheEvent
from pawl.memory.snapshot import NoSnapshot
from pawl.memory.tiers.index import TierIndex
from pawl.memory.tiers.keys import DeviceKeys, PageKey, split_keys

MOST_KEYS = 1 << 16
"""Pages below the device that a checkpoint names at the most: a megabyte of keys."""


class LowerTiers(Companion):
    """The scheduler's side of the cache tiers below the device."""

    def __init__(
        self, queues: Queues, journal: Journal, effects: TierEffects, config: TierConfig, feed: CacheEventLog
    ) -> None:
        self.queues = queues
        self.memory = queues.memory
        self.journal = journal
        self.effects = effects
        self.config = config
        self.index = TierIndex()
        self.device = DeviceKeys(config.layout, self.memory.page_size)
        self.saving = Saving(
            self.device,
            self.index,
            WritePolicy(config.write_policy),
            effects.save,
            at_once=config.save_pages,
            limit=config.max_saving_pages,
        )
        self.fetching = Fetching(queues, journal, effects, config, self.index, self.device, self.settle)
        self.era = self._told_era = 0
        """Number of flushes."""
        self._feed = feed
        self._untold: list[CacheEvent] = []
        """Events of the cache that nobody has followed yet."""
        feed.follow(self._untold.extend)

    # ---- with the loop ----

    def turning(self, now: float) -> None:
        self.settle()

    def emptied(self) -> None:
        self.settle()

    def planning(self, now: float) -> None:
        self.fetching.begin(now)

    def launching(self, scheduled: ScheduledBatch) -> None:
        for row in scheduled.admitted:
            hold = self.memory.page_table.holds[int(self.queues.table.slot[row])]
            if hold is not None:
                self.saving.hit(hold.pages)
        self.settle()

    def left(self, row: int) -> None:
        self.fetching.left(row)

    def lost(self, now: float) -> None:
        self.saving.follow(self._take_events(), intact=False)
        self.saving.lost()
        self.fetching.lost(now)
        self._tell_era()

    def written(self) -> Iterable[Reservation]:
        return self.fetching.written()

    def flushed(self) -> None:
        """So is the host's memory, and what files hold is not looked at any more."""
        self.saving.follow(self._take_events(), intact=False)
        self.saving.forget()
        self.index.clear()
        self.era += 1
        self._tell_era()

    def _tell_era(self) -> None:
        if self._told_era != self.era:
            self.effects.empty_host(self.era)
            self._told_era = self.era

    def stopped(self) -> None:
        """Tiers that outlive the engine get what only the device has, and the next one starts warm."""
        self.settle()
        if self.config.durable:
            self.saving.save_rest()

    def settle(self) -> int:
        """Let the tiers know what the cache has done: before a step is launched, and before pages are promised to a
        fetch, because either may overwrite pages that are still to be saved. The number of the newest save."""
        self.saving.follow(self._take_events())
        self.saving.flush()
        return self.saving.number

    def _take_events(self) -> Sequence[CacheEvent]:
        self._feed.collect()
        events = self._untold.copy()
        self._untold.clear()
        return events

    def snapshot(self) -> Plain:
        self.settle()  # so nothing is left to be followed or sent
        if len(self.index) > MOST_KEYS:
            raise NoSnapshot(f"an index of {len(self.index)} pages below the device")
        # What goes down decides nothing that is recorded: a replay does not even hear that it has arrived.
        return {
            "index": self.index.snapshot(),
            "device": self.device.snapshot(),
            "fetching": self.fetching.snapshot(),
        }

    def restore(self, plain: Plain) -> None:
        self.index.kept(split_keys(plain["index"]))
        self.device.restore(plain["device"])
        self.fetching.restore(plain["fetching"])

    # ---- what the tiers tell ----

    def saved(self, number: int, keys: Sequence[PageKey], now: float) -> None:
        """A save is over."""
        self.kept(self.saving.done(number, keys), now)

    def found(self, era: int, keys: Sequence[PageKey], now: float) -> None:
        """A tier had these from before the start."""
        if era == self.era:
            self.kept(keys, now)

    def kept(self, keys: Sequence[PageKey], now: float) -> None:
        """A tier has these now."""
        if keys:
            self.journal.tiers("kept", 0, 0, keys, now)
            self.index.kept(keys)

    def dropped(self, keys: Sequence[PageKey], now: float) -> None:
        """No tier has these any more."""
        self.journal.tiers("dropped", 0, 0, keys, now)
        self.index.dropped(keys)

    def told(self, record: TierTold) -> None:
        keys = split_keys(record.keys)
        match record.kind:
            case "kept":
                self.kept(keys, record.time)
            case "dropped":
                self.dropped(keys, record.time)
            case "filled":
                self.fetching.filled(record.ticket, record.count, record.time)
            case "fenced":
                self.fetching.fenced(record.ticket, record.time)
            case "expired":
                self.fetching.expired(record.ticket, record.time)

    # ---- for people and tests ----

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what is under way now."""
        return {
            "known_pages": len(self.index),
            "saving_pages": self.saving.num_under_way,
            **{f"pages_{name}": count for name, count in msgspec.to_builtins(self.saving.counts).items()},
            **self.fetching.statistics(),
        }

    def check(self) -> None:
        self.fetching.check()
        self.saving.check()
        keys = [key for _, key in self.device.items()]
        if len(set(keys)) != len(keys):
            raise AssertionError("two pages of the cache, which stand in different places, have one key")
