"""xgrammar is loaded without PyTorch, and whoever loads PyTorch meanwhile gets it, and not what stands in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE_S = 180.0
LIBRARIES = {
    "torch": "value = 'the real one'\nclass Tensor: pass\n",
    "transformers": "value = 'the real one'\nclass PreTrainedTokenizerBase: pass\n",
    # Each stops in its middle until the other thread has done what it wants to.
    "tvm_ffi": """
try:
    import torch
except ImportError:
    torch = None
import halted
halted.at("tvm_ffi")
""",
    "xgrammar": """
import torch
import halted
from transformers import PreTrainedTokenizerBase
halted.at("xgrammar")
import torch as again
from torch import Tensor
try:
    import torch.nn as nn
except ImportError:
    nn = None
""",
    "halted": """
import threading
where, reached, go_on = "", threading.Event(), threading.Event()
def at(name):
    if name == where:
        reached.set()
        assert go_on.wait(180.0)
""",
}
SCRIPT = """
import builtins, sys, threading
import halted
from pawl.gpu.grammars.xgrammar import _library

plain, finders, halted.where, found = builtins.__import__, list(sys.meta_path), sys.argv[1], []
thread = threading.Thread(target=lambda: found.append(_library()))
thread.start()
if halted.where:
    assert halted.reached.wait(180.0)
    import torch
    import transformers
    assert torch.value == transformers.value == "the real one"
    halted.go_on.set()
thread.join()
(library,) = found
assert library is sys.modules["xgrammar"] is _library()
assert (builtins.__import__, sys.meta_path) == (plain, finders)
assert isinstance(library.Tensor, type) and isinstance(library.PreTrainedTokenizerBase, type)
assert library.nn is None
if halted.where:
    assert sys.modules["torch"] is torch and library.again is torch
    assert sys.modules["transformers"] is transformers
else:
    assert not {"torch", "transformers"} & sys.modules.keys()
print("done")
"""


@pytest.mark.parametrize("where", ["", "tvm_ffi", "xgrammar"])
def test_a_thread_that_imports_torch_while_xgrammar_is_loaded_gets_torch(where: str, tmp_path: Path) -> None:
    for name, text in LIBRARIES.items():
        (tmp_path / f"{name}.py").write_text(text)
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n{SCRIPT}", where]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
