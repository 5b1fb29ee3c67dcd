"""The asyncio side of the gateway: waiting for outputs, noticing clients that have gone, awaiting answers to asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.types import Receive

from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Submit
from pawl.actors.sink import Delta, Inbox
from pawl.lifecycle.states import Cause


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

    With `whole` the reader is woken only by ends, not by every token.
    """

    def __init__(self, gateway: Gateway, submits: Sequence[Submit], whole: bool) -> None:
        self._gateway = gateway
        self._whole = whole
        self._dirty: list[int] = []
        self._waiter: asyncio.Future[None] | None = None
        self.gone = False
        """Whether the client went away."""
        self.submit(submits)

    def submit(self, submits: Sequence[Submit]) -> None:
        """Wait for these requests from now on; those before them have ended, and everything of them was taken."""
        self.inboxes = [_Slot(self, index, self._whole) for index in range(len(submits))]
        self.requests = self._gateway.submit(submits, self.inboxes)

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
        return [(index, delta) for index, delta in taken if delta is not None]

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
