"""A training step on a device that has no numbers: what would wait for it, and what would run on it.

The device is PyTorch's "meta", which stands for a GPU (``plan/watch.py``).
"""

import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import torch
from families import config_of, make_model, small_config
from helpers import gradients, random_rows
from interpreted import need_triton
from torch import Tensor, nn

from luthier.data.batches import Batch, RowDataset, StepBatches, collate
from luthier.kernels.triton import launch, switch
from luthier.objectives.supervised import loss_sum
from luthier.plan.catalogues import as_on_gpu
from luthier.plan.simulate import Workload, simulate
from luthier.plan.watch import Watch
from luthier.recipe import KernelsGroup, MethodGroup
from luthier.train import offload
from luthier.train.bf16_adamw import BF16AdamW
from luthier.train.setup import recompute_activations

# What one layer launches in forward and backward, without and with recomputation, by family and method:
# that of three layers less that of two. Fewer are better; more are a regression.
LAUNCHES = {
    ("llama", "full"): (42, 53),
    ("llama", "lora"): (73, 100),
    ("llama", "qlora"): (115, 142),
    ("llama", "fp8"): (105, 136),
    ("mistral-window", "lora"): (73, 100),
    ("qwen3", "lora"): (77, 106),
    ("gemma3", "lora"): (83, 115),
    ("gpt2", "lora"): (94, 132),  # its norms and its GELU are in float32 there
    ("mixtral", "experts"): (122, 165),
}
EXPERTS = MethodGroup(
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    lora_dropout=0.0,
    lora_r=8,
)


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
    kernels = KernelsGroup(fp8_base=method == "fp8")
    work = Workload(watch.lengths, 60, torch.bfloat16, optim, recomputes, kernels=kernels)
    name = "lora" if method == "fp8" else method
    group = EXPERTS if method == "experts" else MethodGroup(name=name)  # type: ignore[arg-type]
    simulate(config, group, work, watch)
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


@pytest.mark.parametrize(("recomputes", "ahead", "back"), [(False, 8, 7), (True, 16, 8)])
def test_dropout_without_triton_is_two_launches_however_many_tokens(
    recomputes: bool, ahead: int, back: int
) -> None:
    """For each of four inputs in two layers: forward, again where it is recomputed, and in the backward.

    Nothing learns from the gradient of the first layer's inputs, unless that layer is recomputed.
    """
    counted = []
    for rate, tokens in ((0.0, 64), (0.1, 64), (0.1, 2**15)):
        watch = Watch([tokens])
        kernels = KernelsGroup(triton=False)
        work = Workload([tokens], 60, torch.bfloat16, "adamw_torch", recomputes, kernels=kernels)
        simulate(config_of("llama", 96), MethodGroup(lora_dropout=rate), work, watch)
        assert watch.waits == watch.mixed == {}
        counted.append(Counter(kernel.name for kernel in watch.kernels))
    more = counted[1] - counted[0]
    assert more == {
        "aten::bernoulli_.float": ahead + back,
        "aten::masked_fill.Scalar": ahead,
        "aten::masked_fill_.Scalar": back,
    }
    assert {name: counted[2][name] for name in more} == more


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe", "cohere2", "gpt_neox"])
def test_other_architectures_wait_for_nothing_either(kind: str) -> None:
    watch = Watch([24, 40])
    work = Workload(watch.lengths, 60, torch.bfloat16, "adamw_torch")
    simulate(as_on_gpu(small_config(kind)), MethodGroup(lora_dropout=0.0, lora_r=4), work, watch)
    assert (watch.reads, watch.waits, watch.mixed) == (1, {}, {})


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
    told = launch.told(lambda name, _: started.append(name))
    with told, switch.simulated_gpu(triton=True):
        BF16AdamW(weights, lr=0.1).step()
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


class FakeSide:
    """A side stream that only tells what is asked of it, in order."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []
        self.log: list[tuple[str, int]] = []

    def out(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor)
        kept = tensor.clone()
        kept.number = len(self.sent) - 1
        self.log.append(("out", kept.number))
        return kept

    def back(self, kept: Any, device: torch.device) -> tuple[Tensor, int]:
        self.log.append(("back", kept.number))
        return kept.clone(), kept.number

    def wait(self, arrived: int) -> None:
        self.log.append(("wait", arrived))


@pytest.mark.parametrize("recomputes", [False, True])
def test_offloading_leaves_parameters_and_fetches_ahead(
    recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of full fine-tuning, whose weights every product saves; the gradients are the same."""
    monkeypatch.setattr(offload, "_LEAST", 1)
    model = make_model("llama", 96)
    batch = collate([[row] for row in random_rows(3)])
    plain = gradients(model, loss_sum(model, batch))
    if recomputes:
        recompute_activations(model.train())
    side = FakeSide()
    with offload.offloaded(side):
        loss = loss_sum(model, batch)
    assert {name for name, _ in side.log} == {"out"}
    sent = len(side.log)
    found = gradients(model, loss)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    places = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert sent
    assert not any(t.untyped_storage().data_ptr() in places for t in side.sent)
    backward = side.log[sent:]
    # Each comes back once, is waited for once and later, and others come meanwhile.
    fetched = [number for name, number in backward if name == "back"]
    awaited = [number for name, number in backward if name == "wait"]
    assert len(set(fetched)) == len(fetched) == len(awaited)
    early = [n for n in awaited if backward.index(("wait", n)) - backward.index(("back", n)) > 1]
    assert len(early) >= len(awaited) // 2
