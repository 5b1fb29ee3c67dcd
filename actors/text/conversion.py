"""A `tokenizers.Tokenizer` from the metadata of a GGUF file.

Two kinds of vocabulary are understood: `gpt2` (byte-level BPE with stored merges) and `llama` (SentencePiece BPE, where
the merges follow from the scores). Everything is built in memory at each start: SmolLM2 takes a fifth of a second, and
even Gemma's half a million merges are built in little more time than a saved tokenizer.json takes to load, so there is
no cache that could go stale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pawl.actors.text.byte_table import SPACE_MARK

log = structlog.get_logger(__name__)

TOKEN_NORMAL = 1
TOKEN_UNKNOWN = 2
TOKEN_CONTROL = 3
TOKEN_USER_DEFINED = 4

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

GPT2_NAMES = frozenset({"gpt-2", "gpt2", "default", "mpt", "olmo", "jais", "phi-2", "trillion", "granite-docling"})
DIGITS_NAMES = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
LLAMA3_NAMES = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe", "pixtral"})
QWEN2_NAMES = frozenset({"qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"})


LONGEST_PIECE = 1024
"""Characters of a SentencePiece token: every way to cut one in two is looked at."""


class UnsupportedVocabulary(Exception):
    """The model's files hold a vocabulary of a kind that cannot be read; the message names it."""


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that the keys `tokenizer.ggml.*` describe.

    Raises UnsupportedVocabulary for a kind other than `gpt2` and `llama`, or when the token list is missing.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens: Sequence[str] = list(metadata.get("tokenizer.ggml.tokens") or ())
    if not tokens:
        raise UnsupportedVocabulary("the GGUF file holds no vocabulary (tokenizer.ggml.tokens)")
    stored_types = metadata.get("tokenizer.ggml.token_type")
    types = [TOKEN_NORMAL] * len(tokens) if stored_types is None else [int(each) for each in stored_types]
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens, types)
    else:
        raise UnsupportedVocabulary(f"the GGUF vocabulary kind {kind!r} is not supported (gpt2 and llama are)")
    _add_whole_tokens(tokenizer, tokens, types)
    _add_ends(tokenizer, metadata, tokens)
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token as a whole before it looks at merges.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in LLAMA3_NAMES))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in DIGITS_NAMES:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    elif name in LLAMA3_NAMES or name in QWEN2_NAMES:
        pattern = LLAMA3_PATTERN if name in LLAMA3_NAMES else QWEN2_PATTERN
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        if name not in GPT2_NAMES:
            log.warning("unknown pre-tokenizer, splitting as GPT-2 does: prompts may get other ids", pre=name)
        tokenizer.pre_tokenizer = gpt2
    if name in QWEN2_NAMES or name == "command-r":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise UnsupportedVocabulary("the GGUF file holds no score for each token (tokenizer.ggml.scores)")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges_from_scores(vocabulary, tokens, types, [float(score) for score in scores]),
        unk_token=tokens[int(unknown)] if unknown is not None else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    mark = normalizers.Replace(" ", SPACE_MARK)
    parts = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), mark])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = mark
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _merges_from_scores(
    vocabulary: Mapping[str, int], tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose joined token scores best: so every way to split a token into two
    tokens is a merge, in falling order of the whole token's score."""
    longest = max(tokens, key=len)
    if len(longest) > LONGEST_PIECE:
        raise UnsupportedVocabulary(
            f"a token of the GGUF file has {len(longest)} characters, of at most {LONGEST_PIECE}"
        )
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == TOKEN_NORMAL}
    joined = [i for i, kind in enumerate(types) if kind == TOKEN_NORMAL]
    joined.sort(key=lambda i: -scores[i])
    merges: list[tuple[str, str]] = []
    for index in joined:
        token = tokens[index]
        splits = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in pieces and token[cut:] in pieces
        ]
        if len(splits) > 1:
            splits.sort(key=lambda split: (vocabulary[split[0]], vocabulary[split[1]]))
        merges += splits
    return merges


def _add_whole_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tokens that are found in the text before anything else: control tokens and what the model's maker defined."""
    control = [t for t, kind in zip(tokens, types, strict=True) if kind in (TOKEN_CONTROL, TOKEN_UNKNOWN)]
    defined = [t for t, kind in zip(tokens, types, strict=True) if kind == TOKEN_USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in defined])


def _add_ends(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str]) -> None:
    """Put the beginning and end tokens around a prompt where the file asks for them; where it does not say, as the
    kind of vocabulary has it: SentencePiece and Llama 3 begin with BOS, GPT-2 does not."""
    begins = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in LLAMA3_NAMES
    wanted = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", begins),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    ends: dict[str, tuple[str, int]] = {}
    for name, wants in wanted.items():
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if wants and index is not None:
            ends[name] = (tokens[int(index)], int(index))
    if ends:
        before = [ends["bos"][0]] if "bos" in ends else []
        after = [ends["eos"][0]] if "eos" in ends else []
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=None, special_tokens=list(ends.values())
        )
