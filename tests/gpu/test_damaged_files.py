"""Whatever is wrong with a model's files, whoever loads them is told in one line; nothing ends in a traceback."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from pawl.actors.text.conversion import UnsupportedVocabulary
from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.template import ChatTemplate
from pawl.actors.text.vocabulary import Vocabulary
from pawl.commands.failures import EXIT_FAILED, exit_status
from pawl.gpu.models.config import UnsupportedModel
from pawl.gpu.weights.safetensors import FolderError, weight_files
from pawl.gpu.weights.source import load_blocks, load_weights, resolve_source
from tests.gpu.damage import damaged, make_whole

FEW, MANY = 240, 3000
LONGEST_LINE = 1000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_whole(tmp_path_factory.mktemp("whole"))


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


def load(path: Path) -> None:
    """Everything that the server reads of a model before it computes, and a chat."""
    source = resolve_source(str(path))
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    vocabulary.build_tables()
    # What the tokenizer actor tells a client: a template's refusal, and text that is not Unicode.
    with contextlib.suppress(InvalidRequest, ValueError):
        prompt = ChatTemplate(vocabulary).render(CHAT, {}, datetime.fromtimestamp(0, UTC))
        vocabulary.decode(vocabulary.encode(prompt).tolist())
    (load_blocks if source.has_blocks else load_weights)(source, torch.float32)


def test_what_is_damaged_below_loads_when_it_is_whole(whole: list[Path]) -> None:
    for path in whole:
        load(path)


def why_not(path: Path) -> Exception | None:
    """What loading ends with, if not with a model."""
    try:
        load(path)
    except Exception as error:
        return error
    return None


def check_damages(whole: list[Path], folder: Path, seeds: range) -> int:
    """How many of the damages were refused; each in one line."""
    refused = 0
    for seed, path in zip(seeds, itertools.cycle(whole), strict=False):
        target = folder / f"damaged{path.suffix}"
        what = f"seed {seed}, {damaged(path, random.Random(seed), target)}"
        error = why_not(target)
        if error is not None:
            assert exit_status(error) == EXIT_FAILED, f"{what}: {type(error).__name__}: {error}"
            assert "\n" not in str(error), what
            assert len(str(error)) < LONGEST_LINE, what
            refused += 1
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    return refused


def test_damage_is_told_in_one_line(whole: list[Path], tmp_path: Path) -> None:
    assert check_damages(whole, tmp_path, range(FEW)) > FEW // 3


@pytest.mark.slow
def test_any_damage_is_told_in_one_line(whole: list[Path], tmp_path: Path) -> None:
    assert check_damages(whole, tmp_path, range(9000, 9000 + MANY)) > MANY // 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 1 << 20),
        ("num_attention_heads", 0),
        ("hidden_size", "wide"),
        ("vocab_size", 1 << 40),
        ("rms_norm_eps", float("nan")),
        ("tie_word_embeddings", "yes"),
        ("rope_parameters", 7),
        ("head_dim", -16),
        ("num_key_value_heads", [2]),
    ],
)
def test_a_key_of_the_wrong_type_or_size_is_named(key: str, value: object, whole: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(whole[0], folder)
    values = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedModel, match=rf"{key} is .*in config\.json, where .* is needed"):
        resolve_source(str(folder))


def test_a_million_layers_are_not_believed(whole: list[Path], tmp_path: Path) -> None:
    content = bytearray(next(path for path in whole if path.name == "llama.gguf").read_bytes())
    at = content.index(b"llama.block_count") + len(b"llama.block_count") + 4
    content[at : at + 4] = (1 << 20).to_bytes(4, "little")
    (tmp_path / "many.gguf").write_bytes(content)
    with pytest.raises(
        UnsupportedModel, match=r"block_count is 1048576 in the file, where a whole number from 1 to 4096"
    ):
        resolve_source(str(tmp_path / "many.gguf"))


def test_a_token_id_beyond_every_vocabulary_is_refused(whole: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(whole[0], folder)
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["vocab"]["far away"] = 1 << 31
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedVocabulary, match="ids up to 2147483648"):
        Vocabulary.load(folder)


# ---- which files of a folder are the weights ----


def test_model_safetensors_is_read_whatever_lies_beside_it(whole: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(whole[0], folder)
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "optimizer.safetensors"):
        (folder / name).write_bytes(b"something else")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert weight_files(folder) == [folder / "model.safetensors"]
    load(folder)


def test_the_index_says_which_files_where_there_is_no_whole_one(whole: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "gemma3"
    shutil.copytree(next(path for path in whole if path.name == "gemma3"), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"something else")
    assert len(weight_files(folder)) > 1
    load(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none_is_told_in_one_line(content: str, whole: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "gemma3"
    shutil.copytree(next(path for path in whole if path.name == "gemma3"), folder)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(FolderError) as refused:
        resolve_source(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "additional_chat_templates/x.jinja"])
def test_nobody_waits_at_a_pipe_among_the_files(name: str, whole: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "model"
    shutil.copytree(whole[0], target)
    (target / "additional_chat_templates").mkdir()
    (target / name).unlink(missing_ok=True)
    os.mkfifo(target / name)
    error = why_not(target)
    assert error is not None
    assert exit_status(error) == EXIT_FAILED
    assert "not a file" in str(error) or "no *.safetensors" in str(error)


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_of_megabytes_is_not_read(where: str, whole: list[Path], tmp_path: Path) -> None:
    target, text = tmp_path / "model", "a" * (1 << 21)
    shutil.copytree(whole[0], target)
    (target / where).write_text(text if where.endswith(".jinja") else json.dumps({"chat_template": text}))
    with pytest.raises(UnsupportedVocabulary, match="more than 1 MiB"):
        load(target)
