"""Kernels for GPUs, each in one pass over its tensors; ``switch.py`` says whether they are in use."""
