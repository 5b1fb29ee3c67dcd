"""Adapters of a real model in a whole engine: each request gets what it gets alone, whoever else is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pawl.cli import main
from pawl.config import build_config
from pawl.engine import Engine

PROMPT = "The capital of France is"
MOST = 12
GREEDY = {"max_new_tokens": MOST, "temperature": 0.0}
LAYERS, HIDDEN, VALUES, RANK = 30, 576, 192, 4


def adapter_at(folder: Path, seed: int) -> str:
    """A PEFT folder with a random adapter of SmolLM2."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, outputs in (("q_proj", HIDDEN), ("v_proj", VALUES)):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator) * 0.05
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.05
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return str(folder)


def test_requests_with_adapters_that_share_one_slot_get_what_each_gets_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model": "smollm2", "kv_tokens": 4096, "trace_dir": str(tmp_path / "trace"), "deterministic": True}
    adapters = [f"a={adapter_at(tmp_path / 'a', 1)}", f"b={adapter_at(tmp_path / 'b', 2)}"]
    names = ["", "a", "b", "a", "b", ""]
    with Engine(build_config(settings | {"lora_paths": adapters, "max_loras_per_batch": 1})) as engine:
        together = [each.tokens for each in engine.generate([PROMPT] * 6, GREEDY, adapter=names)]
        alone = {name: engine.generate(PROMPT, GREEDY, adapter=name)[0].tokens for name in ("", "a", "b")}
    assert together == [alone[name] for name in names]
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "trace"), "--recompute", "smollm2", "--json"]) == 0
    report, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    assert (report["recomputed"]["requests"], report["recomputed"]["of_other_weights"]) == (9, 0)
    assert report["recomputed"]["tokens"] == report["num_tokens"]
    shutil.rmtree(tmp_path / "a")
    assert main(["audit", str(tmp_path / "trace"), "--recompute", "smollm2"]) == 0
    told = f"not {3 * MOST} output tokens of other weights, or of adapters that are not there"
    assert told in capsys.readouterr().out
