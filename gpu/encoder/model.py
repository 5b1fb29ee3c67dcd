"""An encoder in plain torch, one prompt at a time: its bits cannot depend on what else there is to compute."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from pawl.gpu.devices import download, upload
from pawl.gpu.dtypes import tensor_of
from pawl.gpu.encoder.config import EncoderConfig
from pawl.lifecycle.step import Float32s, Int32s


class Product(NamedTuple):
    """A matrix [outputs, inputs] and a bias [outputs]; of a norm, a weight and a bias [size]."""

    weight: Tensor
    bias: Tensor


class Layer(NamedTuple):
    """Weights of one layer."""

    qkv: Product
    output: Product
    attention_norm: Product
    up: Product
    down: Product
    norm: Product


class Encoder:
    """Hidden states of whole prompts."""

    def __init__(
        self, config: EncoderConfig, weights: dict[str, NDArray[Any]], *, device: torch.device | str, threads: int
    ) -> None:
        """Takes `weights` over (`pawl.gpu.encoder.config.load_encoder_weights`). `threads` sets torch's thread count
        for this process."""
        torch.set_num_threads(threads)
        self.config = config
        self.device = torch.device(device)
        taken = {name: tensor_of(weights.pop(name)).to(self.device) for name in list(weights)}

        def product(name: str) -> Product:
            return Product(taken[f"{name}.weight"], taken[f"{name}.bias"])

        def layer(stem: str) -> Layer:
            parts = [product(f"{stem}.attention.self.{part}") for part in ("query", "key", "value")]
            qkv = Product(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
            names = ("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense")
            return Layer(qkv, *(product(f"{stem}.{name}") for name in (*names, "output.LayerNorm")))

        self._words = taken["embeddings.word_embeddings.weight"]
        self._positions = taken["embeddings.position_embeddings.weight"]
        self._type = taken["embeddings.token_type_embeddings.weight"][0]
        self._norm = product("embeddings.LayerNorm")
        self._layers = [layer(f"encoder.layer.{index}") for index in range(config.num_layers)]

    @property
    def processor(self) -> str:
        """What computes, in words: where two of these differ, last bits may."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"

    @torch.inference_mode()
    def hidden(self, tokens: Int32s) -> Float32s:
        """Hidden states of all positions after the last layer, float32 [n, hidden]; tokens int32 [n] of the model's
        vocabulary, n <= max_position."""
        embedded = self._words[upload(tokens, self.device).long()] + self._positions[: len(tokens)] + self._type
        hidden = self._normed(embedded, self._norm)
        for layer in self._layers:
            attended = F.linear(self._attended(hidden, layer.qkv), *layer.output)
            hidden = self._normed(hidden + attended, layer.attention_norm)
            inner = F.gelu(F.linear(hidden, *layer.up), approximate="tanh" if self.config.tanh else "none")
            hidden = self._normed(hidden + F.linear(inner, *layer.down), layer.norm)
        states: Float32s = download(hidden.float())
        return states

    def _attended(self, hidden: Tensor, qkv: Product) -> Tensor:
        """Every position of the prompt sees every other: [n, hidden] -> [n, hidden]."""
        heads = F.linear(hidden, *qkv).view(len(hidden), 3, self.config.num_heads, -1).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(heads[0][None], heads[1][None], heads[2][None])[0]
        return attended.transpose(0, 1).reshape(len(hidden), -1)

    def _normed(self, rows: Tensor, norm: Product) -> Tensor:
        epsilon = self.config.norm_epsilon
        return F.layer_norm(rows.float(), (self.config.hidden_size,), *norm, epsilon).to(rows.dtype)
