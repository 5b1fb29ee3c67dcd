"""The bytes of each token, for tokenizers whose text is the plain concatenation of them.

Byte-level BPE writes each byte as one printable character; SentencePiece writes a space as U+2581 and a byte that no
piece covers as `<0xNN>`. For both the text of a token sequence is its bytes joined and read as UTF-8, which makes
streaming exact. Other decoders (WordPiece, CTC) look at neighbours and have no such table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tokenizers import Tokenizer

SPACE_MARK = "\u2581"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ByteTable(NamedTuple):
    """`entries[id]` are the bytes of token id; empty where no token has that id."""

    entries: list[bytes]
    strips_first_space: bool
    """The tokenizer puts a space before the first word of a text, and takes it away again when it decodes."""


def build_byte_table(tokenizer: Tokenizer, size: int) -> ByteTable | None:
    """The table of `size` entries, or None when the tokenizer's decoder is not a plain concatenation."""
    stages = _decoder_stages(tokenizer)
    kinds = [stage["type"] for stage in stages]
    if kinds == ["ByteLevel"]:
        # Added tokens are found in the raw text, so they are their own text, not an alphabet of bytes.
        return ByteTable(_entries(tokenizer, size, _byte_level_reader(), str.encode), False)
    if kinds == ["Metaspace"]:
        reader = _mark_reader(stages[0]["replacement"], byte_fallback=False)
        return ByteTable(_entries(tokenizer, size, reader, reader), stages[0].get("prepend_scheme") != "never")
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        strip = stages[3] if len(stages) == 4 else None
        plain = stages[0].get("content") == " " and "String" in stages[0].get("pattern", {})
        strips_one = strip is None or (strip["content"], strip["start"], strip["stop"]) == (" ", 1, 0)
        if plain and strips_one:
            reader = _mark_reader(stages[0]["pattern"]["String"], byte_fallback=True)
            return ByteTable(_entries(tokenizer, size, reader, reader), strip is not None)
    return None


def _decoder_stages(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if tokenizer.decoder is None:
        return []
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    stages: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    return stages


def _entries(
    tokenizer: Tokenizer, size: int, read: Callable[[str], bytes], read_added: Callable[[str], bytes]
) -> list[bytes]:
    entries = [b""] * size
    for token, index in tokenizer.get_vocab(with_added_tokens=False).items():
        entries[index] = read(token)
    for index, added in tokenizer.get_added_tokens_decoder().items():
        entries[index] = read_added(added.content)
    return entries


def byte_alphabet() -> dict[int, str]:
    """GPT-2's alphabet, the character of each byte: a printable Latin-1 character stands for its own byte; the other
    bytes, in rising order, are the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def _byte_level_reader() -> Callable[[str], bytes]:
    alphabet = {ord(character): byte for byte, character in byte_alphabet().items()}
    to_latin1 = {character: chr(byte) for character, byte in alphabet.items() if character != byte}

    def read(token: str) -> bytes:
        if all(ord(character) in alphabet for character in token):
            return token.translate(to_latin1).encode("latin-1")
        return token.encode()

    return read


def _mark_reader(mark: str, byte_fallback: bool) -> Callable[[str], bytes]:
    def read(token: str) -> bytes:
        if byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.replace(mark, " ").encode()

    return read
