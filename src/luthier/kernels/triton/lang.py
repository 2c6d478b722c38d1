"""Triton; or, where it is not installed, as much of it as the kernels need to be simulated."""

__all__ = ["tl", "triton"]

try:
    import triton
    import triton.language as tl
except ImportError:
    # A plan for a GPU asks each kernel for its name and its tensors, on whatever machine it is made.
    from types import SimpleNamespace

    tl = SimpleNamespace(constexpr=None)
    triton = SimpleNamespace(
        jit=lambda kernel: kernel,
        cdiv=lambda count, size: -(-count // size),
        next_power_of_2=lambda count: 1 << (count - 1).bit_length(),
    )
