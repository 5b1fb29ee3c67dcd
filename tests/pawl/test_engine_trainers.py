"""A real model whose weights come from a trainer: it computes what an engine that starts with them computes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from pawl.build.loading import load_here as load
from pawl.config import build_config
from pawl.engine import Engine, RequestFailed
from pawl.gpu.weights.report import unheard
from pawl.lifecycle.audit import Verdict, audit
from tests.actors.vocabularies import byte_level
from tests.pawl.ghost_server import ghost_server
from tests.pawl.trainer import Trainer, trainer_process

GROUP = "weight_update_group"
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SETTINGS = {"dtype": "fp32", "kv_tokens": 512, "max_running": 4, "threads": 1}


def folder(path: Path, seed: int) -> Path:
    """A tiny Llama of random weights, with a vocabulary."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(path, safe_serialization=True)
    byte_level().tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model before and after."""
    return folder(tmp_path_factory.mktemp("before"), 1), folder(tmp_path_factory.mktemp("after"), 2)


@contextmanager
def engine(model: Path, traces: Path) -> Iterator[Engine]:
    """Its trace passes the audit when the block ends."""
    with Engine(build_config({"model": str(model), "trace_dir": str(traces), **SETTINGS})) as engine:
        yield engine
    assert audit(traces).verdict is Verdict.PASS


def said(engine: Engine) -> Any:
    """Tokens, and what the likeliest ones were given, to the bit."""
    sampling = {"max_new_tokens": 6, "temperature": 0.0, "top_logprobs": 5}
    (completion,) = engine.generate([PROMPT], sampling)
    return completion.tokens, completion.logprobs


def receive(
    engine: Engine, trainer: Trainer, path: Path, names: list[str], sent: str = "float32", **fields: Any
) -> None:
    """The trainer sends these tensors of a folder, and the engine takes them. Raises RequestFailed."""
    tensors = load_file(path / "model.safetensors")
    flat = "load_format" in fields
    trainer.begin("send file", GROUP, path=str(path / "model.safetensors"), names=names, dtype=sent, flat=flat)
    described = {"names": names, "dtypes": ["torch.float32"] * len(names)}
    shapes = [list(tensors[name].shape) for name in names]
    engine.control("receive-weights", **described, shapes=shapes, **fields)


def test_after_an_update_a_model_computes_what_one_that_starts_with_the_weights_computes(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    before, after = trained
    names = sorted(load_file(after / "model.safetensors"))
    with engine(after, tmp_path / "new") as new:
        wanted = said(new)
    with engine(before, tmp_path / "served") as served, trainer_process() as trainer:

        def meet() -> None:
            trainer.begin("join", GROUP, size=2)
            fields = {
                "master_address": "localhost",
                "master_port": str(trainer.port),
                "rank_offset": 1,
                "world_size": 2,
            }
            served.control("join-weight-group", **fields, backend="gloo")
            assert trainer.answer()["done"]

        meet()
        old = said(served)
        for bucket in (names[::2], names[1::2]):  # as trainers send them: a message a bucket
            receive(served, trainer, after, bucket)
            assert trainer.answer()["done"]
        assert said(served) == wanted != old
        receive(served, trainer, before, names, load_format="flattened_bucket")
        assert trainer.answer()["done"]
        assert said(served) == old
        with pytest.raises(RequestFailed, match="fewer bytes than it said"):
            receive(served, trainer, after, names, sent="bfloat16")
        trainer.answer()
        assert said(served) == old


def test_the_loop_in_the_docs_runs_as_it_stands_there(trained: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = trained
    page = (Path(__file__).parents[2] / "docs" / "reinforcement-learning.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    config = build_config({"model": str(before), "trace_dir": str(tmp_path), **SETTINGS})
    sampling = {"max_new_tokens": 4, "temperature": 0.0}
    with ghost_server(load(config, unheard), trace_dir=str(tmp_path)) as (host, port):
        url = f"http://{host}:{port}"
        subprocess.run([sys.executable, "-c", script, url, str(after / "model.safetensors")], check=True)
        answer = httpx.post(
            f"{url}/generate", json={"input_ids": PROMPT, "sampling_params": sampling}, timeout=60
        ).json()
    assert audit(tmp_path).verdict is Verdict.PASS
    assert answer["meta_info"]["weight_version"] == "step 1"
    with engine(after, tmp_path / "new") as new:
        assert answer["output_ids"] == list(new.generate([PROMPT], sampling)[0].tokens)
