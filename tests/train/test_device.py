"""A training step on a device that has no numbers: what would wait for it, and what would run on it.

The device is PyTorch's "meta", which stands for a GPU (``plan/watch.py``).
"""

import threading
from contextlib import suppress
from typing import Any

import pytest
import torch
from families import config_of, make_model
from helpers import gradients, random_rows
from interpreted import need_triton
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from luthier.data.batches import Batch, RowDataset, StepBatches, collate
from luthier.kernels.triton import launch, switch
from luthier.objectives.supervised import loss_sum
from luthier.plan.simulate import Workload, simulate
from luthier.plan.watch import Watch
from luthier.recipe import MethodGroup
from luthier.train import offload
from luthier.train.bf16_adamw import BF16AdamW

# What one layer launches in forward and backward, without and with recomputation, by family and method:
# that of three layers less that of two. Fewer are better; more are a regression.
LAUNCHES = {
    ("llama", "full"): (42, 53),
    ("llama", "lora"): (73, 100),
    ("llama", "qlora"): (115, 163),
    ("mistral-window", "lora"): (73, 100),
    ("qwen3", "lora"): (77, 106),
    ("gemma3", "lora"): (83, 115),
    ("gpt2", "lora"): (76, 104),
}


def watched(family: str, method: str, layers: int, recomputes: bool = False) -> Watch:
    config = config_of(family, 96)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i % 2] for i in range(layers)]
    for name in (
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
    ):  # of GPT-2: one launch on a GPU, not here
        if hasattr(config, name):
            setattr(config, name, 0.0)
    optim = "adamw_bf16" if method == "full" else "adamw_torch"
    watch = Watch([24, 40])
    work = Workload(watch.lengths, 60, torch.bfloat16, optim, recomputes)
    simulate(config, MethodGroup(name=method), work, watch)  # type: ignore[arg-type]
    return watch


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(("family", "method"), LAUNCHES)
def test_a_step_reads_the_device_once_and_launches_no_more_than_it_did(
    family: str, method: str, recomputes: bool
) -> None:
    need_triton()
    two, three = (watched(family, method, layers, recomputes) for layers in (2, 3))
    assert three.waits == {}
    assert three.mixed == {}
    assert three.reads == 1
    assert len(three.kernels) - len(two.kernels) == LAUNCHES[family, method][recomputes]


def test_attention_is_counted_by_the_scores_that_are_seen() -> None:
    """Of two rows of 24 and 40 tokens, in heads of 16: 2 products forward and 5 backward."""
    config = config_of("llama", 96)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    found = [k.flops for k in watched("llama", "full", 1).kernels if k.kind == "attention"]
    pairs = (24 * 25 + 40 * 41) // 2
    assert found == [2 * products * heads * width * pairs for products in (2, 5)]


def test_full_fine_tuning_updates_each_tensor_in_one_launch() -> None:
    need_triton()
    started: list[str] = []
    weights = [nn.Parameter(torch.ones(n, 2, dtype=torch.bfloat16, device="meta")) for n in (3, 4)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    launch.watchers.append(lambda name, _: started.append(name))
    try:
        with switch.simulated_gpu(triton=True):
            BF16AdamW(weights, lr=0.1).step()
    finally:
        launch.watchers.pop()
    assert started == ["_update"] * 2


def test_what_waits_is_seen() -> None:
    """The watch itself: a read, a mask by numbers, a copy that blocks and one that does not; two devices."""
    values = torch.ones(3, device="meta")
    for act, waits, mixed in (
        (lambda: values.nonzero(), 1, 0),
        (lambda: torch.ones(3).to("meta"), 1, 0),
        (lambda: torch.ones(3).to("meta", non_blocking=True), 0, 0),
        (lambda: torch.full((), 3.0, device="meta"), 0, 0),
        (lambda: values[0].item(), 1, 0),
        (lambda: torch.mm(values[None], torch.ones(3, 1)), 0, 1),
        (lambda: values * torch.ones(()), 0, 0),
    ):
        with Watch([3]) as watch, suppress(RuntimeError, NotImplementedError):
            act()
        assert sum(watch.waits.values()) == waits
        assert sum(watch.mixed.values()) == mixed


def test_the_next_step_is_made_while_one_runs() -> None:
    """In a thread, in the same order, and no more than one step ahead; its error comes where it belongs."""
    rows = random_rows(12)
    data, made = RowDataset(rows, 64, False), list[int]()

    def collated(items: Any) -> Batch:
        made.append(threading.get_ident())
        if len(made) == 5:
            raise ValueError("the fifth")
        return collate(items)

    plain = StepBatches(data, 1, 2, 3, collate).epoch(0)
    steps = StepBatches(data, 1, 2, 3, collated, ahead=True).epoch(0)
    first = next(steps)
    assert [b.origins for b in first] == [b.origins for b in next(plain)]
    assert [b.origins for b in next(steps)] == [b.origins for b in next(plain)]
    assert threading.get_ident() not in made
    with pytest.raises(ValueError, match="the fifth"):
        next(steps)
    assert len(made) == 5


def test_offloading_leaves_parameters_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of full fine-tuning, whose weights every product saves; the gradients are the same."""
    sent: list[Tensor] = []

    class Recording(save_on_cpu):
        def __init__(self, pin_memory: bool) -> None:
            super().__init__(pin_memory)
            pack = self.pack_hook

            def recorded(tensor: Tensor) -> Any:
                sent.append(tensor)
                return pack(tensor)

            self.pack_hook = recorded

    monkeypatch.setattr(offload, "save_on_cpu", Recording)
    model = make_model("llama", 96)
    batch = collate([[row] for row in random_rows(3)])
    plain = gradients(model, loss_sum(model, batch))
    with offload.offloaded():
        loss = loss_sum(model, batch)
    found = gradients(model, loss)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    places = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert sent
    assert not any(t.untyped_storage().data_ptr() in places for t in sent)
