import pytest
import torch

from luthier.models import dtype as dtype_module
from luthier.models.dtype import bfloat16_speedup, pick_dtype


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({torch.float32: 3.0, torch.bfloat16: 1.0}, torch.bfloat16),
        ({torch.float32: 1.0, torch.bfloat16: 3.0}, torch.float32),
        ({torch.float32: 1.2, torch.bfloat16: 1.0}, torch.float32),
    ],
)
def test_a_processor_is_measured(
    seconds: dict[torch.dtype, float], chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype_module, "_matmul_seconds", seconds.__getitem__)
    bfloat16_speedup.cache_clear()
    assert pick_dtype(torch.device("cpu")) == chosen
    bfloat16_speedup.cache_clear()


@pytest.mark.parametrize(
    ("capability", "chosen"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_gpu_is_known_by_its_capability(
    capability: tuple[int, int], chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert pick_dtype(torch.device("cuda")) == chosen


def test_the_measurement_measures() -> None:
    bfloat16_speedup.cache_clear()
    assert bfloat16_speedup() > 0.01
