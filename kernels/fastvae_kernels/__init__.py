"""Triton kernels and their launchers; operators in `fastvae.ops` call them."""
