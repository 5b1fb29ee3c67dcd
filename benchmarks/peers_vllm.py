"""vLLM on the CPU, as `benchmarks.cpu` asks it: `python -m benchmarks.peers_vllm MODEL_FOLDER`, in vLLM's environment.

Text is not made (`detokenize=False`), which is less work than this engine does for the same question.
"""

from __future__ import annotations

import sys

import vllm  # type: ignore[import-not-found]

from benchmarks.peers_protocol import Generate, answer_questions

MAX_RUNNING = 64
MAX_STEP_TOKENS = 2048
MAX_CONTEXT = 2048


def load() -> tuple[str, Generate]:
    """bfloat16, prefix caching on, everything else as vLLM chooses."""
    engine = vllm.LLM(
        model=sys.argv[1],
        dtype="bfloat16",
        enable_prefix_caching=True,
        max_model_len=MAX_CONTEXT,
        max_num_seqs=MAX_RUNNING,
        max_num_batched_tokens=MAX_STEP_TOKENS,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=num_output, min_tokens=num_output, ignore_eos=True, detokenize=False
        )
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return f"vLLM {vllm.__version__}", generate


if __name__ == "__main__":
    answer_questions(load)
