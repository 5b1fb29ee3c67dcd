"""The C interface of the compiled kernels, as ctypes sees it. Mirrors `decoder.h`, `interface.cpp` and
`draws.cpp`.

A call into the library releases the interpreter lock, so that a whole step runs beside other Python threads.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from pawl.gpu.native.build import NativeUnavailable, Sums, build, flags_for, sums_of


class Part(ctypes.Structure):
    """`pawl::Part`: what a rank has of some heads, columns or outputs."""

    _fields_ = (("begin", c_int32), ("count", c_int32))


class Shape(ctypes.Structure):
    """`pawl::Shape`: the model's numbers, and pointers. Of those only `kv`, `window_kv` and `ranks` are kept."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                "bf16",
                "vocab_size",
                "hidden_size",
                "num_layers",
                "num_heads",
                "num_kv_heads",
                "head_dim",
                "intermediate_size",
                "gelu_tanh",
                "qkv_bias",
                "qk_norm",
                "sandwich_norms",
                "tied_embeddings",
                "num_ropes",
                "num_pages",
                "page_size",
                "num_experts",
                "experts_per_row",
                "expert_size",
                "normalised_shares",
            )
        ),
        ("norm_epsilon", c_float),
        ("embedding_scale", c_float),
        ("query_scale", c_float),
        ("threads", c_int32),
        ("num_window_pages", c_int32),
        ("kv", c_void_p),
        ("window_kv", c_void_p),
        ("windows", c_void_p),
        ("rope_of_layer", c_void_p),
        ("expert_layers", c_void_p),
        ("inverse_frequencies", c_void_p),
        *(
            (name, Part)
            for name in (
                "heads",
                "kv_heads",
                "columns",
                "inner",
                "vocabulary",
                "expert_inner",
                "expert_columns",
            )
        ),
        ("expert_parts", c_void_p),
        ("part", c_int64),
        ("ranks", c_void_p),
    )


class Inputs(ctypes.Structure):
    """`pawl::Inputs`: one step. Of `logits`, `greedy`, `hidden` and `passed` one is not null."""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_segments", c_int32),
        ("num_logits", c_int32),
        ("num_slots", c_int32),
        ("pages_per_slot", c_int32),
        ("reserved", c_int32),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("starts", c_void_p),
        ("lengths", c_void_p),
        ("offsets", c_void_p),
        ("page_table", c_void_p),
        ("logit_rows", c_void_p),
        ("window_table", c_void_p),
        ("logits", c_void_p),
        ("greedy", c_void_p),
        ("masks", c_void_p),
        ("hidden", c_void_p),
        ("adapters", c_void_p),
        ("expert_counts", c_void_p),
        ("begun", c_void_p),
        ("passed", c_void_p),
    )


class Library:
    """The loaded kernels. Its functions return None, or a message that says what is wrong with the call."""

    def __init__(self, path: Path) -> None:
        """Raises NativeUnavailable when the file cannot be loaded."""
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailable(f"the compiled kernels cannot be loaded: {error}") from error
        self.target = loaded.pawl_native_target
        self.target.argtypes, self.target.restype = (), c_char_p
        self.name = str(self.target().decode())
        """What they were compiled for, in words."""
        self.create = loaded.pawl_native_create
        self.create.argtypes, self.create.restype = (POINTER(Shape), POINTER(c_void_p)), c_char_p
        self.load = loaded.pawl_native_load
        self.load.argtypes, self.load.restype = (c_void_p, c_int32, c_char_p, c_int32, c_void_p, c_int64), c_char_p
        self.read = loaded.pawl_native_read
        self.read.argtypes, self.read.restype = self.load.argtypes, c_char_p
        self.stage = loaded.pawl_native_stage
        self.stage.argtypes, self.stage.restype = self.load.argtypes, c_char_p
        self.drop_staged = loaded.pawl_native_drop_staged
        self.drop_staged.argtypes, self.drop_staged.restype = (c_void_p,), None
        self.switch_experts = loaded.pawl_native_switch_experts
        self.switch_experts.argtypes, self.switch_experts.restype = (c_void_p, c_void_p), c_char_p
        self.forward = loaded.pawl_native_forward
        self.forward.argtypes, self.forward.restype = (c_void_p, POINTER(Inputs)), c_char_p
        self.destroy = loaded.pawl_native_destroy
        self.destroy.argtypes, self.destroy.restype = (c_void_p,), None
        self.join = loaded.pawl_native_join
        self.join.argtypes = (c_char_p, c_uint64, c_int32, c_int32, c_double, POINTER(c_void_p))
        self.join.restype = c_char_p
        self.lost = loaded.pawl_native_lost
        self.lost.argtypes, self.lost.restype = (c_void_p,), c_char_p
        self.waited = loaded.pawl_native_waited
        self.waited.argtypes, self.waited.restype = (c_void_p,), c_int64
        self.meet = loaded.pawl_native_meet
        self.meet.argtypes, self.meet.restype = (c_void_p, c_int64), c_char_p
        self.leave = loaded.pawl_native_leave
        self.leave.argtypes, self.leave.restype = (c_void_p,), None
        self.make_adapter = loaded.pawl_native_make_adapter
        self.make_adapter.argtypes, self.make_adapter.restype = (c_void_p, POINTER(c_void_p)), c_char_p
        self.load_adapter = loaded.pawl_native_load_adapter
        self.load_adapter.argtypes = (c_void_p, c_int32, c_int32, c_int64, c_void_p, c_void_p)
        self.load_adapter.restype = c_char_p
        self.destroy_adapter = loaded.pawl_native_destroy_adapter
        self.destroy_adapter.argtypes, self.destroy_adapter.restype = (c_void_p,), None
        self.contenders = loaded.pawl_native_contenders
        self.contenders.argtypes = (c_void_p, c_int32, c_uint32, c_uint32, c_uint32, c_float, c_void_p)
        self.contenders.restype = c_int32


@cache
def load_library(sums: Sums | None = None) -> Library:
    """The kernels for this machine, compiled if need be, loaded once a process; those that sum so, where it is not
    the fastest way here. Raises NativeUnavailable."""
    found = Library(build())
    if sums in (None, sums_of(found.name)):
        return found
    return Library(build(flags=flags_for(sums=sums)))
