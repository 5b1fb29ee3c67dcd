"""The asyncio side of the gateway: waiting for outputs, noticing clients that have gone, awaiting answers to asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from starlette.types import Receive

from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Submit
from pawl.actors.sink import Delta, Inbox
from pawl.http.errors import Problem
from pawl.lifecycle.states import Cause

Again: TypeAlias = Callable[[Sequence[Submit]], Awaitable[Sequence[Submit]]]
"""Gives requests once the adapters that they name are loaded again. Raises Problem."""
MOST_AGAIN = 32
"""How often a call is made again whose adapters were unloaded before it came to the scheduler."""

TAKEN = "an adapter was unloaded: others have taken its place; try again later"


class _Slot(Inbox):
    """One request of a group; wakes the group's reader once, however many outputs wait."""

    def __init__(self, group: RequestGroup, index: int, whole: bool) -> None:
        super().__init__(whole)
        self._group = group
        self._index = index
        self._dirty = False

    def ready(self) -> None:
        if not self._dirty:
            # In this order: if it fails, what comes next, be it the end, wakes the reader again.
            self._group.mark(self._index)
            self._dirty = True

    def take(self) -> Delta | None:
        self._dirty = False
        return super().take()


class RequestGroup:
    """The requests of one HTTP call, with one reader. All of it runs in the event loop's thread.

    With `whole` the reader is woken only by ends, not by every token. An adapter may have been unloaded, or be while a
    request that names it is on its way: with `again` such a request is made once more, when all others of the group
    have ended, and its reader hears nothing of it.
    """

    def __init__(self, gateway: Gateway, submits: Sequence[Submit], whole: bool, again: Again | None = None) -> None:
        self._gateway = gateway
        self._whole = whole
        self._again = again
        self._times_again = 0
        self._late: list[int] = []
        """Requests that came too late for their adapters."""
        self._dirty: list[int] = []
        self._waiter: asyncio.Future[None] | None = None
        self.gone = False
        """Whether the client went away."""
        self.submit(submits)

    def submit(self, submits: Sequence[Submit]) -> None:
        """Wait for these requests from now on; those before them have ended, and everything of them was taken."""
        self._submits = submits
        self.inboxes = [_Slot(self, index, self._whole) for index in range(len(submits))]
        self._incarnations = [self._incarnation(submit) for submit in submits]
        self.requests = self._gateway.submit(submits, self.inboxes)

    def _incarnation(self, submit: Submit) -> int:
        """The number of the adapter that a request names and is sent with; 0: it names none."""
        return self._gateway.incarnation(submit.adapter) if submit.adapter else 0

    def _is_late(self, index: int, delta: Delta) -> bool:
        """Whether this request was refused because its adapter had been unloaded meanwhile."""
        submit, refused = self._submits[index], delta.refusal or delta.done
        if not submit.adapter or refused is None or refused.cause is not Cause.INVALID:
            return False
        now = self._gateway.adapters.get(submit.adapter)
        return submit.adapter in self._gateway.unloaded if now is None else now.number != self._incarnations[index]

    async def _submit_again(self, again: Again) -> None:
        late, self._late = self._late, []
        self._times_again += 1
        if self._times_again > MOST_AGAIN:
            raise Problem(503, TAKEN)
        submits = await again([self._submits[index] for index in late])
        if self.gone:
            return
        slots, requests = [_Slot(self, index, self._whole) for index in late], list(self.requests)
        for index, slot in zip(late, slots, strict=True):
            self.inboxes[index], self._incarnations[index] = slot, self._incarnation(self._submits[index])
        for index, request in zip(late, self._gateway.submit(submits, slots), strict=True):
            requests[index] = request
        self.requests = tuple(requests)

    def mark(self, index: int) -> None:
        """There is something to take from inbox `index`."""
        self._dirty.append(index)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def arrivals(self, patience_s: float | None = None) -> list[tuple[int, Delta]]:
        """What is new, one merged delta for each request that has something; waits for it. Empty when the client
        has gone or nothing came within `patience_s`."""
        if not self._dirty and not self.gone:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(patience_s, self._wake) if patience_s is not None else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        if self.gone:
            return []
        dirty, self._dirty = self._dirty, []
        taken = [(index, self.inboxes[index].take()) for index in dirty]
        arrived = [(index, delta) for index, delta in taken if delta is not None]
        return arrived if self._again is None else await self._in_time(arrived, self._again, patience_s)

    async def _in_time(
        self, arrived: list[tuple[int, Delta]], again: Again, patience_s: float | None
    ) -> list[tuple[int, Delta]]:
        """What arrived of requests that found their adapters; the others are made again once there is time for it."""
        late = {index for index, delta in arrived if self._is_late(index, delta)}
        self._late += sorted(late)
        told = [(index, delta) for index, delta in arrived if index not in late]
        if not self._late or self.open:
            return told
        await self._submit_again(again)
        return told or await self.arrivals(patience_s)

    @property
    def open(self) -> tuple[int, ...]:
        """Requests that have not ended."""
        return tuple(number for number, inbox in zip(self.requests, self.inboxes, strict=True) if not inbox.final)

    def abandon(self) -> None:
        """The client has gone: what still runs for it is aborted."""
        self.gone = True
        self._gateway.abort(self.open, Cause.DISCONNECT)
        self._wake()

    def abort(self, cause: Cause, message: str) -> None:
        """End what still runs; its outputs are of no interest any more."""
        self._gateway.abort(self.open, cause, message)


async def watch(receive: Receive, gone: Callable[[], None]) -> None:
    """Call `gone` when the client hangs up. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    gone()


async def ask(put: Callable[[Callable[[Reply], None]], object]) -> Reply:
    """Await the answer of a control message: `await ask(lambda answer: row.put(gateway, body, answer))`."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def answer(reply: Reply) -> None:
        if not future.done():
            future.set_result(reply)

    put(answer)
    return await future
