"""OpenVINO GenAI on the CPU, as `benchmarks.cpu` asks it. Runs in an environment of its own.

    python -m benchmarks.peers_openvino FOLDER                       answer questions
    python -m benchmarks.peers_openvino convert MODEL KIND TARGET    an OpenVINO folder of a Hugging Face one; KIND is
                                                                     bf16 or int4 (groups of 64, all layers)

Its continuous batching pipeline, with a prefix cache; steps in bfloat16.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.peers_protocol import Generate, answer_questions

MAX_RUNNING = 64
MAX_STEP_TOKENS = 2048
CACHE_GIB = 2


def load() -> tuple[str, Generate]:
    """Everything but the size of its cache as OpenVINO chooses."""
    import openvino  # type: ignore[import-not-found]
    import openvino_genai  # type: ignore[import-not-found]

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_seqs = MAX_RUNNING
    scheduler.max_num_batched_tokens = MAX_STEP_TOKENS
    scheduler.enable_prefix_caching = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        sys.argv[1], scheduler, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}
    )

    def generate(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        sampling = openvino_genai.GenerationConfig(max_new_tokens=num_output, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, [sampling] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    return f"OpenVINO {openvino_genai.__version__}", generate


def convert(model: str, kind: str, target: str) -> None:
    """Write what OpenVINO loads, its matrices as `kind` says."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig  # type: ignore[import-not-found]

    quantization = OVWeightQuantizationConfig(bits=4, sym=False, group_size=64, ratio=1.0) if kind == "int4" else None
    loaded = OVModelForCausalLM.from_pretrained(
        model, export=True, compile=False, load_in_8bit=False, quantization_config=quantization
    )
    loaded.save_pretrained(target)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:])
    else:
        answer_questions(load)
