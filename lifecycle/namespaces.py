"""The part of a namespace that says which weights compute (`pawl.memory.prefix.namespace` makes it)."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

_NAME = "weights="


def under(namespace: str, weights: str) -> str:
    """The namespace of the same request when other weights compute it."""
    others = [part for part in namespace.split("&") if part and not part.startswith(_NAME)]
    return "&".join([*others, _NAME + quoted(weights)] if weights else others)


@lru_cache(maxsize=16)
def quoted(weights: str) -> str:
    """As a namespace has it."""
    return quote(weights, safe="", errors="surrogatepass")


@lru_cache(maxsize=1024)
def weights_of(namespace: str) -> str:
    """The weights in a namespace, quoted; "" where it names none."""
    return next((part[len(_NAME) :] for part in namespace.split("&") if part.startswith(_NAME)), "")
