"""Fields by which a prefill server and a decode server find each other, as SGLang's router has them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

Host = Annotated[str, Meta(max_length=1024)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Room = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Hosts: TypeAlias = Host | Annotated[list[Host | None], Meta(max_length=10_000)] | None
Ports: TypeAlias = Port | Annotated[list[Port | None], Meta(max_length=10_000)] | None
Rooms: TypeAlias = Room | Annotated[list[Room | None], Meta(max_length=10_000)] | None


class Paired(msgspec.Struct, kw_only=True):
    """Of one request: one for all prompts, or one for each."""

    bootstrap_host: Hosts = None
    bootstrap_port: Ports = None
    bootstrap_room: Rooms = None


class PairedBody(msgspec.Struct, kw_only=True):
    """Any request of a router for a prefill server: what else it asks for is the decode side's."""

    bootstrap_room: Rooms = None
    """One for each prompt."""
