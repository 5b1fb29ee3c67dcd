"""The one place that decides which library keeps output to a grammar."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import cast

from pawl.gpu.grammars.base import GrammarBackend, Words
from pawl.gpu.grammars.compiling import PATIENT_SECONDS

BACKENDS: dict[str, tuple[str, str, str | None]] = {
    "xgrammar": ("pawl.gpu.grammars.xgrammar", "XGrammar", "xgrammar"),
    "llguidance": ("pawl.gpu.grammars.llguidance", "LLGuidance", "llguidance"),
    "plain": ("pawl.gpu.grammars.plain", "Plain", None),
}
"""Name -> module, class, and the package that it needs; the first that is there is `auto`."""


def choose_backend(name: str, *, patient: bool = False) -> tuple[str, Callable[[Words], GrammarBackend]]:
    """The backend of this name, or `auto`: its name, and what makes it; a `patient` one takes its time. Raises
    ImportError where its package is not installed."""
    if name == "auto":
        name = next(name for name, (_, _, package) in BACKENDS.items() if package is None or find_spec(package))
    package = BACKENDS[name][2]
    if package is not None and find_spec(package) is None:
        raise ImportError(f"pip install {package}")
    return name, partial(_made, name, patient)


def _made(name: str, patient: bool, words: Words) -> GrammarBackend:
    module, kind, _ = BACKENDS[name]
    more = {"seconds": PATIENT_SECONDS} if patient and name != "plain" else {}
    return cast(GrammarBackend, getattr(importlib.import_module(module), kind)(words, **more))
