"""Orders about adapters: two ask for something, the rest tell how far a reading has come."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pawl.loops.adapters import NOT_ENABLED
from pawl.loops.intake import LATER, Intake, Order, Outcome

AdapterName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_NAMES = {"name": "lora_name", "path": "lora_path"}


class LoadAdapter(Order, frozen=True, kw_only=True, tag="load_adapter", rename=_NAMES):
    """Read an adapter (LoRA) from a folder as PEFT writes it, so that requests may name it. A name that was unloaded
    and is loaded again is another adapter: it shares no page of the cache with the one before."""

    name: Annotated[AdapterName, msgspec.Meta(description="what requests call it")]
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, description="its folder")]
    pinned: Annotated[bool, msgspec.Meta(description="it never leaves its slot for another")] = False

    @property
    def numbered(self) -> int | None:
        """Its number, which no adapter had before; None: the next one."""
        return None

    def apply(self, intake: Intake, now: float) -> Outcome:
        adapters = intake.adapters
        if adapters is None:
            return Outcome(False, NOT_ENABLED)
        why_not = adapters.load(self.name, self.path, self.pinned, intake.number, now, self.numbered)
        return Outcome(False, why_not, intake.adapter_facts) if why_not else LATER


class LoadNumberedAdapter(LoadAdapter, frozen=True, kw_only=True, tag="load_numbered_adapter", rename=_NAMES):
    """The same where several replicas must call it by one number."""

    number: int

    @property
    def numbered(self) -> int | None:
        return self.number


class UnloadAdapter(Order, frozen=True, tag="unload_adapter", rename=_NAMES):
    """Let no request name an adapter any more, and drop it when the last one that has named it has ended, which is when
    the reply comes."""

    name: Annotated[AdapterName, msgspec.Meta(description="what requests call it")]

    def apply(self, intake: Intake, now: float) -> Outcome:
        adapters = intake.adapters
        if adapters is None:
            return Outcome(False, NOT_ENABLED)
        why_not = adapters.unload(self.name, intake.number, now)
        return Outcome(False, why_not, intake.adapter_facts) if why_not else LATER


class AdapterLoaded(Order, frozen=True, tag="adapter_loaded"):
    """The reading with this ticket is done: the adapter is in its slot."""

    ticket: int
    fingerprint: str

    def apply(self, intake: Intake, now: float) -> None:
        if intake.adapters is not None:
            intake.adapters.loaded(self.ticket, self.fingerprint, now)


class AdapterFailed(Order, frozen=True, tag="adapter_failed"):
    """The reading with this ticket has failed: nothing is in the slot."""

    ticket: int
    message: str

    def apply(self, intake: Intake, now: float) -> None:
        if intake.adapters is not None:
            intake.adapters.refused(self.ticket, self.message, now)
