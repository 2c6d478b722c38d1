"""A training step on a device that has no numbers: what would wait for it, and what would run on it.

The device is PyTorch's "meta", which stands for a GPU: a PyTorch without CUDA has no gradients of fake
CUDA tensors. What asks whether there is a GPU is told that it is one.
"""

import threading
from collections import Counter
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from families import config_of, make_model
from helpers import gradients, random_rows
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import get_scheduler

from luthier.data.batches import Batch, RowDataset, StepBatches, collate
from luthier.kernels import attention
from luthier.kernels.fast import install
from luthier.kernels.triton import switch
from luthier.objectives.sft import SFT
from luthier.objectives.supervised import loss_sum
from luthier.plan.fake import meta_model
from luthier.recipe import KernelsGroup, MethodGroup, TrainGroup
from luthier.train import loop, offload
from luthier.train.loop import Learner, train_step
from luthier.train.optimizers import make_optimizer
from luthier.train.setup import recompute_activations

GPU = torch.device("meta")

# What has as many results as numbers say: the host waits for those numbers.
RESERVES = {"aten::empty_like", "aten::new_empty", "aten::empty.memory_format", "aten::_unsafe_view",
            "aten::new_empty_strided"}  # fmt: skip
DEPENDS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
           "aten::_unique2", "aten::is_nonzero", "aten::repeat_interleave.Tensor"}  # fmt: skip


class Watch(TorchDispatchMode):
    """Counts what waits for the device, and what starts there.

    Attributes:
        waits: reads of the device, and copies to it that wait for its queue, by name.
        launches: operations on the device that are no views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_gpu = any(t.device.type == "meta" for t in inputs)
        if (
            name in DEPENDS
            and on_gpu
            and not (name == "aten::repeat_interleave.Tensor" and kwargs.get("output_size"))
        ):
            self.waits[name] += 1
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        places = {t.device.type for t in [*inputs, *outputs]}
        if name in ("aten::_to_copy", "aten::copy_") and places == {"cpu", "meta"}:
            waits = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if not waits:
                self.waits[f"{name}, blocking"] += 1
        elif (
            not func.is_view and name not in RESERVES and "meta" in {t.device.type for t in outputs}
        ):
            self.launches += 1
        return result


class Read:
    """The one way in which a step reads numbers."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, values: Tensor) -> list[float]:
        self.count += 1
        return [1.0] * values.numel()


def step(
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    method: MethodGroup,
    optim: str = "adamw_torch",
    *,
    recomputes: bool = False,
) -> tuple[Watch, Read, list[str]]:
    """One training step of two micro-batches, what of it waits, and the kernels it starts."""
    started: list[str] = []
    watch = Watch()

    def launched(kernel: Any, grid: Any, *tensors: Tensor, **settings: Any) -> None:
        assert {t.device.type for t in tensors} == {"meta"}
        started.append(kernel.__name__)
        watch.launches += 1

    for name in ("adamw", "cross_entropy", "dropout", "gate", "rms_norm", "rotary"):
        monkeypatch.setattr(f"luthier.kernels.triton.{name}.launch", launched)
    dtype = torch.bfloat16
    model = meta_model(
        config_of(family, 96), method, dtype, dtype if optim == "adamw_bf16" else torch.float32
    )
    model.config.use_cache = False
    for parameter in model.parameters():
        if parameter.requires_grad and method.name != "full":
            parameter.data = parameter.data.float()  # as adapters are
    monkeypatch.setattr(attention, "has_packed", lambda device: True)
    monkeypatch.setattr(switch, "_DEVICES", ("meta",))
    read, fast = Read(), install(model, KernelsGroup())
    # All weights are bfloat16 but the adapters', which are cast where they are used.
    monkeypatch.setattr(loop, "arithmetic", lambda *_: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    update = loop.update

    def updated(learner: Learner) -> None:
        before = watch.launches
        update(learner)
        watch.launches = before  # those of the optimiser are its own

    monkeypatch.setattr(loop, "update", updated)
    if recomputes:
        recompute_activations(model)
    model.train()
    optimizer = make_optimizer(model, TrainGroup(learning_rate=1e-4, weight_decay=0.01), optim)
    learner = Learner(
        model, SFT(True, fast.head), optimizer, get_scheduler("constant", optimizer), GPU, dtype, 1.0,
        read=read,
    )  # fmt: skip
    batches = [collate([[row] for row in random_rows(3)]) for _ in range(2)]
    switch.enable(True)
    try:
        train_step(learner, batches)  # optimisers make their state
        started.clear()
        read.count = watch.launches = 0
        with watch:
            train_step(learner, batches)
    finally:
        switch.enable(False)
    return watch, read, started


# Launches for each layer and micro-batch, without and with recomputation: they may only become fewer.
LAUNCHES = {
    "llama": (185, 236),
    "mistral-window": (185, 236),
    "qwen3": (189, 242),
    "gemma3": (211, 281),
}


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("family", LAUNCHES)
def test_a_step_reads_the_device_once_and_waits_for_no_copy(
    family: str, recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, read, started = step(monkeypatch, family, MethodGroup(), recomputes=recomputes)
    assert watch.waits == {}
    assert read.count == 1
    layers, times = 2 * 2, 3 if recomputes else 2  # of two micro-batches; forward and backward
    assert started.count("_rotate") == times * layers
    # Four groups of adapted layers share an input each; that of the first needs no gradient.
    assert started.count("_drop") == times * layers * 4 - (0 if recomputes else 2)
    assert watch.launches / layers <= LAUNCHES[family][recomputes]


def test_full_fine_tuning_updates_each_tensor_in_one_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, read, started = step(monkeypatch, "llama", MethodGroup(name="full"), "adamw_bf16")
    assert watch.waits == {}
    assert read.count == 1
    model = meta_model(config_of("llama", 96), MethodGroup(name="full"), torch.bfloat16)
    assert Counter(started)["_update"] == len(list(model.parameters()))


def test_what_waits_is_seen() -> None:
    """The watch itself: a read, a mask by numbers, a copy that blocks and one that does not."""
    values = torch.ones(3, device=GPU)
    for act, waits in (
        (lambda: values.nonzero(), 1),
        (lambda: torch.ones(3).to(GPU), 1),
        (lambda: torch.ones(3).to(GPU, non_blocking=True), 0),
        (lambda: torch.full((), 3.0, device=GPU), 0),
        (lambda: values[0].item(), 1),
    ):
        with Watch() as watch, suppress(RuntimeError, NotImplementedError):
            act()
        assert sum(watch.waits.values()) == waits


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
