"""Which replicas there are at the start, for how many there is room, what each does of a request, and with how many
ranks."""

from __future__ import annotations

import os

from pawl import DISTRIBUTION
from pawl.actors.names import DECODE, PREFILL, UNIFIED
from pawl.build.nixl_pages import installed
from pawl.config import ConfigError, ServerConfig

HAND_OVER_GB = 0.25
"""Host memory of a replica for pages that travel, unless the settings name some."""
TP_OF = {PREFILL: "prefill_tp", DECODE: "decode_tp"}
"""Role -> the setting of its ranks."""


def roles_of(config: ServerConfig) -> tuple[str, ...]:
    """Of all replicas at the start, those that take requests first. Raises ConfigError."""
    _check_transport(config)
    if config.disaggregate is None:
        for name in TP_OF.values():
            if getattr(config, name) is not None:
                raise ConfigError(f"{name}: prefill and decode are not apart: say --tp, or --disaggregate too", name)
        return (UNIFIED,) * config.dp
    if config.dp > 1:
        raise ConfigError(f"disaggregate: {config.disaggregate} says how many replicas there are; dp as well", "dp")
    prefill, _, decode = config.disaggregate[:-1].partition("p")
    return (DECODE,) * int(decode) + (PREFILL,) * int(prefill)


def _check_transport(config: ServerConfig) -> None:
    """Raises ConfigError where pages cannot travel as is wanted."""
    transport, field = config.page_transport, "page_transport"
    if transport == "auto":
        return
    if config.disaggregate is None or not config.in_processes:
        needs = "--disaggregate, with --runtime processes"
        raise ConfigError(f"{field}: pages are handed over between processes only: {transport} needs {needs}", field)
    if transport == "nixl" and not installed():
        raise ConfigError(f"{field}: nixl is not installed: pip install '{DISTRIBUTION}[nixl]'", field)
    if transport == "nixl" and (config.nodes > 1 or config.ray is not None) and "UCX_NET_DEVICES" not in os.environ:
        why = "it listens where UCX_NET_DEVICES says and asks nobody for keys; say which devices reach the other hosts"
        raise ConfigError(f"{field}: nixl with nodes: {why}", field)


def arithmetic_of(config: ServerConfig, role: str) -> dict[str, object]:
    """Settings of a replica of this role, by which it computes the bits of the others: its ranks, and, of weights that
    others have to dequantise for theirs, the same. Raises ConfigError where other numbers of ranks have other bits."""
    if role not in TP_OF:
        return {}
    sizes = {each: num_ranks(config, each) for each in TP_OF}
    alike = len(set(sizes.values())) == 1
    where = "in plain torch" if config.device == "cpu" else f"with {config.device}"
    if not alike and (config.device != "cpu" or config.backend == "torch"):
        raise ConfigError(
            f"prefill_tp: {sizes[PREFILL]} to prefill and {sizes[DECODE]} to decode: {where} sums depend on the number "
            "of ranks; only the compiled CPU kernels have the same bits with any",
            "prefill_tp",
        )
    own: dict[str, object] = {"tp": sizes[role]}
    if not alike and config.model != "ghost" and (config.weights, config.dtype) == ("auto", "auto"):
        own["dtype"] = "bf16"
    return own


def num_ranks(config: ServerConfig, role: str) -> int:
    """That share out the heads of a replica of this role."""
    return (getattr(config, TP_OF[role]) if role in TP_OF else None) or config.tp


def as_set(error: ConfigError, config: ServerConfig, role: str) -> ConfigError:
    """What a replica of this role refuses, under the name of the setting that the user has given."""
    name = TP_OF.get(role, "tp")
    if error.field != "tp" or getattr(config, name) is None:
        return error
    return ConfigError(f"{name}:{str(error).removeprefix('tp:')}", name)


def num_places(config: ServerConfig) -> int:
    """Replicas that there may be at a time; each has a place, from 0. Raises ConfigError."""
    count, most = len(roles_of(config)), config.max_dp
    if most is None:
        return count
    if config.disaggregate is not None:
        raise ConfigError(f"max_dp: {config.disaggregate} says how many replicas there are", "max_dp")
    if most < count:
        raise ConfigError(f"max_dp: at least dp, which is {count}, not {most}", "max_dp")
    return most
