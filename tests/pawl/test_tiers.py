"""Host memory and files as settings of a server: what they keep, what does not go together, and what it says then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.tiers.files import StorageUnusable
from pawl.build.tiers import tier_config, wants_tiers
from pawl.config import ConfigError, build_config
from pawl.engine import Engine
from tests.pawl.asking import state_of

GREEDY = {"max_new_tokens": 4, "temperature": 0}
PROMPTS = [[(shift + number) % 256 for number in range(100)] for shift in (0, 70, 140)]


def engine(folder: Path, **settings: Any) -> Engine:
    """A ghost with room for little more than one of the prompts."""
    return Engine(
        build_config(
            {"model": "ghost", "kv_tokens": 160, "max_running": 1, "trace_dir": str(folder / "traces"), **settings}
        )
    )


def answers(running: Engine, *indices: int) -> list[tuple[tuple[int, ...], int]]:
    """Tokens of each prompt's answer and how much of the prompt was cached, asked one after the other."""
    found = []
    for index in indices:
        (completion,) = running.generate([PROMPTS[index]], GREEDY)
        found.append((completion.tokens, completion.done.usage.cached_tokens))
        # What is on its way down is not to be had yet: who asks at once computes.
        until(lambda: not tiers_of(running).get("saving_pages"))
    return found


def until(holds: Callable[[], bool]) -> None:
    """Ask again until it holds."""
    assert any(holds() for _ in range(100_000))


def tiers_of(running: Engine) -> dict[str, int]:
    tiers: dict[str, int] = state_of(running).get("tiers", {})
    return tiers


@pytest.mark.parametrize("write_policy", ["write-through", "write-back"])
def test_prompts_that_left_the_device_are_not_computed_again_nor_after_a_restart(
    tmp_path: Path, write_policy: str
) -> None:
    with engine(tmp_path) as plain:
        cold = answers(plain, 0, 1, 2, 0)
        assert [cached for _, cached in cold] == [0, 0, 0, 0]
        assert tiers_of(plain) == {}
    settings = {"host_cache_gb": 0.001, "storage_dir": str(tmp_path / "pages"), "write_policy": write_policy}
    with engine(tmp_path, **settings) as first:
        warm = answers(first, 0, 1, 2, 0)
        assert [tokens for tokens, _ in warm] == [tokens for tokens, _ in cold]
        assert [cached for _, cached in warm] == [0, 0, 0, 96]
    with engine(tmp_path, **settings) as second:
        # The folder is listed in a thread of its own, while the server is starting.
        until(lambda: tiers_of(second)["known_pages"] >= 18)
        # The last prompt was on the device only, where pages go down when they leave.
        again = answers(second, 1, 2, 0)
        assert again == [(cold[1][0], 96), (cold[2][0], 96), (cold[0][0], 96)]


def test_a_folder_that_another_server_uses_is_refused_at_the_start(tmp_path: Path) -> None:
    with engine(tmp_path, storage_dir=str(tmp_path / "pages")), pytest.raises(StorageUnusable, match="another server"):
        engine(tmp_path, storage_dir=str(tmp_path / "pages"))


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"cache": "none", "host_cache_gb": 1.0}, "host_cache_gb", "which the cache none does not tell"),
        ({"cache": "none", "storage_dir": "x"}, "storage_dir", "which the cache none does not tell"),
        ({"host_cache_gb": 1e-9}, "host_cache_gb", "do not hold one page"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_settings_name(
    tmp_path: Path, settings: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        engine(tmp_path, **settings)
    assert refused.value.field == field


def test_without_host_memory_or_files_there_are_no_tiers(tmp_path: Path) -> None:
    assert not wants_tiers(build_config({}))
    assert wants_tiers(build_config({"host_cache_gb": 1.0}))
    assert wants_tiers(build_config({"storage_dir": str(tmp_path)}))


def test_messages_about_pages_are_small_whatever_the_size_of_a_page() -> None:
    config = build_config({"fetch_lease_s": 7.0, "write_policy": "write-back"})
    small, large = tier_config(config, "layout", 4096), tier_config(config, "layout", 1 << 30)
    assert (small.save_pages, small.max_saving_pages, small.max_fetch_pages) == (128, 2048, 65536)
    assert (large.save_pages, large.max_saving_pages, large.max_fetch_pages) == (1, 1, 1)
    assert (small.lease_s, small.write_policy, small.layout) == (7.0, "write-back", "layout")
