"""A prompt's text that is shown before its completion, which may begin within a character."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pawl.actors.text.incremental import unfinished
from pawl.http.info import Tokenization


def whole_text(prompt: Sequence[int], tokenization: Tokenization, hides_special: bool) -> str:
    """The text of a prompt without the character that it ends within: the completion begins with that."""
    text = tokenization.decode(prompt, hides_special)
    begun, _ = unfinished(prompt, tokenization.token_bytes, _hidden(tokenization, hides_special))
    return text[:-1] if begun else text


def text_after(
    prompt: Sequence[int], completion: Sequence[int], tokenization: Tokenization, hides_special: bool
) -> str:
    """The text of a completion, with the character that the prompt ends within."""
    begun, _ = unfinished(prompt, tokenization.token_bytes, _hidden(tokenization, hides_special))
    text = tokenization.decode([*begun, *completion], hides_special)
    return text[len(tokenization.decode(begun, hides_special)) - 1 :] if begun else text


def _hidden(tokenization: Tokenization, hides_special: bool) -> Collection[int]:
    return tokenization.special_ids if hides_special else ()
