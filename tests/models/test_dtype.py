import pytest
import torch

from luthier.errors import UserError
from luthier.models import dtype as dtype_module
from luthier.models.dtype import bfloat16_speedup, pick_device, pick_dtype


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
    assert bfloat16_speedup() > 0


@pytest.mark.parametrize(("macos", "chosen"), [(13, torch.float32), (14, torch.bfloat16)])
def test_apples_gpu_computes_in_bfloat16_where_macos_knows_it(
    macos: int, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.backends.mps, "is_macos_or_newer", lambda major, _minor: macos >= major
    )
    _pretend(monkeypatch, "mps", 1)
    assert pick_device() == torch.device("mps")
    assert pick_dtype(pick_device()) == chosen


def _pretend(monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, "cuda", 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("1", "2"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        if rank == "1":
            assert pick_device() == torch.device("cuda", 1)
        else:
            with pytest.raises(UserError, match="there are only 2; start at most that many"):
                pick_device()
