"""The grammars of a served model: its vocabulary in bytes, and the backend that compiles for it."""

from __future__ import annotations

import structlog

from pawl.actors.text.vocabulary import Vocabulary
from pawl.config import ConfigError
from pawl.gpu.grammars.base import Words
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.select import choose_backend

log = structlog.get_logger("pawl.build.grammars")


def make_grammars(backend: str, vocabulary: Vocabulary) -> Grammars | None:
    """None where the vocabulary's text is not the bytes of its tokens one after the other, or it has no end token: then
    requests with grammars are refused. Raises ConfigError for a backend that is not installed."""
    words = words_of(vocabulary)
    if words is None:
        log.info("no grammars", reason="the tokens of this model have no bytes of their own, or none ends an output")
        return None
    try:
        return Grammars(choose_backend(backend), words)
    except ImportError as error:
        raise ConfigError(f"grammar_backend: {backend} is not installed ({error})", "grammar_backend") from error


def words_of(vocabulary: Vocabulary) -> Words | None:
    """The vocabulary as grammars see it: special tokens are no text."""
    table = vocabulary.byte_table
    if table is None or not vocabulary.eos_ids:
        return None
    special = vocabulary.special_ids
    entries = [b"" if token in special else entry for token, entry in enumerate(table.entries)]
    return Words(entries[: vocabulary.num_embeddings], vocabulary.eos_ids)
