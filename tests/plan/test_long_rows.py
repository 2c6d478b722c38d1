"""A training step takes memory in proportion to its rows' length: nothing in it is tokens x tokens."""

import pytest
import torch
from families import make_model

from luthier.data.batches import Batch
from luthier.kernels.fast import install
from luthier.models.adapters import attach_adapter
from luthier.objectives.supervised import loss_sum
from luthier.plan.live import LiveStorage
from luthier.plan.simulate import Workload, simulate
from luthier.recipe import KernelsGroup, MethodGroup, MethodName

_LENGTHS = (8192, 16384, 32768)


def assert_linear(peaks: list[int]) -> None:
    first, second = peaks[1] - peaks[0], peaks[2] - peaks[1]
    assert first > 0
    assert second == pytest.approx(2 * first, rel=0.02)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_step_of_one_long_row_is_planned_in_linear_memory(
    family: str, method: MethodName
) -> None:
    config = make_model(family, 96).config
    config.max_position_embeddings = _LENGTHS[-1]
    peaks = [
        simulate(config, MethodGroup(name=method), Workload([n], n - 1, torch.float32, "sgd")).peak
        for n in _LENGTHS
    ]
    assert_linear(peaks)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_real_step_of_long_rows_takes_what_is_planned(family: str) -> None:
    """4,096 tokens: longer rows would only take longer, see the planned ones above."""
    length = 4096
    model = make_model(family, 96)
    model.config.max_position_embeddings = length
    model.config.use_cache = False
    config, method = model.config, MethodGroup()
    planned = simulate(config, method, Workload([length], length - 1, torch.float32, "sgd"))
    trained = attach_adapter(model, method)
    head = install(trained, KernelsGroup()).head
    tokens = torch.zeros(1, length, dtype=torch.long)
    live = LiveStorage()
    live.add([*trained.parameters(), *trained.buffers()])
    with live:
        batch = Batch(tokens, None, tokens.clone(), torch.arange(length - 1), (length,))
        (loss_sum(trained, batch, head=head) / length).backward()
    assert planned.peak == pytest.approx(live.peak, rel=0.03)
