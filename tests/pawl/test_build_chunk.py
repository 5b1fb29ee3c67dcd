"""How many prompt tokens a step takes where the user says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.build.assembly import load_parts
from pawl.config import build_config
from tests.gpu.real import smollm2_source

SETTINGS: dict[str, Any] = {"model": "smollm2", "kv_tokens": 1024}


@pytest.mark.parametrize(("tiles", "chunk"), [(False, 128), (True, 512)])
def test_a_step_takes_more_of_a_prompt_where_there_are_tile_registers(
    tiles: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    smollm2_source()
    monkeypatch.setattr("pawl.build.assembly.has_tiles", lambda: tiles)
    for settings, wanted in ((SETTINGS, chunk), ({**SETTINGS, "prefill_chunk": 64}, 64)):
        parts = load_parts(build_config(settings))
        try:
            assert parts.loop_config.prefill_chunk == wanted
        finally:
            parts.close()
