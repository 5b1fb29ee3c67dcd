"""The decoder for CUDA devices: Triton kernels around large matrix products, captured as graphs for decoding."""
