"""Outputs of equal requests: where tokens depend on nothing but the request, one must be how the other begins."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, TypeAlias

import msgspec

from pawl.lifecycle.records import Int32s, Submitted, int32s
from pawl.lifecycle.request import SamplingParameters

Key: TypeAlias = bytes
"""Digest of all that decides what a request gets: its namespace, its prompt, and how its tokens are drawn."""


class Fate(NamedTuple):
    """What a request went through that must not show in its output."""

    retracted: bool
    warm: bool
    """It began with pages of the cache."""
    batched: bool
    """It was in a step with others."""


class Seen(NamedTuple):
    """The output of a request that has ended."""

    request: int
    tokens: Int32s
    fate: Fate


class Unequal(NamedTuple):
    """Two requests that are equal in all that matters, with outputs of which neither is how the other begins."""

    old: Seen
    new: Seen


class Equals:
    """The longest output so far of each kind of request."""

    def __init__(self) -> None:
        self._seen: dict[Key, Seen] = {}

    def ended(self, submitted: Submitted, new: Seen) -> Unequal | None:
        """Whether the output of this request is another than that of its equals."""
        key = _key(submitted)
        old = self._seen.get(key)
        if old is None:
            self._seen[key] = new
            return None
        common = min(len(old.tokens), len(new.tokens))
        if old.tokens[:common].tobytes() != new.tokens[:common].tobytes():
            return Unequal(old, new)
        if len(new.tokens) > len(old.tokens):
            self._seen[key] = new
        return None


def _key(submitted: Submitted) -> Key:
    return hashlib.sha256(_law_of_draws(submitted) + int32s(submitted.tokens).tobytes()).digest()


_PLACES = {name: place for place, name in enumerate(SamplingParameters.__struct_fields__)}
_DRAWS_NOTHING = ("max_new_tokens", "eos_token_ids", "top_logprobs", "token_ids_logprob", "prompt_logprobs", "embed")


def _law_of_draws(submitted: Submitted) -> bytes:
    """All but the prompt that decides how its tokens are drawn, as bytes; not how many they are."""
    sampling = submitted.sampling
    values = list(msgspec.structs.astuple(sampling))
    for name in _DRAWS_NOTHING:
        values[_PLACES[name]] = None
    if not sampling.min_new_tokens:
        values[_PLACES["stop_token_ids"]] = None
    if sampling.greedy:
        values[_PLACES["seed"]] = None
    return msgspec.msgpack.encode((submitted.namespace, values))
