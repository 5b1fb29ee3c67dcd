"""What the sampler does with rows of logits: once in numpy, for logits on the host, and once in PyTorch."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from pawl.gpu.devices import Array, Device
from pawl.gpu.grammars.rows import Ruled
from pawl.gpu.sampling.draws import Scores
from pawl.gpu.sampling.parameters import DrawParameters
from pawl.gpu.sampling.rivals import Columns
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Int32s


class Penalties(Protocol):
    """What a request's own past does to its logits: repetition, presence and frequency penalties."""

    def reset(self) -> None:
        """Forget every slot."""

    def admit(self, slot: int, sampling: SamplingParameters, history: Int32s, num_prompt: int) -> None:
        """A new request in `slot`; `history` is its prompt (`num_prompt` tokens), then what it has drawn."""

    def apply(self, logits: Any, slots: Int32s) -> None:
        """Penalise logits, float32 [n, vocab], in place, for rows of penalised `slots` [n]."""

    def count(self, slots: Int32s, tokens: Any) -> None:
        """`tokens` [n] int64 were drawn for the penalised `slots` [n]."""


class Operations(Protocol):
    """A module. What becomes of a row depends on that row alone."""

    def make_penalties(self, vocab_size: int, num_slots: int, device: Device) -> Penalties: ...

    def finite_rows(self, logits: Any) -> Any:
        """bool [n]: whether every one of a row's logits [n, vocab] is a finite number."""

    def apply_masks(self, logits: Any, ruled: Ruled) -> None:
        """Set the logits [n, vocab] of tokens that are not allowed to minus infinity, in the rows of `ruled` and in no
        other, in place."""

    def draw(self, logits: Any, parameters: DrawParameters) -> Array:
        """One token for each row, int64 [n], from logits float32 [n, vocab], which are changed in place. At least the
        likeliest token is kept."""

    def score(self, logits: Any, chosen: Any, columns: Columns, *, ranked: bool = False) -> Scores:
        """Log-probabilities of the tokens `chosen` [n] and of those in `columns` under `logits` [n, vocab]; with
        `ranked` the place of each chosen token among all."""


def operations_on(device: Device) -> Operations:
    """Those for logits on `device`."""
    name = "on_host" if device is None else "in_torch"
    return cast(Operations, importlib.import_module(f"pawl.gpu.sampling.{name}"))
