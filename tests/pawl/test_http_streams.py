"""The asyncio side of the gateway: what its reader is told, whatever fails on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from pawl.actors.gateway import Gateway
from pawl.actors.messages.generate import Output, Refused, Submit
from pawl.actors.sink import Inbox
from pawl.http.streams import RequestGroup
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause

SUBMIT = Submit(request=0, rid="x", sampling=SamplingParameters())
FAILED = Refused(1, Cause.INTERNAL, "the server failed on this request", 500)


class Numbering:
    """A gateway that gives numbers, and nothing else."""

    def submit(self, submits: Sequence[Submit], sinks: Sequence[Any]) -> tuple[int, ...]:
        return tuple(range(1, len(submits) + 1))


def test_a_reader_that_could_not_be_told_of_a_token_is_told_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        group = RequestGroup(cast(Gateway, Numbering()), [SUBMIT], whole=False)
        (inbox,) = group.inboxes
        reader = asyncio.ensure_future(group.arrivals())
        await asyncio.sleep(0)
        with monkeypatch.context() as patched:
            patched.setattr(group, "mark", {}.__getitem__)
            with pytest.raises(KeyError):
                Inbox.push(inbox, Output(1, "said", (5,)))
        inbox.refused(FAILED)
        ((index, delta),) = await asyncio.wait_for(reader, 60.0)
        assert (index, delta.text, delta.refusal) == (0, "said", FAILED)

    asyncio.run(run())


class Loading(Numbering):
    """One whose adapter is another one each time that it is loaded again."""

    def __init__(self) -> None:
        self.number = 1
        self.unloaded: dict[str, Any] = {}

    @property
    def adapters(self) -> dict[str, Any]:
        return {"a": SimpleNamespace(number=self.number)}

    def incarnation(self, adapter: str) -> int:
        return self.number


def test_who_was_made_again_for_its_adapter_and_is_refused_for_something_else_is_told() -> None:
    async def run() -> None:
        gateway, times = Loading(), list[int]()

        async def again(submits: Sequence[Submit]) -> Sequence[Submit]:
            times.append(len(submits))
            return submits

        submit = msgspec.structs.replace(SUBMIT, adapter="a")
        group = RequestGroup(cast(Gateway, gateway), [submit], whole=True, again=again)
        refused = Refused(1, Cause.INVALID, "not so", 400)
        reader = asyncio.ensure_future(group.arrivals())
        gateway.number = 2  # it came too late for the one that it was sent with
        group.inboxes[0].refused(refused)
        while not times:
            await asyncio.sleep(0)
        group.inboxes[0].refused(refused)
        ((index, delta),) = await asyncio.wait_for(reader, 60.0)
        assert (index, delta.refusal, times) == (0, refused, [1])

    asyncio.run(run())
