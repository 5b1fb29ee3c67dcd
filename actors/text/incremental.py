"""Text of one request as its tokens arrive.

The deltas, with what `flush` returns at the end, concatenate to the text of all tokens decoded at once. Where a
vocabulary has a byte table that holds by construction: bytes that do not yet make a whole character wait (at most three
of them), and what is still incomplete at the end becomes U+FFFD. Other decoders look at neighbouring tokens, so a
short window is decoded again with each token, as text-generation-inference introduced it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from pawl.actors.text.vocabulary import Vocabulary

MAX_WINDOW = 32
"""Tokens a `WindowDecoder` holds back for a character that does not complete; bounds its memory."""


MOST_HELD = 3
"""Bytes that may wait for the rest of their character."""


class Decoder(Protocol):
    def follow(self, prompt: Sequence[int]) -> None:
        """Go on from these tokens, whose whole characters were shown before, where that is known to be a matter of
        bytes."""

    def push(self, token: int) -> str:
        """Text that this token completes; may be empty."""

    def flush(self) -> str:
        """What was held back, at the end of the request."""


def unfinished(
    prompt: Sequence[int], token_bytes: Callable[[int], bytes], hidden: Collection[int]
) -> tuple[list[int], bytes]:
    """The last tokens of a prompt that ends within a character, and the bytes that this has so far; nothing where the
    prompt ends with one."""
    last, data = list[int](), b""
    for token in reversed(prompt):
        if token not in hidden:
            last, data = [token, *last], token_bytes(token) + data
        if len(data) >= MOST_HELD:
            break
    _, used = codecs.utf_8_decode(data, "replace", False)
    return (last, data[used:]) if used < len(data) else ([], b"")


def decoder_for(
    vocabulary: Vocabulary, skip_special: bool = True, spaces_between_special_tokens: bool = True
) -> Decoder:
    """The exact decoder where the vocabulary allows it, else the window decoder."""
    if vocabulary.byte_table is not None:
        return ByteDecoder(vocabulary, skip_special)
    return WindowDecoder(vocabulary, skip_special, spaces_between_special_tokens)


class SilentDecoder:
    """For requests that want token ids only."""

    __slots__ = ()

    def follow(self, prompt: Sequence[int]) -> None: ...

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class ByteDecoder:
    """Exact: joins the bytes of tokens. No space is ever put between tokens, special or not."""

    __slots__ = ("_entries", "_hidden", "_pending", "_texts")

    def __init__(self, vocabulary: Vocabulary, skip_special: bool = True) -> None:
        if vocabulary.byte_table is None:
            raise ValueError("this vocabulary has no byte table")
        self._hidden = vocabulary.special_ids if skip_special else frozenset[int]()
        self._texts = vocabulary.visible_texts if skip_special else vocabulary.whole_texts
        self._entries = vocabulary.byte_table.entries
        self._pending = b""

    def follow(self, prompt: Sequence[int]) -> None:
        _, self._pending = unfinished(prompt, self._entries.__getitem__, self._hidden)

    def push(self, token: int) -> str:
        text = self._texts[token]
        if not self._pending and text is not None:
            return text
        if text == "":  # a hidden or textless token stands between two halves of a character: it does not part them
            return ""
        waiting = self._pending + self._entries[token]
        text, used = codecs.utf_8_decode(waiting, "replace", False)
        self._pending = waiting[used:]
        return text

    def flush(self) -> str:
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text


class WindowDecoder:
    """Decodes a window of tokens with and without the newest and takes the difference.

    The window begins at the tokens of the previous delta, so a decoder may depend on one visible neighbour. With
    `spaces_between_special_tokens` off, a special token that follows another is written as it is, without the space
    that the decoder would put between them.
    """

    __slots__ = ("_ids", "_num_shown", "_skip", "_special_last", "_tight", "_vocabulary")

    def __init__(
        self, vocabulary: Vocabulary, skip_special: bool = True, spaces_between_special_tokens: bool = True
    ) -> None:
        self._vocabulary = vocabulary
        self._skip = skip_special
        self._tight = not spaces_between_special_tokens
        self._special_last = False
        self._ids: list[int] = []
        self._num_shown = 0

    def follow(self, prompt: Sequence[int]) -> None: ...

    def push(self, token: int) -> str:
        special = token in self._vocabulary.special_ids
        if special and self._skip:
            return ""
        follows_special, self._special_last = self._special_last, special
        if self._tight and special and follows_special:
            held = self.flush()
            self._ids, self._num_shown = [token], 1
            return held + self._vocabulary.token_text(token)
        self._ids.append(token)
        text = self._new_text()
        if text.endswith("\ufffd") and len(self._ids) - self._num_shown < MAX_WINDOW:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._new_text())

    def _new_text(self) -> str:
        shown = self._vocabulary.decode(self._ids[: self._num_shown], skip_special=False)
        return self._vocabulary.decode(self._ids, skip_special=False)[len(shown) :]

    def _show(self, text: str) -> str:
        if text:
            del self._ids[: self._num_shown]
            self._num_shown = len(self._ids)
        return text
