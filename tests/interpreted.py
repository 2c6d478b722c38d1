"""Triton's kernels on a CPU, by its interpreter (conftest.py sets TRITON_INTERPRET)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

from luthier.kernels.triton import switch


def need_triton() -> None:
    """Skip a file of tests where Triton is not installed."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'luthier[triton]'")


@contextmanager
def interpreting() -> Iterator[None]:
    """The CPU is a device that Triton's kernels are for."""
    with patch.object(switch, "_DEVICES", ("cuda", "cpu")):
        yield


@contextmanager
def triton_in_use() -> Iterator[None]:
    with interpreting():
        switch.enable(True)
        try:
            yield
        finally:
            switch.enable(False)


@contextmanager
def rounding_as_a_gpu() -> Iterator[None]:
    """The interpreter (Triton 3.9) rounds 127 to 64 in 8 bits, since it drops what carries into the exponent."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def right(numbers: Any, before: Any, after: Any, mode: Any) -> Any:
        if after != interpreter.tl.float8e4nv:
            return convert(numbers, before, after, mode)
        small = torch.from_numpy(numbers.copy()).to(torch.float8_e4m3fn)
        return small.view(torch.uint8).numpy()

    with patch.object(interpreter, "_convert_float", right):
        yield
