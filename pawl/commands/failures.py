"""Which failures are the user's to mend. They are told in one line; everything else is a defect of ours."""

from __future__ import annotations

import sys
from collections.abc import Mapping

MOST_TOLD = 1000
"""Characters of one failure: those of a stranger's file may be quoted in it."""
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOTHING_JUDGED = 4
"""Apart from every verdict: nothing was judged, shown or repeated."""

USAGE = {"pawl.config": ("ConfigError",), "pawl.commands.failures": ("UsageError",)}
FAILURES = {
    "pawl.commands.failures": ("CommandFailed",),
    "pawl.bench.client": ("HttpError",),
    "pawl.engine": ("EngineFailed", "RequestFailed"),
    "pawl.build.hosts.host": ("ReplicaFailed",),
    "pawl.gpu.weights.locate": ("ModelNotFound",),
    "pawl.gpu.weights.gguf": ("GgufFormatError",),
    "pawl.gpu.weights.safetensors": ("FolderError",),
    "pawl.gpu.weights.checks": ("WeightMismatch",),
    "pawl.gpu.weights.finite": ("NotFinite",),
    "pawl.gpu.models.config": ("UnsupportedModel",),
    "pawl.gpu.alone": ("NoScores",),
    "pawl.gpu.backend": ("BackendUnavailable",),
    "pawl.gpu.kv": ("KvDoesNotFit",),
    "pawl.gpu.parallel.ranks": ("RankLost", "StartRefused", "HostGone"),
    "pawl.lifecycle.recompute": ("CannotRecompute",),
    "pawl.gpu.cuda.memory": ("ModelDoesNotFit", "WeightsDoNotFit"),
    "pawl.actors.runtime.processes.keys": ("KeysUnusable",),
    "pawl.actors.tiers.files": ("StorageUnusable",),
    "pawl.actors.text.conversion": ("UnsupportedVocabulary",),
    "pawl.actors.text.invalid": ("InvalidRequest",),
}
"""Module -> its classes. By name: what was never imported cannot have been raised, and importing it costs seconds."""


class UsageError(Exception):
    """Arguments that argparse cannot check, such as two that do not go together."""


class CommandFailed(Exception):
    """A command could not do its work; the message says why and what to change."""


class NothingJudged(Exception):
    """There was nothing to judge a trace by."""


class NoTrace(NothingJudged):
    """There is no trace to read, or none that this version of Pawl can read."""


def exit_status(error: Exception) -> int | None:
    """The status to exit with after telling the user about `error`; None for a defect."""
    if isinstance(error, _classes(USAGE)):
        return EXIT_USAGE
    if isinstance(error, NothingJudged):
        return EXIT_NOTHING_JUDGED
    if isinstance(error, (OSError, MemoryError, *_classes(FAILURES))):
        return EXIT_FAILED
    return None


def _classes(names: Mapping[str, tuple[str, ...]]) -> tuple[type[Exception], ...]:
    loaded = ((sys.modules[module], classes) for module, classes in names.items() if module in sys.modules)
    return tuple(getattr(module, name) for module, classes in loaded for name in classes)


def told(error: Exception) -> str:
    """The words of a failure, in one line."""
    words = printable(" ".join(str(error).split()))
    if isinstance(error, MemoryError):
        words = f"there is not enough memory: {words or 'give it less to hold'}"
    return words if len(words) <= MOST_TOLD else f"{words[:MOST_TOLD]}…"


def printable(text: str) -> str:
    """The same, in as many lines, without what a terminal would obey: what strangers wrote is in traces and models."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)
