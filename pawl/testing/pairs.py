"""What prefill and decode replicas know of each other's work, at a moment when nothing is on its way between any two
actors: then a prefill that is waited for is at work, and one that is at work is waited for; and two that have lost each
other are to be linked again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pawl.actors.messages.links import LinkAgain
from pawl.actors.names import DECODE, PREFILL, ROUTER
from pawl.testing.expectations import PropertyFailed

if TYPE_CHECKING:
    from pawl.testing.cluster import Cluster
    from pawl.testing.replica import SimulatedReplica


def check_pairs(replicas: Iterable[SimulatedReplica]) -> None:
    """Both sides speak of the same prefills. Raises PropertyFailed."""
    there = [replica for replica in replicas if not replica.lost]
    waited = {each for replica in there if replica.names.role == DECODE for each in _waited_for(replica)}
    sent = {each for replica in there if replica.names.role == PREFILL for each in _sent_by(replica)}
    for desk, scheduler, ticket in sorted(waited - sent):
        text = f"{scheduler} waits for prefill {ticket}, and {desk} sends nothing more for it"
        raise PropertyFailed("bounded_progress", text)
    for desk, scheduler, ticket in sorted(sent - waited):
        raise PropertyFailed("abort_is_total", f"{desk} goes on with prefill {ticket}, and {scheduler} does not wait")


def _waited_for(replica: SimulatedReplica) -> set[tuple[str, str, int]]:
    """(desk that was asked, scheduler, ticket) of what a decode replica waits for."""
    client: Any = replica.scheduler.tier_client
    begun = [(each.prefiller, ticket) for ticket, each in client._remote._prefills.items()]
    return {(client._desks[number], replica.names.scheduler, ticket) for number, ticket in begun if number is not None}


def _sent_by(replica: SimulatedReplica) -> set[tuple[str, str, int]]:
    """The same of what a prefill replica computes, or has computed and not sent to its end."""
    names, table = replica.names, replica.scheduler.loop.table
    desk, storage = replica.actors[names.detokenizer], replica.actors[names.storage]
    asked = set(desk._jobs.values())
    for request in {table.info(row).request for row in table.live_rows().tolist()} - asked:
        raise PropertyFailed("abort_is_total", f"{names.scheduler} goes on, and nobody asks for it", request)
    schedulers = {storage: scheduler for scheduler, storage in desk._storages.items()}
    under_way = [(schedulers.get(job.storage, job.storage), job.ticket) for job in storage.outgoing._jobs.values()]
    return {(names.detokenizer, *each) for each in (*desk._jobs, *under_way)}


def unlinked(run: Cluster) -> Iterator[str]:
    """Pairs of replicas that have no link, and that nobody tries to link again, in words."""
    links = None if run.router is None else run.router.fleet.prefillers._links
    timed = [each for driver in run.system.drivers if driver.cell.name == ROUTER for each in driver.cell.timed()]
    again = {each.attempt for each in timed if isinstance(each, LinkAgain)}
    for (prefiller, decoder), link in () if links is None else links._links.items():
        if not link.up and link.attempt not in again:
            yield f"replicas {prefiller} and {decoder} have lost each other, and nobody links them again"
