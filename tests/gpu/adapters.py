"""Adapters of the tiny models, made and saved by PEFT: the oracle of what an adapter changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import torch

from pawl.gpu.adapters.small import ALL
from tests.gpu.tiny import VOCABULARY, tiny_model


def adapted(name: str, seed: int, **settings: Any) -> Any:
    """The tiny model in PEFT's hands, with a random adapter as `peft.LoraConfig` describes it."""
    return wrapped(copy.deepcopy(tiny_model(name)), seed, **settings)


def wrapped(model: Any, seed: int, **settings: Any) -> Any:
    """The same of any model, which is changed."""
    chosen = {"target_modules": list(ALL), "r": 4, "lora_alpha": 8} | settings
    model = peft.get_peft_model(model, peft.LoraConfig(**chosen)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def trained(name: str, steps: int = 8) -> Any:
    """An adapter that a few steps of training made, on random text."""
    torch.manual_seed(5)
    model = peft.get_peft_model(copy.deepcopy(tiny_model(name)), peft.LoraConfig(target_modules=list(ALL), r=2))
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.02)
    tokens = torch.randint(0, VOCABULARY, (4, 24))
    for _ in range(steps):
        optimiser.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimiser.step()
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    """Write the adapter alone, as PEFT does."""
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def peft_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits of every position, float32 [t, vocab]."""
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0].float()
    return logits
