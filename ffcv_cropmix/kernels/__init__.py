"""Compiled kernels: numpy and numba only."""
