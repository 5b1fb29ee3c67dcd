"""What HTTP must know about the model and the server, and what it needs of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from pawl.actors.sampling import Limits
from pawl.actors.text.template import Templates
from pawl.config import ServerConfig
from pawl.loops.versions import DEFAULT_VERSION

SECRETS = ("api_key", "admin_api_key")


class Tokenization(Templates, Protocol):
    """Text to token ids and back; the model's vocabulary."""

    def encode(self, text: str, add_special: bool = True) -> NDArray[Any] | Sequence[int]: ...

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str: ...

    def token_bytes(self, token: int) -> bytes: ...

    def token_text(self, token: int) -> str: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def tokenizer_class(self) -> str: ...

    @property
    def added_tokens(self) -> Mapping[str, Mapping[str, str | bool]]: ...


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that do not change while the server runs, but for its weights."""

    model_name: str
    """The name that replies carry."""
    model_path: str
    aliases: tuple[str, ...] = ()
    """Other names that requests may use."""
    limits: Limits
    version: str
    """Pawl's own."""
    created: int = 0
    """Seconds since the epoch when the server started."""
    startup_s: float = 0.0
    """How long the model took to load."""
    num_kv_tokens: int = 0
    """Tokens that the KV cache has room for."""
    weight_version: str = DEFAULT_VERSION
    """What replies call the weights."""
    max_loaded_adapters: int = 0
    """Adapters that may be loaded at a time; 0: requests may name none."""
    request_timeout_s: float = 600.0
    """After which a request is ended that brings no limit of its own."""
    tool_format: str | None = None
    """How the model writes calls of tools, a name in `TOOL_FORMATS`; None: not known."""
    reasoning_format: str | None = None
    """How it marks reasoning, a name in `FORMATS`; None: it does not, or it is left in the text."""
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    """The configuration as `/server_info` shows it; no secrets."""

    @property
    def context_length(self) -> int:
        return self.limits.context_length

    @property
    def vocabulary_size(self) -> int:
        return self.limits.vocabulary_size

    @property
    def fingerprint(self) -> str:
        """What produced a reply, for `system_fingerprint`."""
        return f"pawl-{self.version}-{self.weight_version}"

    def knows(self, name: str) -> bool:
        """Whether a request for model `name` is for this one."""
        return name in (self.model_name, self.model_path) or name in self.aliases


def settled(config: ServerConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without secrets, and what was chosen where it left the choice."""
    settings = {name: value for name, value in msgspec.to_builtins(config).items() if name not in SECRETS}
    return {name: chosen.get(name, value) if value in (None, "auto") else value for name, value in settings.items()}
