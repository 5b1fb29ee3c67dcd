"""From settings to cache tiers below the device: host memory and files. Loads no model."""

from __future__ import annotations

import secrets
from pathlib import Path

import structlog

from pawl.actors.names import DECODE, NAMES, PREFILL, UNIFIED, Names
from pawl.actors.storage import Storage
from pawl.actors.tiers.files import FileStore
from pawl.actors.tiers.shared_pages import SECRET_BYTES, SharedPages
from pawl.actors.tiers.store import TierStore
from pawl.build.nixl_pages import NixlPages, reader_of
from pawl.config import ConfigError, ServerConfig
from pawl.loops.saving import WritePolicy
from pawl.loops.tiers import RemoteConfig, TierConfig
from pawl.memory.prefix.select import KINDS
from pawl.memory.tiers.host import HostPool

log = structlog.get_logger("pawl.build.tiers")

SAVE_BYTES, SAVE_PAGES = 8 << 20, 128
"""Of one message on the way down: the storage looks for fetches between two of them. A file takes its time however
small a page is."""
SAVING_BYTES, SAVING_PAGES = 128 << 20, 2048
"""On the way down at a time: what a slow disk may be behind, and nobody fetches meanwhile."""
FETCH_BYTES = 256 << 20
"""Of one fetch."""


def wants_tiers(config: ServerConfig) -> bool:
    """Whether there are tiers below the device. Raises ConfigError for what does not go together."""
    wanted = config.host_cache_gb is not None or config.storage_dir is not None
    if wanted and not KINDS[config.cache].ordered:
        field = "storage_dir" if config.host_cache_gb is None else "host_cache_gb"
        raise ConfigError(
            f"host_cache_gb and storage_dir keep what prompts share, which the cache {config.cache} does not tell",
            field,
        )
    return wanted


def tier_config(config: ServerConfig, layout: str, page_bytes: int, role: str = UNIFIED) -> TierConfig:
    """How pages of `page_bytes` bytes move. `layout` says how their bytes are to be read."""
    return TierConfig(
        layout=layout,
        write_policy=WritePolicy.HAND_OVER.value if role == PREFILL else config.write_policy,
        durable=config.storage_dir is not None,
        lease_s=config.fetch_lease_s,
        save_pages=_pages(SAVE_BYTES, SAVE_PAGES, page_bytes),
        max_saving_pages=_pages(SAVING_BYTES, SAVING_PAGES, page_bytes),
        max_fetch_pages=max(1, FETCH_BYTES // page_bytes),
    )


def remote_config(config: ServerConfig, storage: Storage, role: str) -> RemoteConfig | None:
    """Which prompts of a decode replica are computed elsewhere: as many as half of its host memory holds at a time."""
    if role != DECODE:
        return None
    capacity = storage.store.host.capacity
    if capacity < 2:
        raise ConfigError("disaggregate: pages travel in host memory; host_cache_gb holds no two", "host_cache_gb")
    return RemoteConfig(max_pages=capacity // 2, lease_s=config.prefill_lease_s)


def _pages(limit_bytes: int, limit_pages: int, page_bytes: int) -> int:
    return max(1, min(limit_bytes // page_bytes, limit_pages))


def make_storage(config: ServerConfig, layout: str, page_bytes: int, names: Names = NAMES) -> Storage:
    """The storage actor, its folder taken. Raises ConfigError, or StorageUnusable."""
    num_host_pages = int((config.host_cache_gb or 0.0) * (1 << 30)) // page_bytes
    if config.host_cache_gb is not None and not num_host_pages:
        raise ConfigError(
            f"host_cache_gb: {config.host_cache_gb} GiB do not hold one page of {page_bytes:,} bytes", "host_cache_gb"
        )
    files = None
    if config.storage_dir is not None:
        files = FileStore(Path(config.storage_dir), layout, page_bytes, int(config.storage_gb * (1 << 30)))
        files.acquire()
    eager = WritePolicy(config.write_policy) is not WritePolicy.WRITE_BACK
    shared = _shared_pages(config, num_host_pages, page_bytes, names.role)
    host = HostPool(num_host_pages, page_bytes, None if shared is None else shared.blocks)
    return Storage(TierStore(host, files, eager=eager), names, shared, reader_of)


def _shared_pages(config: ServerConfig, capacity: int, page_bytes: int, role: str) -> SharedPages | NixlPages | None:
    """Host memory that decode replicas in other processes can read; None: nobody is to, or can. Raises ConfigError."""
    transport = config.page_transport
    if role != PREFILL or not config.in_processes or not capacity or transport == "messages":
        return None
    try:
        if transport == "nixl":
            return NixlPages(capacity, page_bytes)
        return SharedPages(capacity, page_bytes, secrets.token_bytes(SECRET_BYTES))
    except OSError as error:
        if transport == "nixl":
            raise ConfigError(f"page_transport: {error}", "page_transport") from error
        log.info("pages are handed over as bytes of messages", reason=str(error))
        return None
