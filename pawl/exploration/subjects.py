"""Schedulers that are not ours, by name. Nothing heavy is imported here."""

from __future__ import annotations

SUBJECTS: dict[str, str] = {
    "vllm": "pawl.testing.subject.adapters.vllm:VllmScheduler",
    "vllm-pipeline": "pawl.testing.subject.adapters.vllm:VllmPipelined",
    "nano-vllm": "pawl.testing.subject.adapters.nano_vllm:NanoVllmScheduler",
    "mini-sglang": "pawl.testing.subject.adapters.mini_sglang:MiniSglangScheduler",
}
"""Name on the command line -> where the class of its adapter stands, as MODULE:CLASS. Each imports its peer, which need
not be installed."""
