"""What the ghost says: its token ids, and from what it has read to the next token.

    0 .. 255    the bytes
    256 .. 258  the first bytes of some characters, so that a character is two tokens
    259, 260    specials: a turn begins, a turn ends

A state is 64 bits that depend on every token so far. The likeliest token follows from it by a table of letters as
frequent as in English. After a token that opens a character comes a byte that completes it: the text is valid UTF-8
wherever it is not cut. All other logits are a hash of (state, token), so every sampling parameter has something to do.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.sampling.mixing import UInt64s, mix64
from pawl.gpu.step_runner import AdapterRefused

Float32s: TypeAlias = NDArray[np.float32]
Int32s: TypeAlias = NDArray[np.int32]

PIECES = (b"\xf0\x9f", b"\xf0\x9f\x98", b"\xe2\x82")
"""Tokens from 256 on. The first two begin emoji, the last one signs of currencies and small digits."""
SPECIALS = ("<|start|>", "<|end|>")
START_TOKEN = 256 + len(PIECES)
END_TOKEN = START_TOKEN + 1
VOCABULARY_SIZE = END_TOKEN + 1
MAX_POSITION = 32_768
"""Tokens of one request. Nothing in the ghost ends there; the scheduler keeps a row of this width for each request."""

_OPENERS = (0xC3, 257, 258)
"""Tokens after which any byte from 0x80 to 0xBF completes a character."""
_LETTERS = " " * 38 + "e" * 24 + "t" * 18 + "a" * 17 + "o" * 16 + "i" * 15 + "n" * 15 + "srh" * 13 + "ld" * 9 + "u" * 7
_LETTERS += "c" * 6 + "mf" * 5 + "wgyp" * 4 + "b" * 3 + "vvk"
_PEAK, _SPREAD, _UNLIKELY, _NEVER = 5.5, 4.0, -12.0, -40.0
"""Logits: of the likeliest token; of the others that make sense, between 0 and the second; of the rest; of specials."""
_CHOICE = np.uint64(0xA0761D6478BD642F)
_TOKEN_STRIDE = np.uint64(0xE7037ED1A0B428DB)
_INVERSE_24 = np.float32(2.0**-24)


def adapter_salt_of(source: str) -> int:
    """What an adapter of a ghost adds to where it begins to count, 64 bits; they are called `ghost:NAME`. Raises
    AdapterRefused for anything else."""
    kind, _, name = source.partition(":")
    if kind != "ghost" or not name:
        raise AdapterRefused(f"a ghost's adapters are called ghost:NAME, and not {source!r}")
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=b"adapter").digest())


def _likeliest_tokens() -> Int32s:
    """For each byte of a choice and [nothing, a character] open: the token, int32 [2, 256]."""
    others = [*[0xC3] * 4, 257, 258, *b"..,,\n"]
    usual = [*_LETTERS.encode(), *others]
    return np.array([usual, [0x80 + choice % 64 for choice in range(256)]], np.int32)


def _floors() -> Float32s:
    """The least logit of each token with [nothing, a character] open, float32 [2, VOCABULARY_SIZE]."""
    floors = np.full((2, VOCABULARY_SIZE), _UNLIKELY, np.float32)
    floors[0, 0x20:0x7F] = 0.0
    floors[0, [ord("\n"), *_OPENERS]] = 0.0
    floors[1, 0x80:0xC0] = 0.0
    floors[:, START_TOKEN:] = _NEVER
    return floors


_LIKELIEST = _likeliest_tokens()
_FLOORS = _floors()
_OPENS = np.isin(np.arange(VOCABULARY_SIZE), _OPENERS).astype(np.intp)
_TOKEN_WORDS: UInt64s = np.arange(1, VOCABULARY_SIZE + 1, dtype=np.uint64) * _TOKEN_STRIDE


def likeliest(states: UInt64s, last_tokens: Int32s) -> Int32s:
    """The token of largest logit for each row, int32 [n], from its state and the token it was fed last."""
    choices = mix64(states ^ _CHOICE)
    tokens: Int32s = _LIKELIEST[_OPENS[last_tokens], (choices & np.uint64(0xFF)).astype(np.intp)]
    return tokens


def logits_of(states: UInt64s, last_tokens: Int32s) -> Float32s:
    """float32 [n, VOCABULARY_SIZE], finite, each row a function of its own state and last token."""
    words = mix64(states[:, None] ^ _TOKEN_WORDS)
    uniform = (words >> np.uint64(40)).astype(np.float32) * _INVERSE_24
    logits = _FLOORS[_OPENS[last_tokens]] + uniform * np.float32(_SPREAD)
    logits[np.arange(len(states)), likeliest(states, last_tokens)] = _PEAK
    return logits
