"""Reading adapters: whatever is wrong with a folder is told in one line, and nothing of it is served."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pawl.gpu.adapters.peft import CONFIG, MOST_RANK, TENSORS, AdapterLimits, read_adapter
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.huggingface import config_from_huggingface
from pawl.gpu.step_runner import AdapterRefused
from tests.gpu.adapters import ALL, adapted, save
from tests.gpu.damage import damaged
from tests.gpu.tiny import tiny_model

FEW, MANY = 150, 3000
LONGEST_LINE = 1000
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
NAMED_Q0, NOT_FINITE = Q0.removeprefix("base_model.model."), "holds a number that is not finite"


def config_of(name: str) -> ModelConfig:
    return config_from_huggingface(tiny_model(name).config.to_dict())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(adapted("llama", 1), tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "own")
    return tmp_path / "own"


def configure(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(values))


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def refusal(folder: Path, name: str = "llama") -> str:
    with pytest.raises(AdapterRefused) as caught:
        read_adapter(str(folder), config_of(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(whole: Path, folder: Path) -> None:
    config = config_of("llama")
    first = read_adapter(str(whole), config).fingerprint
    assert read_adapter(str(folder), config).fingerprint == first
    configure(folder, lora_alpha=9)
    scaled = read_adapter(str(folder), config).fingerprint
    retensor(folder, lambda tensors: tensors[f"{Q0}.lora_A.weight"].mul_(1.001))
    assert len({first, scaled, read_adapter(str(folder), config).fingerprint}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"fan_in_fan_out": True}, "stored transposed"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"layer_replication": [[0, 2]]}, "more than once"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "experts"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the model's own weights"),
        ({"use_rslora": "no"}, "use_rslora is 'no', not true or false"),
        ({"r": 5}, "has rank 4, the configuration says 5"),
        ({"r": "4"}, "r is '4', not a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": [8]}, r"lora_alpha is [8]"),
        ({"target_modules": ["v_proj"]}, "which target_modules does not name"),
        ({"target_modules": []}, "neither a list of names nor an expression"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank 4, the configuration says 2"),
        ({"alpha_pattern": {"(.|.)*x": 2}}, "has the expression '(.|.)*x'"),
        ({"alpha_pattern": [1]}, "alpha_pattern is not an object"),
    ],
)
def test_what_the_configuration_asks_for_and_is_not_computed_is_named(
    changes: dict[str, Any], words: str, folder: Path
) -> None:
    configure(folder, **changes)
    assert words in refusal(folder)


def move(tensors: dict[str, torch.Tensor]) -> None:
    """To a layer that the model does not have."""
    for part in "AB":
        name = f"{Q0}.lora_{part}.weight"
        tensors[name.replace(".0.", ".9.")] = tensors.pop(name)


RENAMED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no B": (lambda t: t.pop(f"{Q0}.lora_B.weight"), "q_proj has no lora_B"),
    "no layer": (move, "model.layers.9.self_attn.q_proj is not a matrix of this llama"),
    "a magnitude": (lambda t: t.update({f"{Q0}.lora_magnitude_vector": torch.ones(48)}), "no matrix of a LoRA adapter"),
    "an embedding": (
        lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 97)}),
        "adapters of embeddings",
    ),
    "whole numbers": (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 48, dtype=torch.int64)}), "int64"),
    "a vector": (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(48)}), "not a matrix"),
    "two ranks": (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(3, 48)}), "rank 3 in lora_A and 4 in lora_B"),
    "too wide": (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 49)}), "a matrix of 48 x 49, not 48 x 48"),
    "nothing": (lambda t: t.clear(), "it changes nothing"),
    "NaN in A": (lambda t: t[f"{Q0}.lora_A.weight"][3].fill_(torch.nan), f"{NAMED_Q0}.lora_A {NOT_FINITE}"),
    "NaN in B": (lambda t: t[f"{Q0}.lora_B.weight"][47, 3].fill_(torch.nan), f"{NAMED_Q0}.lora_B {NOT_FINITE}"),
    "infinity": (lambda t: t[f"{Q0}.lora_A.weight"][0, 0].fill_(-torch.inf), f"{NAMED_Q0}.lora_A {NOT_FINITE}"),
    "too large to be scaled": (lambda t: t[f"{Q0}.lora_B.weight"].fill_(3e38), f"{NAMED_Q0}.lora_B {NOT_FINITE}"),
}  # fmt: skip


@pytest.mark.parametrize("name", RENAMED)
def test_tensors_that_do_not_fit_the_model_are_named(name: str, folder: Path) -> None:
    change, words = RENAMED[name]
    retensor(folder, change)
    assert words in refusal(folder)


def test_the_head_and_experts_are_refused_in_words(tmp_path: Path) -> None:
    head = save(adapted("llama", 1, target_modules=["lm_head"]), tmp_path / "head")
    assert "embeddings and of the head are not supported" in refusal(head)
    router = save(adapted("mixtral", 1, target_modules=["q_proj"]), tmp_path / "router")
    stem = "base_model.model.model.layers.0.mlp"
    pair = {f"{stem}.experts.0.gate_proj.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    retensor(router, lambda tensors: tensors.update(pair))
    configure(router, target_modules=["q_proj", "gate_proj"])
    assert "adapters of experts and of their router are not supported" in refusal(router, "mixtral")


def test_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    assert "is for a matrix of" in refusal(folder, "qwen3")


def test_ranks_have_a_limit(tmp_path: Path) -> None:
    wide = save(adapted("llama", 1, r=MOST_RANK + 1, target_modules=["q_proj"]), tmp_path / "wide")
    assert f"served are ranks from 1 to {MOST_RANK}" in refusal(wide)


def test_a_missing_file_is_named_and_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    assert "there is no adapter_config.json: is this a PEFT folder?" in refusal(tmp_path / "nowhere")
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    assert "there is no adapter_model.safetensors; adapter_model.bin is a pickle" in refusal(folder)
    (folder / "adapter_model.bin").unlink()
    assert refusal(folder).endswith("there is no adapter_model.safetensors")


def test_a_file_larger_than_any_adapter_of_the_model_is_not_read(folder: Path) -> None:
    for name in (TENSORS, CONFIG):
        with (folder / name).open("ab") as file:
            file.truncate(1 << 40)  # a hole: it takes no room on the disk
        assert f"{name} has 1099511627776 bytes; of no adapter of this model" in refusal(folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_what_is_no_plain_file_is_not_opened(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)  # whoever opens it waits for a writer
    assert f"there is no {name}" in refusal(folder)


def check_damages(whole: Path, target: Path, seeds: range) -> int:
    """How many damaged copies were refused; each in one line."""
    config, refused = config_of("llama"), list[str]()
    for seed in seeds:
        what = f"seed {seed}, {damaged(whole, random.Random(seed), target)}"
        try:
            read_adapter(str(target), config)
        except AdapterRefused as error:
            refused.append(f"{what}: {error}")
        shutil.rmtree(target)
    assert not [line for line in refused if "\n" in line or len(line) > LONGEST_LINE]
    return len(refused)


def test_damage_is_told_in_one_line(whole: Path, tmp_path: Path) -> None:
    assert check_damages(whole, tmp_path / "damaged", range(FEW)) > FEW // 4


@pytest.mark.slow
def test_any_damage_is_told_in_one_line(whole: Path, tmp_path: Path) -> None:
    assert check_damages(whole, tmp_path / "damaged", range(9000, 9000 + MANY)) > MANY // 4


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (AdapterLimits(max_rank=3), "rank 4; served are ranks from 1 to 3"),
        (AdapterLimits(targets=("q_proj",)), "served are only q_proj"),
    ],
)
def test_an_operator_limits_ranks_and_modules(folder: Path, limits: AdapterLimits, words: str) -> None:
    with pytest.raises(AdapterRefused, match=f"incompatible.*{words}"):
        read_adapter(str(folder), config_of("llama"), limits)
    read_adapter(str(folder), config_of("llama"), AdapterLimits(4, ALL))
