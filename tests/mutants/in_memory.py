"""Defects of memory: pages, slots, rows, promises and holds."""

from __future__ import annotations

from pawl.actors.storage import Storage
from pawl.build.wiring import stop_order
from pawl.loops.admission import Admission
from pawl.loops.fetching import Fetching
from pawl.loops.queues import Queues
from pawl.loops.recovery import lose_runner
from pawl.loops.saving import Saving
from pawl.memory import moves
from pawl.memory.escrow import Escrow
from pawl.memory.memory import Memory
from pawl.memory.page_pool import PagePool
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.slot_pool import SlotPool
from pawl.memory.tiers.keys import root_key
from pawl.memory.undo import Undo
from pawl.memory.window_pool import WindowPool
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.MEMORY, broken, resembles, what, edits)


MEMORY = (
    _mutant(
        "freed_before_the_fence",
        "no_reuse_before_fence",
        "24527, 18744",
        "A request that ends gives its pages back at once, while a step in flight still writes to them.",
        Edit(Memory.release, "fence = self.ledger.fence", "fence = self.ledger.resolved"),
    ),
    _mutant(
        "evicted_before_the_fence",
        "no_reuse_before_fence",
        "27108",
        "An evicted page is free at once, although a step in flight may still read it.",
        Edit(RadixCache._evict, "else NO_PAGES, fence)", "else NO_PAGES, 0)"),
    ),
    _mutant(
        "window_page_of_who_leaves_is_free_at_once",
        "no_reuse_before_fence",
        "",
        "A request that ends gives its window pages back at once, while a step in flight still reads them.",
        Edit(WindowPool.leave, "kept[::-1], fence)", "kept[::-1], 0)"),
    ),
    _mutant(
        "shared_page_not_counted",
        "single_owner",
        "17797",
        "A row that starts with cached pages is not counted as one of their users.",
        Edit(moves.share, "refcount[index] += ONE", "refcount[index] += 0"),
    ),
    _mutant(
        "freed_while_the_cache_has_it",
        "single_owner",
        "28702",
        "The last row that uses a cached page frees it, although the cache still offers it.",
        Edit(PagePool.release, "gone = pages[left == 0]", "gone = pages[left <= 1]"),
    ),
    _mutant(
        "held_node_may_leave",
        "hold_accounting",
        "24153",
        "A node of the prefix tree that a running request holds stays among those that may be evicted.",
        Edit(RadixCache.pin, "self._order.remove(above)", "pass"),
    ),
    _mutant(
        "hold_leaks_at_insertion",
        "hold_accounting",
        "12107",
        "When a prompt's next chunk is cached, the hold on the chunks before it is never released.",
        Edit(RadixCache.insert, "self._let_go(before, fence)", "pass"),
    ),
    _mutant(
        "worker_not_told_of_replaced_pages",
        "read_after_commit",
        "30233",
        "Two requests computed the same prefix; one moves to the other's pages, but the worker's page table is not "
        "changed, and its old pages are given away.",
        Edit(
            Memory._deduplicate,
            "self.replaced.append(self.page_table.replace(slot, indices, theirs))",
            "self.page_table.replace(slot, indices, theirs)",
        ),
    ),
    _mutant(
        "unwritten_page_is_offered",
        "read_after_commit",
        "30986",
        "A request that leaves offers its last page to others before its last token's keys and values are written.",
        Edit(Queues.keep_prefix, "table.num_tokens[row] - 1 if", "table.num_tokens[row] if"),
    ),
    _mutant(
        "window_page_leaves_early",
        "read_after_commit",
        "31616",
        "A window slides one page too far, so that the next query misses keys that it should see.",
        Edit(WindowPool.first_read, "- self.behind", "- self.behind + 1"),
    ),
    _mutant(
        "failed_admission_keeps_its_slot",
        "allocation_is_a_transaction",
        "34676",
        "A request that turns out not to fit keeps the slot and the holds that it has taken so far.",
        Edit(
            Admission.admit,
            "if not outcome:\n            builder.transaction.rollback(savepoint)",
            "if not outcome:",
        ),
    ),
    _mutant(
        "rollback_forgets_the_row",
        "allocation_is_a_transaction",
        "26265",
        "A rolled back step leaves the page-table entries and the length that it has added to a row.",
        Edit(Undo.extend, "self._table.cut(slots, num_pages, lengths)", "pass"),
    ),
    _mutant(
        "promise_spent_twice",
        "auxiliary_conservation",
        "17483",
        "A page that was promised is counted off the promises twice when it is taken.",
        Edit(Escrow.spend, "self.total -= int(counts.sum())", "self.total -= 2 * int(counts.sum())"),
    ),
    _mutant(
        "promised_to_everybody",
        "allocation_is_a_transaction",
        "7328",
        "A request is admitted without asking whether the pages that it needs are promised to others.",
        Edit(Memory.promise, "if need > self.unpromised or", "if need > self.pages.total or"),
    ),
    _mutant(
        "retraction_keeps_the_slot",
        "conservation",
        "6888",
        "A retracted request goes back to the queue, but its slot and its pages stay taken.",
        Edit(Queues.retract, "self.memory.release(int(table.slot[row]))", "pass"),
    ),
    _mutant(
        "salt_is_ignored",
        "namespace_isolation",
        "24568",
        "The prefix tree has one root for all namespaces: requests with another salt find the pages.",
        Edit(RadixCache.match_and_hold, "self._roots.get(namespace)", 'self._roots.get("")'),
        Edit(RadixCache.insert, "root = self._roots.get(namespace)", 'root = self._roots.get("")'),
        Edit(
            RadixCache.insert,
            "root = self._roots[namespace] = Root(namespace)",
            'root = self._roots[""] = Root("")',
        ),
    ),
    _mutant(
        "salt_is_ignored_below_the_device",
        "auxiliary_conservation",
        "24568",
        "Pages of host memory and files are found by their tokens alone, whatever the salt.",
        Edit(root_key, "(layout.encode(), namespace.encode())", '(layout.encode(), b"")'),
    ),
    _mutant(
        "keys_of_the_weights_before",
        "read_after_commit",
        "",
        "Who waits while the weights are exchanged fetches what the old ones computed, and reads it as if of the new.",
        Edit(Fetching.lost, "self._wishes.clear()", "pass"),
    ),
    _mutant(
        "dropped_pages_are_believed_in",
        "observability_conservation",
        "",
        "Pages have left host memory, and the scheduler is not told: it still believes that they are there.",
        Edit(Storage._tell_dropped, "if dropped:", "if False:"),
    ),
    _mutant(
        "cache_survives_the_worker",
        "read_after_commit",
        "23392",
        "After a lost step the worker has forgotten every page, but the prefix cache still offers them.",
        Edit(lose_runner, "lose_pages(loop, now)", "[companion.lost(now) for companion in loop.companions]"),
    ),
    _mutant(
        "slot_is_free_twice",
        "auxiliary_conservation",
        "30053",
        "A slot comes free at once, and again when the step in flight is done: two requests get it.",
        Edit(SlotPool.release, "self.deferred += 1", "self.deferred += 1; self._free.append(slot)"),
    ),
    _mutant(
        "trace_ends_before_its_tellers",
        "auxiliary_conservation",
        "",
        "Actors stop in the wrong order: the recorder has gone when the gateway tells it of its last replies.",
        Edit(stop_order, "for spec in specs", "for spec in reversed(specs)"),
    ),
    _mutant(
        "saves_under_way_have_no_limit",
        "auxiliary_conservation",
        "",
        "Pages on their way down are not counted when more are sent: copies take any amount of memory.",
        Edit(Saving.flush, "max(self.limit - len(self._sent), 0)", "self.limit"),
    ),
)
