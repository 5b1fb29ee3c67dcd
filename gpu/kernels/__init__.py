"""Kernels in Triton, one subject a file. Importing one imports Triton; nothing outside `gpu/cuda` and `gpu/attention`
does so before it is asked for.

Each kernel computes a row in an order that no other row, and no count of rows, reaches. With TRITON_INTERPRET=1 set
before Triton is first imported they run on the CPU, slowly: that is how they are tested where there is no device.
"""

import os

# What Triton 3.9 does anyway, with a warning: later versions would round between a product and a sum.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
