"""`python -m benchmarks.experts`: a mixture on two ranks whose tokens use the experts of one far more than those of the
other, with experts where they were and with experts moved (`--enable-eplb`).

Weights are random, and the router's rows of the first half of the experts are long, so that tokens choose among these.
Both servers run in turns. Beside the step, the processor time of each rank tells how the work is shared out; it depends
less than the step on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks.machine import cpu_seconds
from pawl.config import build_config
from pawl.engine import Engine
from tests.actors.vocabularies import byte_level

VOCABULARY, LONG = 512, 6.0


class Told(NamedTuple):
    """Of one round."""

    step_ms: float
    waiting: float
    """Share of its steps that the rank with less to do has waited."""
    cpu: tuple[float, ...]
    """Seconds of each rank, a step, in ms."""
    tokens: list[tuple[int, ...]]


def make_model(folder: Path, layers: int, experts: int) -> None:
    """A Qwen3-MoE of some 60 MB a layer."""
    torch.manual_seed(1)
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=512,
        moe_intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=experts,
        num_experts_per_tok=8,
        norm_topk_prob=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[: experts // 2] *= LONG
    model.save_pretrained(folder)
    byte_level().tokenizer.save(str(folder / "tokenizer.json"))


def engine_of(folder: Path, trace: Path, rows: int, **more: Any) -> Engine:
    settings = {"model": str(folder), "trace_dir": str(trace), "max_running": rows, "kv_tokens": 64 * rows, "ep": 2}
    return Engine(build_config(settings | {"grammar_backend": "plain", "log_level": "error", "threads": 2} | more))


def asked(engine: Engine, rows: int, tokens: int, seed: int) -> Told:
    """One round: `rows` requests at a time."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(3, 90, 8).tolist() for _ in range(rows)]
    before, cpu = ranks_of(engine), used(engine)
    began = time.monotonic()
    sampling = {"temperature": 1.0, "seed": seed, "max_new_tokens": tokens, "ignore_eos": True}
    found = [tuple(each.tokens) for each in engine.generate(prompts, sampling)]
    wall = time.monotonic() - began
    after, spent = ranks_of(engine), [one - other for one, other in zip(used(engine), cpu, strict=True)]
    steps = after[0]["steps"] - before[0]["steps"]
    waits = [
        (new["waiting_s"] - old["waiting_s"]) / (new["step_s"] - old["step_s"])
        for new, old in zip(after, before, strict=True)
    ]
    return Told(1e3 * wall / steps, max(waits), tuple(1e3 * each / steps for each in spent), found)


def used(engine: Engine) -> list[float]:
    """Seconds of processors that each rank has used."""
    return [cpu_seconds([one["pid"]]) for one in ranks_of(engine)]


def ranks_of(engine: Engine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = engine.control("state")["ranks"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--redundant", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", arguments.layers, arguments.experts)
        moving = {
            "enable_eplb": True,
            "eplb_rebalance_num_iterations": 0,
            "ep_num_redundant_experts": arguments.redundant,
        }
        plain = engine_of(folder / "model", folder / "plain", arguments.rows)
        moved = engine_of(folder / "model", folder / "moved", arguments.rows, **moving)
        with plain, moved:
            for engine in (plain, moved):
                asked(engine, arguments.rows, arguments.tokens, 0)
            began = time.monotonic()
            print(moved.control("rebalance-experts"), f"in {time.monotonic() - began:.2f} s")
            rounds = [
                [asked(engine, arguments.rows, arguments.tokens, seed) for engine in (plain, moved)]
                for seed in range(1, 1 + arguments.rounds)
            ]
        assert all(one.tokens == other.tokens for one, other in rounds), "tokens differ"
        for name, told in zip(("where they were", "moved"), zip(*rounds, strict=True), strict=True):
            step = statistics.median(each.step_ms for each in told)
            waits = statistics.median(each.waiting for each in told)
            cpu = [statistics.median(each) for each in zip(*(each.cpu for each in told), strict=True)]
            each_rank = " ".join(f"{spent:.2f}" for spent in cpu)
            print(f"{name:16} {step:7.2f} ms a step, {waits:5.1%} of it waited, CPU ms of each rank: {each_rank}")


if __name__ == "__main__":
    main()
