"""The compiled kernels serve without PyTorch: its import would be most of a start, and of the memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pawl.config import STREAMED_STEP_MS
from tests.actors.vocabularies import byte_level
from tests.gpu.tiny import save_tiny

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pawl.cli import main
status = main(["serve", *sys.argv[1:], "--port", "0", "--no-trace", "--kv-tokens", "1024"])
print("torch" in sys.modules, "transformers" in sys.modules, file=sys.stderr)
sys.exit(status)
"""
PROMPT = [5, 9, 70, 33]
REQUESTS = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.9, "top_p": 0.8, "seed": 3},
    "with scores": {"temperature": 1.1, "logprobs": 3, "echo": True, "seed": 4},
    "penalised": {"temperature": 0.7, "top_k": 20, "presence_penalty": 0.5, "logit_bias": {"40": 2}, "seed": 5},
    "by a grammar": {"temperature": 1.0, "regex": "(ab|c)+", "seed": 6},
}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("model", ["smollm2", "folder"])
def test_requests_of_every_kind_are_served_and_torch_is_never_imported(model: str, tmp_path: Path) -> None:
    if model == "folder":
        model = str(save_tiny("llama", tmp_path))
        byte_level().tokenizer.save(str(tmp_path / "tokenizer.json"))
    command = [sys.executable, "-c", PROGRAM, model]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        ready = next((line for line in server.stderr if line.startswith("try: curl")), "")
        try:
            for way, fields in REQUESTS.items():
                body = {"prompt": PROMPT, "max_tokens": 5, **fields}
                reply = httpx.post(f"{ready.split()[3]}", json=body, timeout=60)
                assert reply.status_code == 200, (way, reply.text)
                assert reply.json()["usage"]["completion_tokens"] >= 1
            info = httpx.get(f"{ready.split()[3].removesuffix('/v1/completions')}/server_info", timeout=60).json()
            weights = "stored" if model == "smollm2" else "bf16"
            assert [info[name] for name in ("weights", "dtype", "backend")] == [weights, "bfloat16", "native"]
            assert info["max_step_ms"] == STREAMED_STEP_MS
            assert "auto" not in (info["grammar_backend"], info["cache_core"], info["hybrid_pools"])
        finally:
            server.terminate()
            told = server.stderr.read()
        assert (server.wait(), told.splitlines()[-1]) == (0, "False False")
