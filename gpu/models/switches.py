"""What a decoder may have beside its sizes, in one table, and which backend knows how to compute it.

A backend says in `switches` which rows of the table it knows. It asks `check_switches` before it takes any weight, so
that a model it cannot compute goes to plain torch (`--backend auto`) or is refused by the name of what is missing.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.models.config import ModelConfig, Operation

SWITCHES = {
    "local_rope": "a second rotary embedding in windowed layers",
    "activation": "the tanh form of GELU in the MLP",
    "qkv_bias": "biases of queries, keys and values",
    "qk_norm": "norms of every query and key head",
    "sandwich_norms": "norms after attention and after the MLP",
    "tied_embeddings": "a head that is the embedding table",
    "embedding_scale": "a factor of the embeddings",
    "experts": "layers of experts",
}
"""Field of ModelConfig -> what it switches on, in words. Off is the field's default."""


def used_switches(config: ModelConfig) -> list[str]:
    """The switches of `SWITCHES` that are on."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(ModelConfig)}
    return [name for name in SWITCHES if getattr(config, name) != defaults[name]]


def check_switches(
    backend: str, config: ModelConfig, known: Set[str], operation: type[Operation] | None = None
) -> None:
    """Raises BackendUnavailable with the first thing that the model needs and the backend does not know: a switch that
    is not `known`, or an operation that is not `operation`."""
    for name in used_switches(config):
        if name not in known:
            raise BackendUnavailable(backend, f"it does not know {SWITCHES[name]} ({name})")
    needed = config.operation
    if needed is not None and type(needed) is not operation:
        raise BackendUnavailable(backend, f"it does not know {needed.what} ({config.architecture})")
