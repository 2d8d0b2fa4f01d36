"""Triton kernels for NVIDIA and AMD devices."""
