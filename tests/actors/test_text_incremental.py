"""Text that is streamed token by token is the text of all tokens at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.text.incremental import MAX_WINDOW, ByteDecoder, Decoder, SilentDecoder, WindowDecoder, decoder_for
from pawl.http.echo import text_after, whole_text
from tests.actors.vocabularies import byte_level, sentencepiece, smollm2, untimed, wordpiece


def streamed(decoder: Decoder, ids: list[int]) -> str:
    return "".join([*(decoder.push(token) for token in ids), decoder.flush()])


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "smollm2", "wordpiece"])
@untimed
@given(data=st.data(), skip_special=st.booleans())
def test_deltas_concatenate_to_the_whole_text(name: str, data: st.DataObject, skip_special: bool) -> None:
    makers = {"byte_level": byte_level, "sentencepiece": sentencepiece, "smollm2": smollm2, "wordpiece": wordpiece}
    vocabulary = makers[name]()
    ids = data.draw(st.lists(st.integers(0, vocabulary.size - 1), max_size=30))
    assert streamed(decoder_for(vocabulary, skip_special), ids) == vocabulary.decode(ids, skip_special)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "smollm2"])
@untimed
@given(data=st.data(), skip_special=st.booleans())
def test_a_prompt_that_is_shown_and_what_follows_it_are_the_whole_text(
    name: str, data: st.DataObject, skip_special: bool
) -> None:
    """Wherever the prompt ends, within a character too."""
    vocabulary = {"byte_level": byte_level, "sentencepiece": sentencepiece, "smollm2": smollm2}[name]()
    text = data.draw(st.text(max_size=9))
    ids = vocabulary.encode(text, add_special=False).tolist()
    ids += data.draw(st.lists(st.integers(0, vocabulary.size - 1), max_size=12))
    end = data.draw(st.integers(0, len(ids)))
    decoder = decoder_for(vocabulary, skip_special)
    decoder.follow(ids[:end])
    shown = whole_text(ids[:end], vocabulary, skip_special)
    assert shown + streamed(decoder, ids[end:]) == vocabulary.decode(ids, skip_special)
    assert shown + text_after(ids[:end], ids[end:], vocabulary, skip_special) == vocabulary.decode(ids, skip_special)


@untimed
@given(st.text(max_size=20), st.booleans())
def test_a_streamed_text_never_shows_half_a_character(text: str, hidden: bool) -> None:
    vocabulary = byte_level()
    ids = vocabulary.encode(text, add_special=False).tolist()
    decoder = ByteDecoder(vocabulary, skip_special=hidden)
    deltas = [decoder.push(token) for token in ids]
    assert "".join(deltas).count("\ufffd") == vocabulary.decode(ids, hidden).count("\ufffd")
    assert decoder.flush() == ""


def test_an_incomplete_character_waits_and_ends_as_a_replacement() -> None:
    vocabulary = sentencepiece()
    euro = [vocabulary.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    decoder = ByteDecoder(vocabulary)
    assert [decoder.push(token) for token in euro] == ["", "", "€"]
    assert [decoder.push(token) for token in euro[:2]] == ["", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_a_hidden_token_between_the_halves_of_a_character_does_not_part_them() -> None:
    vocabulary = sentencepiece()
    euro = [vocabulary.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    assert streamed(ByteDecoder(vocabulary), [euro[0], 1, *euro[1:]]) == "€"
    assert streamed(ByteDecoder(vocabulary, skip_special=False), [euro[0], 1, *euro[1:]]) == "\ufffd<bos>\ufffd\ufffd"


def test_spaces_between_special_tokens_can_be_left_out() -> None:
    cls, sep, hello = 1, 2, 3
    vocabulary = wordpiece()
    ids = [hello, cls, sep, hello]
    assert streamed(decoder_for(vocabulary, skip_special=False), ids) == "hello [CLS] [SEP] hello"
    tight = decoder_for(vocabulary, skip_special=False, spaces_between_special_tokens=False)
    assert streamed(tight, ids) == "hello [CLS][SEP] hello"


def test_the_window_stays_short_however_long_the_output() -> None:
    vocabulary = byte_level()
    decoder = WindowDecoder(vocabulary)
    first_byte = vocabulary.encode("é", add_special=False).tolist()[0]
    for token in vocabulary.encode("hello world " * 50, add_special=False).tolist() + [first_byte] * 200:
        decoder.push(token)
        assert len(decoder._ids) <= 2 * MAX_WINDOW


def test_a_request_for_ids_alone_gets_no_text() -> None:
    assert streamed(SilentDecoder(), [1, 2, 3]) == ""


def test_a_byte_decoder_needs_a_byte_table() -> None:
    with pytest.raises(ValueError, match="byte table"):
        ByteDecoder(wordpiece())


@untimed
@given(st.lists(st.integers(0, 8), max_size=12))
def test_without_spaces_between_them_special_tokens_begin_anew_what_is_decoded(ids: list[int]) -> None:
    vocabulary = wordpiece()
    parts: list[list[int]] = [[]]
    for before, token in zip([0, *ids], ids, strict=False):
        if {before, token} <= vocabulary.special_ids:
            parts.append([])
        parts[-1].append(token)
    tight = decoder_for(vocabulary, skip_special=False, spaces_between_special_tokens=False)
    assert streamed(tight, ids) == "".join(vocabulary.decode(part, skip_special=False) for part in parts)
    hidden = decoder_for(vocabulary, skip_special=True, spaces_between_special_tokens=False)
    assert streamed(hidden, ids) == vocabulary.decode(ids, skip_special=True)


def test_a_window_shows_what_it_has_as_soon_as_it_is_whole_or_too_long() -> None:
    vocabulary = byte_level()
    first, second = (vocabulary.tokenizer.token_to_id(letter) for letter in "Ã©")  # the bytes of é
    (word,) = vocabulary.encode("hello", add_special=False).tolist()
    decoder = WindowDecoder(vocabulary)
    assert [decoder.push(token) for token in (word, first, second, word)] == ["hello", "", "é", "hello"]
    assert [len(decoder.push(first)) for _ in range(MAX_WINDOW)] == [0] * (MAX_WINDOW - 1) + [MAX_WINDOW]
    assert [decoder.push(first), decoder.push(word)] == ["", "\ufffdhello"]
