"""Triton's kernels on a CPU, by its interpreter (conftest.py sets TRITON_INTERPRET)."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest

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
