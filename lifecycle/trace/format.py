"""Traces on disk: framed blocks, each tied to the one before it by its SHA-256.

    DIRECTORY/run-000007/trace-000000.pawl      one run of the engine is one folder
                         trace-000001.pawl      its files are one chain

    file    | magic, version | run | file index | schema | SHA-256 of the block before | CRC |  block  |  block  | …
    block   | marker | actor | first record | count | length | schema | previous SHA-256 | SHA-256 | CRC |  payload

The payload is a msgpack array of records (`lifecycle/records.py`). A block's SHA-256 covers its header and payload;
the CRC covers the header alone, so that a damaged length is told from a file that ends early.

What survives: a block is handed to the operating system in one write, so a process that is killed loses at most the
block it was filling. Files are flushed to the device (fsync) when they are full and when the trace is closed, never
in between: a power failure may cost what the operating system had not written yet, and the reader will say so.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

MAGIC = b"PAWLTRC"
VERSION = 2
"""2: the orders that a loop was given, and deadlines, are inputs of a replay."""
MARKER = b"BLK1"
NO_BLOCK = bytes(32)
FILE = struct.Struct(">7sBII8s32s")
BLOCK = struct.Struct(">4s16sQII8s32s")
CRC = struct.Struct(">I")
FILE_SIZE = FILE.size + CRC.size
BLOCK_SIZE = BLOCK.size + 32 + CRC.size


def sealed(header: bytes) -> bytes:
    """A header with its CRC behind it."""
    return header + CRC.pack(zlib.crc32(header))


def intact(header: bytes) -> bool:
    """Whether a header is the one that was sealed."""
    return header[-CRC.size :] == CRC.pack(zlib.crc32(header[: -CRC.size]))


def run_folders(directory: Path) -> list[Path]:
    """The folders of runs in a directory, the oldest first; whatever else lies there is none of ours."""
    return sorted(path for path in directory.glob("run-*") if re.fullmatch(r"run-\d{6,}", path.name) and path.is_dir())


def run_number(folder: Path) -> int:
    """The number of a run's folder."""
    return int(folder.name.removeprefix("run-"))


def file_name(index: int) -> str:
    """Of a run's file by its number, from 0."""
    return f"trace-{index:06}.pawl"


def trace_files(run: Path) -> list[Path]:
    """The files of a run in their order."""
    return sorted(file for file in run.glob("trace-*.pawl") if file.is_file())
