"""transformers, as `benchmarks.cpu` asks it: one static batch through `generate`. Runs in its own environment.

python -m benchmarks.peers_transformers MODEL_FOLDER                 answer questions
python -m benchmarks.peers_transformers convert FILE.gguf FOLDER     the same model as the folder that peers read
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.peers_protocol import Generate, answer_questions


def load() -> tuple[str, Generate]:
    """bfloat16, scaled-dot-product attention, a thread for each processor."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    model.eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        everything = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=num_output,
            min_new_tokens=num_output,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs: list[list[int]] = everything[:, tokens.shape[1] :].tolist()
        return outputs

    return f"transformers {transformers.__version__}", generate


def convert(source: Path, folder: Path) -> None:
    """Write the GGUF model `source` as a Hugging Face folder in bfloat16; needs the `gguf` package."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        answer_questions(load)
