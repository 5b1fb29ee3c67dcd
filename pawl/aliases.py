"""Flags of SGLang and vLLM as they are understood here: one row each, said in docs/clients.md.

A flag does what it does there, by one of our settings, or is refused with what to use in its place. None is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

SGLANG, VLLM, BOTH = "SGLang", "vLLM", "SGLang, vLLM"
TAKEN = object()
"""The flag's own value is taken."""


class Alias(NamedTuple):
    """One flag of another engine."""

    flag: str
    of: str
    setting: str = ""
    """Ours; empty: the flag is refused."""
    value: Any = TAKEN
    """What a flag without a value of its own stands for."""
    read: Callable[[str], Any] | None = None
    """From the text of its value to one of our setting; raises ValueError. None: as ours is read."""
    note: str = ""
    """How it differs, or what to use in its place."""


def _chunk(text: str) -> int:
    if int(text) < 1:
        raise ValueError("prompts are always computed in chunks; for one as large as the context, give that number")
    return int(text)


def _ngram(text: str) -> str:
    if text.lower() != "ngram":
        raise ValueError("drafts come from a request's own text: NGRAM")
    return "ngram"


def _drafted(text: str) -> int:
    if int(text) < 2:
        raise ValueError("the token before the draft counts as well, so at least 2")
    return int(text) - 1


def _count(text: str) -> int:
    """vLLM's numbers: 16k is 16,000 and 16K is 16,384."""
    units = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    if text[-1:] in units:
        return round(float(text[:-1]) * units[text[-1]])
    return int(text)


def _arrival_only(text: str) -> str:
    if text != "fcfs":
        raise ValueError("vLLM serves small numbers first, and --policy priority large ones: negate them and use that")
    return text


def _runner(text: str) -> str:
    runners = {"auto": "auto", "generate": "off", "pooling": "on"}
    if text not in runners:
        raise ValueError(f"known: {', '.join(runners)}")
    return runners[text]


def _dashed(text: str) -> str:
    return text.replace("_", "-")


ALIASES: tuple[Alias, ...] = (
    Alias("--model-path", SGLANG, "model"),
    Alias("--chunked-prefill-size", SGLANG, "prefill_chunk", read=_chunk, note="-1 is refused: there is no such mode"),
    Alias("--max-running-requests", SGLANG, "max_running"),
    Alias("--tensor-parallel-size", BOTH, "tp"),
    Alias("--tp-size", SGLANG, "tp"),
    Alias("--pipeline-parallel-size", BOTH, "pp"),
    Alias("--pp-size", SGLANG, "pp"),
    Alias("--expert-parallel-size", SGLANG, "ep"),
    Alias("--ep-size", SGLANG, "ep"),
    Alias("--enable-expert-parallel", VLLM, note="--ep says among how many parts the experts are shared out"),
    Alias("--nnodes", BOTH, note="--nodes and --listen on one host, `pawl node` on the others"),
    Alias("--node-rank", BOTH, note="`pawl node` on every host but that of `pawl serve`"),
    Alias("--dist-init-addr", SGLANG, note="--listen tcp://HOST:PORT on the head, `pawl node --join` it on the others"),
    Alias("--max-queued-requests", SGLANG, "max_queued"),
    Alias("--schedule-policy", SGLANG, "policy"),
    Alias(
        "--mem-fraction-static",
        SGLANG,
        "memory_share",
        note="counts what a step needs beside weights and pages as well, so the same number leaves more free",
    ),
    Alias("--max-total-tokens", SGLANG, "kv_tokens"),
    Alias("--disable-overlap-schedule", SGLANG, "pacing", "lockstep"),
    Alias("--disable-radix-cache", SGLANG, "cache", "none"),
    Alias("--enable-mixed-chunk", SGLANG, "mixed", True, note="it is so unless `--no-mixed` is given"),
    Alias("--random-seed", SGLANG, "seed"),
    Alias("--enable-deterministic-inference", SGLANG, "deterministic", True),
    Alias("--radix-eviction-policy", SGLANG, "eviction"),
    Alias("--hicache-size", SGLANG, "host_cache_gb"),
    Alias("--hicache-write-policy", SGLANG, "write_policy", read=_dashed, note="its values with underscores"),
    Alias("--is-embedding", SGLANG, "pooling", "on", note="text is generated as well, where the model can"),
    Alias(
        "--speculative-algorithm", SGLANG, "speculate", read=_ngram, note="NGRAM; the others need a model of their own"
    ),
    Alias(
        "--speculative-num-draft-tokens",
        SGLANG,
        "num_speculative_tokens",
        read=_drafted,
        note="one less: the token before the draft counts there",
    ),
    Alias("--max-num-seqs", VLLM, "max_running"),
    Alias("--max-model-len", VLLM, "context_length", read=_count, note="16k and 16K as there"),
    Alias("--block-size", VLLM, "page_size"),
    Alias("--gpu-memory-utilization", VLLM, "memory_share"),
    Alias("--enable-prefix-caching", VLLM, "cache", "radix"),
    Alias("--no-enable-prefix-caching", VLLM, "cache", "none"),
    Alias("--async-scheduling", VLLM, "pacing", "overlap"),
    Alias("--no-async-scheduling", VLLM, "pacing", "lockstep"),
    Alias(
        "--scheduling-policy", VLLM, "policy", read=_arrival_only, note="`fcfs`; `priority` has the other order there"
    ),
    Alias("--runner", VLLM, "pooling", read=_runner, note="text is generated as well, where the model can"),
    Alias(
        "--speculative-config",
        VLLM,
        note="--speculate ngram, --num-speculative-tokens, --prompt-lookup-min, --prompt-lookup-max",
    ),
    Alias("--lora-modules", VLLM, "lora_paths", note="`NAME=FOLDER`, or its JSON"),
    Alias("--max-loras", VLLM, "max_loras_per_batch"),
    Alias("--max-cpu-loras", VLLM, "max_loaded_loras", note="not in memory: they are read again when they are needed"),
    Alias("--lora-backend", SGLANG, note="--backend chooses all kernels"),
    Alias("--lora-eviction-policy", SGLANG, note="the one used the longest time ago leaves its slot"),
    Alias("--uvicorn-log-level", VLLM, "log_level"),
    Alias("--max-num-batched-tokens", VLLM, note="--prefill-chunk counts the prompt tokens of a step, outputs not"),
    Alias("--max-prefill-tokens", SGLANG, note="--prefill-chunk is the one limit of a step"),
    Alias("--schedule-conservativeness", SGLANG, note="what is promised to running requests is not a setting"),
    Alias("--enable-hierarchical-cache", SGLANG, note="--host-cache-gb says how much"),
    Alias("--hicache-ratio", SGLANG, note="--host-cache-gb says how much"),
    Alias("--swap-space", VLLM, note="--host-cache-gb keeps pages that leave the device"),
    Alias("--attention-backend", BOTH, note="--backend chooses all kernels"),
    Alias("--quantization", BOTH, note="a GGUF file brings its own"),
    Alias("--kv-cache-dtype", BOTH, note="keys and values have the --dtype of the weights"),
    Alias("--load-format", BOTH, note="a folder of safetensors and a GGUF file are told apart by themselves"),
    Alias("--tokenizer", VLLM, note="it comes with the model"),
    Alias("--tokenizer-path", SGLANG, note="it comes with the model"),
    Alias("--trust-remote-code", BOTH, note="a model's own code is never run; leave it out"),
    Alias("--data-parallel-size", BOTH, "dp"),
    Alias("--dp-size", SGLANG, "dp"),
    Alias("--load-balance-method", SGLANG, "router_policy", note="`minimum_tokens` and `total_requests` as well"),
    Alias("--enforce-eager", VLLM, note="CUDA graphs cannot be turned off"),
    Alias("--disable-cuda-graph", SGLANG, note="CUDA graphs cannot be turned off"),
    Alias("--enable-metrics", SGLANG, note="/metrics is always there; leave it out"),
    Alias("--enable-cache-report", SGLANG, note="usage always says what was cached; leave it out"),
    Alias("--enable-auto-tool-choice", VLLM, note="tools are always read; leave it out"),
)

VALUES: Mapping[str, Mapping[str, str]] = {
    "router_policy": {"minimum_tokens": "total_tokens", "total_requests": "shortest_queue"},
    "dtype": {"bfloat16": "bf16", "float32": "fp32", "float": "fp32"},
    "tool_call_parser": {"qwen": "hermes", "qwen25": "hermes", "llama3": "llama3_json", "llama4_pythonic": "pythonic"},
    "reasoning_parser": {"deepseek-r1": "deepseek_r1", "magistral": "mistral"},
}
"""Setting -> other engines' names of its values."""


def table() -> Iterator[str]:
    """The rows as Markdown."""
    yield "| flag | of | here | |"
    yield "| --- | --- | --- | --- |"
    for alias in ALIASES:
        yield f"| `{alias.flag}` | {alias.of} | {_here(alias)} | {alias.note} |"
    for setting, values in VALUES.items():
        flag = setting.replace("_", "-")
        for theirs, ours in values.items():
            yield f"| `--{flag} {theirs}` | {BOTH} | `--{flag} {ours}` | |"


def _here(alias: Alias) -> str:
    if not alias.setting:
        return "refused"
    flag = alias.setting.replace("_", "-")
    if alias.value is TAKEN:
        return f"`--{flag}`"
    return f"`--{flag}`" if alias.value is True else f"`--{flag} {alias.value}`"
