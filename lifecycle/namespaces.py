"""The parts of a namespace that say what computes: weights and adapter (`pawl.memory.prefix.namespace` makes it)."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote, unquote

_NAME, _SALT = "weights=", "salt="
_ADAPTER = re.compile(r"(?:^|&)adapter=(\d{1,9})(?=[.&]|$)", re.ASCII)


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


def salt_of(namespace: str) -> str:
    """The salt in a namespace, as the client gave it; "" where it names none."""
    salt = next((part[len(_SALT) :] for part in namespace.split("&") if part.startswith(_SALT)), "")
    return unquote(salt, errors="surrogatepass")


def adapter_part(number: int, fingerprint: str) -> str:
    """What a namespace says of an adapter. Of its content as well: pages may outlive the engine, whose numbers come
    again in the next."""
    return f"{number}.{fingerprint}"


@lru_cache(maxsize=1024)
def adapter_of(namespace: str) -> int:
    """The number of the adapter in a namespace; 0 where it names none."""
    found = _ADAPTER.search(namespace)
    return int(found[1]) if found is not None else 0
