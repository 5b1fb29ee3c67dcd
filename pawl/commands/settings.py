"""What several commands share: from parsed arguments to a configuration, logs and an engine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pawl.commands.failures import UsageError
from pawl.config import ServerConfig
from pawl.flags import config_from

if TYPE_CHECKING:
    from pawl.engine import Engine

SERVER_ONLY = frozenset({"host", "port", "api_key", "admin_api_key", "max_body_mb", "served_model_name"})
"""Settings without meaning where no port is opened."""
MODEL = frozenset({"model", "dtype", "device", "backend", "deterministic", "context_length", "threads"})
SHOWN_ALONE = MODEL | {"kv_tokens", "kv_memory_gb", "seed"}
"""Settings that matter to a few prompts; `--help` leaves the others to `--help-all`."""
SHOWN_FOR_LOAD = SHOWN_ALONE | {
    *("max_running", "prefill_chunk", "pacing", "mixed", "policy", "page_size", "memory_share", "cache", "eviction"),
    *("cache_core", "hybrid_pools", "host_cache_gb", "trace"),
}
"""Settings that show when many prompts are answered."""
SHOWN_OF_A_MACHINE = MODEL | {"host", "port", "kv_tokens", "kv_memory_gb", "memory_share", "storage_dir", "trace_dir"}
"""Settings that may fail on one machine and not on another."""


def prepared(arguments: argparse.Namespace, *, quiet: bool = False) -> ServerConfig:
    """The configuration of this command line, with logs set up to it.

    `quiet` raises the level to warnings where the user chose none: for commands whose output is for reading.
    """
    from pawl.logs import configure_logs

    config = config_from(arguments)
    level = "warning" if quiet and not hasattr(arguments, "log_level") else config.log_level
    configure_logs(config.log_format, level)
    return config


@contextmanager
def running_engine(config: ServerConfig) -> Iterator[Engine]:
    """An engine inside this process, loaded and started; stopped at the end of the block."""
    from pawl.logs import share_done

    with share_done(f"loading {config.model}") as report:
        from pawl.engine import Engine

        engine = Engine(config, report=report)
    with engine:
        yield engine


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for how tokens are drawn. Flags not given leave no value behind: the engine's defaults hold."""
    section = parser.add_argument_group("sampling", "how the next token is drawn")

    def add(flag: str, kind: type, text: str) -> None:
        name = flag.lstrip("-").replace("-", "_")
        metavar = "N" if kind is int else "X"
        section.add_argument(
            flag, type=kind, dest=f"sampling_{name}", metavar=metavar, default=argparse.SUPPRESS, help=text
        )

    add("--max-new-tokens", int, "output tokens at the most (default: 128)")
    add("--min-new-tokens", int, "no end before this many output tokens")
    add("--temperature", float, "0 takes the likeliest token (default: 1.0)")
    add("--top-k", int, "draw from the N likeliest")
    add("--top-p", float, "draw from the likeliest that make up this probability")
    add("--min-p", float, "leave out what is less likely than this share of the likeliest")
    add("--repetition-penalty", float, "above 1: tokens already seen become less likely")
    add("--presence-penalty", float, "subtracted once for a token already produced")
    add("--frequency-penalty", float, "subtracted for each time a token was produced")
    section.add_argument(
        "--sampling-seed", type=int, metavar="N", default=argparse.SUPPRESS, help="the same seed draws the same tokens"
    )
    section.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end at this text; may be repeated"
    )


def sampling_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingParameters that were given; 128 new tokens where nothing was said. Raises UsageError: what no
    model can do is said before one is loaded."""
    from pawl.actors.fields import convert
    from pawl.actors.sampling import OfflineSampling, StopStrings
    from pawl.actors.text.invalid import InvalidRequest

    prefix = "sampling_"
    given = {name.removeprefix(prefix): value for name, value in vars(arguments).items() if name.startswith(prefix)}
    try:
        convert(given, OfflineSampling)
        convert(arguments.stop, StopStrings, "stop")
    except InvalidRequest as error:
        name = str(error.param).partition("[")[0]
        flag = f"--{prefix if name == 'seed' else ''}{name}".replace("_", "-")
        raise UsageError(error.message.replace(name, flag, 1)) from None
    return {"max_new_tokens": 128} | given
