"""Which decoders write the bytes of tokens one behind another, and which bytes those are."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models

from pawl.actors.text.byte_table import build_byte_table, byte_alphabet

TOKENS = ["▁a", "b▁c", "<0x41>", "Ġd"]
MARKED = [b" a", b"b c", b"<0x41>", "Ġd".encode(), b" e", b""]
MARKED_BYTES = [*MARKED[:2], b"A", *MARKED[3:]]
AS_BYTES = ["▁a".encode(), "b▁c".encode(), b"<0x41>", b" d", "▁e".encode(), b""]


def of(*last: Any, mark: Any = "▁", space: str = " ") -> Any:
    """A decoder of SentencePiece's tokens, which ends with these stages."""
    return decoders.Sequence([decoders.Replace(mark, space), decoders.ByteFallback(), decoders.Fuse(), *last])


@pytest.mark.parametrize(
    ("decoder", "table"),
    [
        (decoders.ByteLevel(), (AS_BYTES, False)),
        (decoders.Metaspace(), (MARKED, True)),
        (decoders.Metaspace(prepend_scheme="never"), (MARKED, False)),
        (decoders.Metaspace(replacement="b"), ([t.replace("b", " ").encode() for t in [*TOKENS, "▁e"]] + [b""], True)),
        (of(), (MARKED_BYTES, False)),
        (of(decoders.Strip(" ", 1, 0)), (MARKED_BYTES, True)),
        (of(decoders.Strip(" ", 2, 0)), None),
        (of(decoders.Strip(" ", 1, 1)), None),
        (of(decoders.Strip("a", 1, 0)), None),
        (of(decoders.Fuse()), None),
        (of(space="_"), None),
        (of(mark=Regex("▁")), None),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), None),
        (decoders.WordPiece(), None),
        (None, None),
    ],
)
def test_a_decoder_has_a_table_where_it_joins_bytes_and_changes_none(decoder: Any, table: Any) -> None:
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="▁a"))
    tokenizer.add_tokens([AddedToken("▁e", normalized=False)])
    if decoder is not None:
        tokenizer.decoder = decoder
    assert build_byte_table(tokenizer, 6) == table


def test_every_byte_has_a_character_of_its_own_that_can_be_seen() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet.values())) == len(alphabet) == 256
    assert all(character.isprintable() and not character.isspace() for character in alphabet.values())
    assert [alphabet[byte] for byte in (ord("a"), 0, 0x20, 0xAD)] == ["a", "Ā", "Ġ", "Ń"]
