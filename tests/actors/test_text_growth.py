"""A tokenizer that a stranger wrote makes a text a few times as long, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers

from pawl.actors.text.conversion import UnsupportedVocabulary
from pawl.actors.text.growth import MOST_GROWTH, growth
from pawl.actors.text.vocabulary import Vocabulary
from tests.actors.vocabularies import byte_level

MARK = "\u2581"
DOUBLE = normalizers.Replace("a", "aa")
LLAMA = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])


def tokenizer(normalizer: Any = None, decoder: Any = None) -> Tokenizer:
    made = Tokenizer.from_str(byte_level().tokenizer.to_str())
    if normalizer is not None:
        made.normalizer = normalizer
    if decoder is not None:
        made.decoder = decoder
    return made


@pytest.mark.parametrize(
    ("made", "times"),
    [
        (tokenizer(), 1.0),
        (tokenizer(LLAMA), 12.0),
        (tokenizer(normalizers.Sequence([normalizers.Sequence([DOUBLE] * 3), DOUBLE])), 16.0),
        (tokenizer(normalizers.Replace(Regex(" {2,}"), MARK)), 4.0),
        (tokenizer(normalizers.Replace("long", "a")), 1.0),
        (tokenizer(decoder=decoders.Sequence([decoders.Replace(MARK, " "), decoders.Fuse()])), 1.0),
        (tokenizer(decoder=decoders.Sequence([decoders.Replace("a", "bbb"), decoders.Replace("b", "aa")])), 6.0),
    ],
)
def test_what_is_replaced_one_after_the_other_multiplies(made: Tokenizer, times: float) -> None:
    assert growth(made) == times


def test_a_tokenizer_that_would_make_terabytes_of_a_word_is_refused(tmp_path: Path) -> None:
    file, whole = tmp_path / "tokenizer.json", json.loads(tokenizer(LLAMA).to_str())
    file.write_text(json.dumps(whole))
    assert Vocabulary.load(tmp_path).size
    whole["normalizer"]["normalizers"] += [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40
    file.write_text(json.dumps(whole))
    with pytest.raises(UnsupportedVocabulary, match=f"as long; {MOST_GROWTH} is the most"):
        Vocabulary.load(tmp_path)


def test_a_tokenizer_that_panics_at_any_text_is_refused_and_one_that_panics_at_some_is_an_exception(
    tmp_path: Path,
) -> None:
    file, whole = tmp_path / "tokenizer.json", json.loads(tokenizer().to_str())
    single = [{"SpecialToken": {"id": "nobody", "type_id": 0}}]
    whole["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {}}
    file.write_text(json.dumps(whole))
    with pytest.raises(UnsupportedVocabulary, match="cannot be read"):
        Vocabulary.load(tmp_path)
    vocabulary = Vocabulary(Tokenizer.from_str(file.read_text()), eos_ids=(0,))
    with pytest.raises(RuntimeError, match="fails on a text"):
        vocabulary.encode("a")
