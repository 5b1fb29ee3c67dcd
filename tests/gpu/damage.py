"""Small model folders and GGUF files, and ways to damage them: by bytes, by keys, by types and sizes they claim."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pawl.gpu.weights.blocks import BlockFormat
from tests.actors.vocabularies import CHATML, byte_level, byte_level_metadata, sentencepiece_metadata
from tests.gpu.gguf_files import write_model
from tests.gpu.packed_files import WAYS, write_packed
from tests.gpu.tiny import save_tiny

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, "", "abc", "\ud800", -1, 0, 1, 0.5, 3, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 63, 10**40,
    1e308, float("nan"), float("inf"), [], {}, [[]], [None], {"a": 1}, "x" * 5000, "{% for", "{{ 1/0 }}", "../../x",
)  # fmt: skip
EXTREMES = (0, 1, 2, 255, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
FOLDERS = ("llama", "gemma3", "qwen3-moe", "qwen2-moe", "phi3")
FILES = {
    "llama": byte_level_metadata,
    "gemma3": sentencepiece_metadata,
    "mixtral": byte_level_metadata,
    "llama-wide": byte_level_metadata,
}
"""Model written as GGUF -> its vocabulary."""
FORMATS = {"llama-wide": (BlockFormat.Q4_1, BlockFormat.Q8_0)}
KEYS = (
    *(b"block_count", b"head_count", b"head_count_kv", b"embedding_length", b"key_length", b"feed_forward_length"),
    *(b"expert_count", b"expert_used_count", b"context_length", b"rms_epsilon", b"sliding_window", b"freq_base"),
    *(b"architecture", b"ggml.model", b"ggml.pre", b"ggml.tokens", b"ggml.token_type", b"ggml.merges", b"ggml.scores"),
    *(b"eos_token_id", b"bos_token_id", b"unknown_token_id", b"chat_template"),
)
_GGUF_NAMES = {"llama": "llama", "gemma3": "gemma3", "mixtral": "llama", "llama-wide": "llama"}


def make_whole(directory: Path) -> list[Path]:
    """Everything that is damaged below, undamaged: folders with all files that a reader looks at, and GGUF files."""
    made = []
    quantised, _ = write_packed("llama-wide", WAYS["pack-4-zeros"], directory / "quantised")
    for folder in (*(directory / name for name in FOLDERS), quantised):
        if folder != quantised:
            save_tiny(folder.name, folder, **({"max_shard_size": "40KB"} if folder.name == "gemma3" else {}))
        byte_level().tokenizer.save(str(folder / "tokenizer.json"))
        objects = {
            "tokenizer_config.json": {
                "bos_token": {"content": "<|im_start|>", "special": True},
                "eos_token": "<|im_end|>",
                "chat_template": [{"name": "default", "template": CHATML}],
            },
            "special_tokens_map.json": {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}},
            "generation_config.json": {"eos_token_id": [1, 2]},
        }
        for file, value in objects.items():
            (folder / file).write_text(json.dumps(value))
        made.append(folder)
    for name, metadata in FILES.items():
        more: Any = {"metadata": metadata(), "formats": FORMATS.get(name, ())}
        made.append(write_model(name, _GGUF_NAMES[name], directory / f"{name}.gguf", **more))
    return made


def damaged(whole: Path, dice: random.Random, target: Path) -> str:
    """Write a damaged copy of `whole` to `target`, and say what was done to it."""
    if whole.is_file():
        way: Callable[[bytearray, random.Random], str] = dice.choice((_bytes, _header, _key))
        content = bytearray(whole.read_bytes())
        done = way(content, dice)
        target.write_bytes(content)
        return f"{whole.name}: {done}"
    shutil.copytree(whole, target)
    file = dice.choice(sorted(target.iterdir()))
    if file.suffix != ".json" or dice.random() < 0.15:
        content = bytearray(file.read_bytes())
        done = _bytes(content, dice)
        file.write_bytes(content)
    elif dice.random() < 0.03:
        file.write_text("[" * 200_000)
        done = "nested 200,000 deep"
    else:
        values = json.loads(file.read_text(encoding="utf-8"))
        done = _odd(values, dice)
        file.write_text(json.dumps(values))
    return f"{whole.name}/{file.name}: {done}"


def _bytes(content: bytearray, dice: random.Random) -> str:
    """Truncated, flipped, overwritten, or with bytes put in."""
    at = dice.randrange(len(content)) if dice.random() < 0.5 else dice.randrange(min(len(content), 400))
    way = dice.choice(("truncated", "flipped", "overwritten", "inserted"))
    if way == "truncated":
        del content[at:]
    elif way == "flipped":
        for place in range(at, min(at + dice.randrange(1, 9), len(content))):
            content[place] ^= 1 << dice.randrange(8)
    elif way == "overwritten":
        content[at : at + 8] = struct.pack("<Q", dice.choice(EXTREMES))
    else:
        content[at:at] = dice.randbytes(dice.randrange(1, 40))
    return f"{way} at byte {at}"


def _header(content: bytearray, dice: random.Random) -> str:
    """One of the counts and lengths at the beginning of a GGUF file."""
    at = dice.choice((4, 8, 16, 24))
    content[at : at + 8] = struct.pack("<Q", dice.choice(EXTREMES))
    return f"another number at byte {at}"


def _key(content: bytearray, dice: random.Random) -> str:
    """The value of a key of a GGUF file, or its type too."""
    there = [name for name in KEYS if name in content]
    name = dice.choice(there)
    at = content.index(name) + len(name)
    if dice.random() < 0.4:
        content[at : at + 4] = struct.pack("<I", dice.randrange(16))
    size = dice.choice((1, 4, 8))
    content[at + 4 : at + 4 + size] = struct.pack("<Q", dice.choice(EXTREMES))[:size]
    return f"another value of {name.decode()}"


def _odd(values: Any, dice: random.Random) -> str:
    """Some value in the tree of a JSON object: gone, or one that is odd there."""
    path, place = [], values
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = dice.choice(keys)
        path.append(str(key))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and dice.random() < 0.8:
            place = inner
            continue
        if dice.random() < 0.2:
            del place[key]
            return f"without {'.'.join(path)}"
        place[key] = dice.choice(ODD_VALUES)
        return f"{'.'.join(path)} is {str(place[key])[:20]!r}"
