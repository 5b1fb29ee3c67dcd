"""The grammars of a served model: its vocabulary in bytes, and the backend that compiles for it."""

from __future__ import annotations

import structlog

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.vocabulary import Vocabulary
from pawl.config import ConfigError
from pawl.gpu.grammars.base import GrammarRefused, Matcher, Words, is_stuck
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.select import choose_backend
from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.properties.grammar import Fold, NoFold
from pawl.lifecycle.properties.start import GHOST
from pawl.lifecycle.records import Started

log = structlog.get_logger("pawl.build.grammars")


def make_grammars(
    backend: str, vocabulary: Vocabulary, *, eager: bool = False, patient: bool = False
) -> Grammars | None:
    """None where the vocabulary's text is not the bytes of its tokens one after the other, or it has no end token: then
    requests with grammars are refused. `eager`: its library is loaded at the start; `patient`: nobody waits for what is
    compiled. Raises ConfigError for a backend that is not installed."""
    words = words_of(vocabulary)
    if words is None:
        log.info("no grammars", reason="the tokens of this model have no bytes of their own, or none ends an output")
        return None
    try:
        return Grammars(*choose_backend(backend, patient=patient), words, eager=eager)
    except ImportError as error:
        raise ConfigError(f"grammar_backend: {backend} is not installed ({error})", "grammar_backend") from error


class Followed:
    """`Fold`: a matcher, and the vocabulary whose masks it fills."""

    def __init__(self, matcher: Matcher, words: Words) -> None:
        self._matcher = matcher
        self._words = words

    def accept(self, token: int) -> bool:
        return self._matcher.accept(token)

    @property
    def stuck(self) -> bool:
        return not self._matcher.terminated and is_stuck(self._matcher, self._words)


class Folds:
    """`Begin` of recorded runs: the vocabulary of the model that each names, if it is still there."""

    def __init__(self, model: str | None = None) -> None:
        """`model`: where the vocabulary is; None: where the run had it."""
        self._model = model
        self._grammars: Grammars | None = None

    def __call__(self, started: Started, grammar: Grammar) -> Fold:
        """See `Begin`."""
        grammars = self.grammars(started)
        try:
            return Followed(grammars.get(grammar).matcher(), grammars.words)
        except GrammarRefused as error:
            raise NoFold(str(error)) from error

    def grammars(self, started: Started) -> Grammars:
        """Those of the run's vocabulary, loaded once. Raises NoFold."""
        if self._grammars is None:
            self._grammars = self._found(started)
        return self._grammars

    def _found(self, started: Started) -> Grammars:
        named, backend = (str(started.config.get(name, "")) for name in ("model", "grammar_backend"))
        try:
            grammars = make_grammars(backend, self._vocabulary(self._model or named), patient=True)
        except Exception as error:  # whatever a folder of a model can be
            raise NoFold(f"the vocabulary of {self._model or named} cannot be had: {error!s:.200}") from error
        if grammars is None or grammars.words.fingerprint() != started.config.get("vocabulary"):
            raise NoFold(f"{self._model or named} has another vocabulary than the run")
        return grammars

    def _vocabulary(self, model: str) -> Vocabulary:
        if model == GHOST:
            return ghost_vocabulary()
        from pawl.gpu.weights.source import resolve_source

        source = resolve_source(model)
        return Vocabulary.load(source.path, source.config.vocab_size)


def words_of(vocabulary: Vocabulary) -> Words | None:
    """The vocabulary as grammars see it: special tokens are no text."""
    table = vocabulary.byte_table
    if table is None or not vocabulary.eos_ids:
        return None
    special = vocabulary.special_ids
    entries = [b"" if token in special else entry for token, entry in enumerate(table.entries)]
    return Words(entries[: vocabulary.num_embeddings], vocabulary.eos_ids)
