"""Which replicas there are, and what each does of a request."""

from __future__ import annotations

from pawl.actors.names import DECODE, PREFILL, UNIFIED
from pawl.config import ConfigError, ServerConfig

HAND_OVER_GB = 0.25
"""Host memory of a replica for pages that travel, unless the settings name some."""


def roles_of(config: ServerConfig) -> tuple[str, ...]:
    """Of all replicas, those that take requests first. Raises ConfigError."""
    if config.disaggregate is None:
        return (UNIFIED,) * config.dp
    if config.dp > 1:
        raise ConfigError(f"disaggregate: {config.disaggregate} says how many replicas there are; dp as well", "dp")
    prefill, _, decode = config.disaggregate[:-1].partition("p")
    return (DECODE,) * int(decode) + (PREFILL,) * int(prefill)
