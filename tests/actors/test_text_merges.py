"""Vocabularies as a GGUF file describes them: which merges follow from scores, and what holds where it does not say."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.text.conversion import (
    TOKEN_CONTROL,
    TOKEN_NORMAL,
    TOKEN_USER_DEFINED,
    UnsupportedVocabulary,
    _merges_from_scores,
    tokenizer_from_gguf,
)
from tests.actors.vocabularies import byte_level_metadata, sentencepiece_metadata


def merges(**scores: float | None) -> list[str]:
    """Of tokens with these scores; those without are no pieces."""
    tokens = list(scores)
    types = [TOKEN_CONTROL if score is None else TOKEN_NORMAL for score in scores.values()]
    numbers = [score or 0.0 for score in scores.values()]
    found = _merges_from_scores({token: index for index, token in enumerate(tokens)}, tokens, types, numbers)
    return ["+".join(pair) for pair in found]


def test_every_way_to_cut_a_piece_in_two_pieces_is_a_merge_the_best_pieces_first() -> None:
    assert merges(a=0.0, b=0.0, c=0.0, ab=-2.0, bc=-3.0, abc=-1.0) == ["a+bc", "ab+c", "a+b", "b+c"]
    assert merges(a=0.0, bc=-3.0, c=0.0, ab=-2.0, b=0.0, abc=-4.0) == ["a+b", "b+c", "a+bc", "ab+c"]


def test_of_the_ways_to_cut_one_piece_that_of_the_older_pieces_is_first() -> None:
    assert merges(ab=-2.0, c=0.0, bc=-2.0, a=0.0, abc=-1.0) == ["ab+c", "a+bc"]
    assert merges(aab=-2.0, aa=-3.0, bb=-3.0, a=0.0, b=0.0, abb=-3.0, aabb=-1.0)[:3] == ["aab+b", "aa+bb", "a+abb"]


def test_pieces_of_one_score_are_merged_in_their_order_and_what_is_no_piece_is_in_no_merge() -> None:
    assert merges(a=0.0, b=0.0, ba=-1.0, ab=-1.0) == ["b+a", "a+b"]
    assert merges(a=0.0, b=None, ab=-1.0, aa=-2.0) == ["a+a"]
    assert merges(a=0.0, b=0.0, ab=None) == []
    assert merges(aaaa=-1.0, aa=-2.0, a=0.0) == ["aa+aa", "a+a"]


SAID: list[tuple[Any, str, Any, Any]] = [
    (sentencepiece_metadata, "add_space_prefix", True, False),
    (sentencepiece_metadata, "add_bos_token", True, False),
    (sentencepiece_metadata, "add_eos_token", False, True),
    (sentencepiece_metadata, "bos_token_id", None, 1),
    (sentencepiece_metadata, "unknown_token_id", None, 0),
    (byte_level_metadata, "add_bos_token", False, True),
    (byte_level_metadata, "add_eos_token", False, True),
    (byte_level_metadata, "pre", "default", "llama-bpe"),
]


@pytest.mark.parametrize(
    ("made", "key", "silent", "other"), SAID, ids=lambda each: getattr(each, "__name__", str(each))
)
def test_where_a_file_does_not_say_something_that_holds_which_its_kind_has(
    made: Any, key: str, silent: Any, other: Any
) -> None:
    name = f"tokenizer.ggml.{key}"
    ends = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    whole = {**made(**ends), name: silent}
    nothing = {each: value for each, value in whole.items() if each != name}
    said = tokenizer_from_gguf({**whole, name: other}).to_str()
    if silent is not None:
        assert tokenizer_from_gguf(whole).to_str() == tokenizer_from_gguf(nothing).to_str()
    assert said != tokenizer_from_gguf(nothing).to_str()


def test_tokens_of_no_kind_are_pieces_and_those_of_the_maker_are_found_whole() -> None:
    metadata = sentencepiece_metadata()
    tokens, types = metadata["tokenizer.ggml.tokens"], list(metadata["tokenizer.ggml.token_type"])
    types[tokens.index("cab")] = TOKEN_USER_DEFINED
    plain, made = tokenizer_from_gguf(metadata), tokenizer_from_gguf(metadata | {"tokenizer.ggml.token_type": types})
    assert plain.get_added_tokens_decoder().keys() == {0, 1, 2, 3}
    added = made.get_added_tokens_decoder()
    assert {index: each.special for index, each in added.items()} == {
        0: True,
        1: True,
        2: True,
        3: False,
        tokens.index("cab"): False,
    }
    assert made.encode("bcabc", add_special_tokens=False).tokens == ["b", "cab", "c"]
    kindless = tokenizer_from_gguf({k: v for k, v in metadata.items() if not k.endswith("token_type")})
    assert kindless.get_added_tokens_decoder() == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "martian"}, r"the GGUF vocabulary kind 'martian' is not supported"),
        ({"tokens": []}, "holds no vocabulary"),
        ({"tokens": None}, "holds no vocabulary"),
        ({"scores": None}, "no score for each token"),
        ({"scores": [0.0]}, "no score for each token"),
    ],
)
def test_what_is_no_vocabulary_is_refused(change: dict[str, Any], words: str) -> None:
    change = {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(UnsupportedVocabulary, match=words):
        tokenizer_from_gguf(sentencepiece_metadata(**change))
