"""How a folder of sentence-transformers says that its vectors are made: `modules.json` and what it names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pawl.gpu.pooling import Pooling, PoolingKind
from pawl.gpu.weights.safetensors import FolderError
from pawl.gpu.weights.strangers import read_list, read_object, reading

MODULES = "modules.json"
_KINDS: dict[str, PoolingKind] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}


def folder_pooling(folder: Path) -> Pooling | None:
    """What the folder says; None where it says nothing. Raises FolderError for what is not computed here."""
    refusal = partial(FolderError, folder)
    if not (folder / MODULES).is_file():
        return None
    modules = read_list(folder / MODULES, refusal)
    with reading(MODULES, refusal):
        kinds = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    known = ("Transformer", "Pooling", "Normalize")
    for kind, path in kinds:
        if kind not in known:
            raise refusal(f"{MODULES} names a module {kind[:60]!r}; known: {', '.join(known)}")
        # The file comes with the model, and so from anywhere.
        if path and (Path(path).name != path or path in (".", "..")):
            raise refusal(f"{MODULES} names a folder outside of it")
    paths = [path for kind, path in kinds if kind == "Pooling"]
    if not paths:
        return None
    values = read_object(folder / paths[0] / "config.json", refusal)
    return Pooling(_kind(values, refusal), normalised=any(kind == "Normalize" for kind, _ in kinds))


def longest_text(folder: Path) -> int | None:
    """Tokens of a text that the folder says its vectors are made for; None where it says nothing."""
    refusal = partial(FolderError, folder)
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    length = read_object(path, refusal).get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise refusal(f"{path.name}: max_seq_length is {str(length)[:60]}, not a number of tokens")
    return length


def _kind(values: dict[str, Any], refusal: partial[FolderError]) -> PoolingKind:
    """Newer files name it, older ones have a flag for each kind."""
    named = values.get("pooling_mode")
    flags = [f"pooling_mode_{named}", f"pooling_mode_{named}_token", f"pooling_mode_{named}_tokens"] if named else []
    flags += [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    chosen = {_KINDS.get(flag) for flag in flags if flag in _KINDS or not named}
    if len(chosen) != 1 or None in chosen:
        raise refusal(f"it pools by {', '.join(flags)[:120] or 'nothing'}; known: {', '.join(_KINDS)}")
    return next(kind for kind in chosen if kind is not None)
