"""Keys for links over tcp: one pair, which every process of a deployment has. Whoever lacks it is not let in."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

PUBLIC, SECRET = "link.public", "link.secret"
_MOST_BYTES = 4096
"""Read of a file that should hold one key."""
_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


class KeysUnusable(Exception):
    """The keys are not there, are no keys, or can be read by others."""


class Keys(NamedTuple):
    """A CURVE key pair, as text (Z85, 40 bytes each)."""

    public: bytes
    secret: bytes


def make_keys(folder: Path) -> None:
    """Make a pair in `folder`, which and which alone its owner can read. Raises KeysUnusable where there is one."""
    import zmq

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    public, secret = zmq.curve_keypair()
    for name, key in ((SECRET, secret), (PUBLIC, public)):
        try:
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise KeysUnusable(f"{folder / name} is there already; who has it would be shut out") from None
        with os.fdopen(file, "wb") as opened:
            opened.write(key + b"\n")


def read_keys(folder: Path) -> Keys:
    """The pair in `folder`. Raises KeysUnusable."""
    found = []
    for name in (PUBLIC, SECRET):
        path = folder / name
        try:
            with path.open("rb") as file:
                key = file.read(_MOST_BYTES).strip()
            mode = path.stat().st_mode
        except OSError as error:
            raise KeysUnusable(f"{path}: {error.strerror}; `pawl keys {folder}` makes a pair") from None
        if _Z85.fullmatch(key) is None:
            raise KeysUnusable(f"{path} holds no key")
        if name == SECRET and stat.S_IMODE(mode) & 0o077:
            raise KeysUnusable(f"{path} can be read by others: chmod 600 {path}")
        found.append(key)
    return Keys(*found)
