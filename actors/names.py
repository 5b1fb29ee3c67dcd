"""Names under which the actors of one replica reach each other."""

from __future__ import annotations

import msgspec


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """Who is called what. Given to every actor that sends, so that two replicas can live in one system."""

    gateway: str = "gateway"
    tokenizer: str = "tokenizer"
    scheduler: str = "scheduler"
    grammar: str = "grammar"
    worker: str = "worker"
    stager: str = "stager"
    groups: str = "groups"
    storage: str = "storage"
    detokenizer: str = "detokenizer"
    watchdog: str = "watchdog"
    recorder: str = "recorder"


NAMES = Names()
"""Of the only replica."""
